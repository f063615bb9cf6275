"""The README's code runs, its commands compose, its links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import torch
import transformers
from omegaconf import OmegaConf

import skim
from skim import backbones
from tests.families import batch_of, plain
from tests.runs import composed

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SHELL = "\n".join(re.findall(r"```bash\n(.*?)```", README, re.DOTALL))
COMMANDS = sorted(set(re.findall(r"^python (train|evaluate)\.py ([^\n#]+)", SHELL, re.MULTILINE)))


def block(heading: str, language: str = "python") -> str:
    """The first code block under a heading."""
    section = README.split(f"## {heading}\n", 1)[1]
    return section.split(f"```{language}\n", 1)[1].split("```", 1)[0]


@pytest.mark.parametrize(("script", "arguments"), COMMANDS, ids=[" ".join(command)[:60] for command in COMMANDS])
def test_commands_compose(script: str, arguments: str) -> None:
    overrides = [a for a in shlex.split(arguments) if not a.startswith(("-", "hydra."))]
    overrides = [re.sub(r"=([^,\[]*),.*", r"=\1", a) if not a.startswith("text=") else "text=x" for a in overrides]
    overrides = [a.replace("<", "").replace(">", "") for a in overrides]
    assert OmegaConf.is_dict(composed(*overrides, config=script))


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


def test_every_family_is_named() -> None:
    named = README.split("## Backbones\n", 1)[1].split("\n## ", 1)[0]
    assert [family for family in backbones.families() if f"`{family}`" not in named] == []


def test_pictures_and_files_are_there() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).is_file(), link
