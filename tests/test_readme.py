"""The README's code runs, its links lead somewhere, and it stays short; its commands are in tests/test_docs.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers

import skim
from skim import backbones
from skim.methods import METHODS
from tests.families import batch_of, plain

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def block(heading: str, language: str = "python") -> str:
    """The first code block under a heading."""
    section = README.split(f"## {heading}\n", 1)[1]
    return section.split(f"```{language}\n", 1)[1].split("```", 1)[0]


def test_the_library_example_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = plain("bert", "classification")
    monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "from_pretrained", lambda *_: model.eval())
    monkeypatch.chdir(tmp_path)
    batch = {**batch_of("bert"), "labels": torch.tensor([0, 1, 0, 1])}
    scope: dict = {"batch": batch, "progress": 0.5}
    code = block("As a library")
    before, after = code.split("model.eval()")
    exec(before, scope)
    assert scope["model"].trace.execution == "masked"
    scope["loss"].backward()
    assert all(p.grad is not None for p in scope["method"].predictors.parameters())
    exec("model.eval()" + after, scope)
    assert (tmp_path / "skimmed" / "model.safetensors").is_file()
    assert not hasattr(scope["model"], "method")


def test_the_example_method_retires_what_it_says() -> None:
    scope: dict = {}
    exec(block("Add a method"), scope)
    model = skim.compress(plain("bert", "classification"), scope["First"](positions=4, layer=1)).eval()
    with torch.no_grad():
        model(**batch_of("bert"))
    assert model.trace.execution == "packed"
    assert model.trace.counts().tolist() == [[13, 9, 6, 11], [4, 4, 4, 4], [4, 4, 4, 4]]


def test_every_family_and_method_is_named() -> None:
    page = (ROOT / "docs" / "backbones.md").read_text()
    assert [family for family in backbones.families() if f"`{family}`" not in page] == []
    assert [name for name in METHODS if f"`{name}`" not in README] == []


def test_pictures_and_files_are_there() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).is_file(), link


def test_it_is_short() -> None:
    assert len(README.splitlines()) <= 180
