"""The recipes of docs/trainers.md run, one after the other, as they stand there."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import peft
import pytest
import torch
import transformers
from torch.utils.data import DataLoader

import skim
from tests.integrations.builtin import fresh, rows, tokenizer

PAGE = (Path(__file__).parents[2] / "docs" / "trainers.md").read_text()
SECTIONS = {section.split("\n", 1)[0]: section for section in PAGE.split("\n## ")[1:]}


def blocks(heading: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", SECTIONS[heading], re.DOTALL)


@pytest.fixture
def scope(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict:
    """What the page calls yours; a tiny model in the place of the one that is downloaded."""
    fresh(hidden_size=32, num_hidden_layers=2).save_pretrained(tmp_path / "base")
    whole = transformers.AutoModelForSequenceClassification.from_pretrained
    monkeypatch.setattr(
        transformers.AutoModelForSequenceClassification, "from_pretrained", lambda name: whole(tmp_path / "base")
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    data = rows("train", 32)
    collate = transformers.DataCollatorWithPadding(tokenizer())
    loaders = {name: DataLoader(data, batch_size=8, collate_fn=collate) for name in ("loader", "eval_loader")}
    given = {"tokenizer": tokenizer(), "train_data": data, "eval_data": data, **loaders}
    exec("import skim, torch\nfrom transformers import AutoModelForSequenceClassification", given)
    return given


def run(code: str, scope: dict) -> None:
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*nobody steps.*")
        exec(code, scope)


def test_transformers_trainer(scope: dict) -> None:
    (code,) = blocks("transformers' Trainer")
    run(code, scope)
    assert scope["model"].method.progress == pytest.approx(3 / 4)  # of the hard stage: the last 4 of 12 steps
    assert skim.from_pretrained("skimmed").method.name == "transkimmer"
    assert skim.from_pretrained("run/checkpoint-8").method.name == "transkimmer"


def test_peft(scope: dict) -> None:
    beside, inside, saved = blocks("PEFT")
    run(beside, scope)
    assert any(p.requires_grad for p in scope["model"].method.parameters())
    run(saved, scope)
    run(inside, scope)
    batch = next(iter(scope["loader"]))
    model = scope["model"].train()
    model(**batch).loss.backward()
    assert all(p.grad is not None for p in model.method.predictors.parameters())
    run(saved, scope)
    assert isinstance(scope["model"], peft.PeftModel)
    assert scope["model"].method.name == "transkimmer"


@pytest.mark.parametrize("heading", ["accelerate", "A plain loop"])
def test_loops(scope: dict, heading: str) -> None:
    (code,) = blocks(heading)
    run(code, scope)
    model = scope["model"]
    assert model.method.progress > 0.7
    assert float(model.method.budget.multiplier) != 0
    if heading == "accelerate":
        loaded = skim.from_pretrained("skimmed")
        assert torch.equal(loaded.classifier.weight, model.classifier.weight)
    else:
        assert float(model.method.shift) != 0
