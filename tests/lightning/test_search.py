"""Searching lengths of layers of a trained run: the front, the model that follows it, and a search that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

import skim
from skim.calibration import spend
from skim.compression import standing_in
from skim.errors import SkimError
from skim.lightning.looks import evaluate, load, search
from skim.lightning.recipe import train
from tests.runs import looking, small

QUICK = ("what=search", "max_samples=24", "search.samples=16", "search.points=4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of length drop for a range of budgets."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    train(small("method=length_drop", "method.target=[0.4,1.0]", "train.max_steps=2", "train.calibrate=8"), folder, "")
    return folder


def found_in(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "search" / "search.json").read_text())


class Rating:
    """Counts what is rated, and interrupts at some point."""

    def __init__(self, until: int = 1000) -> None:
        self.asked: list[Any] = []
        self.until, self.call = until, search.Scorer.__call__

    def into(self, monkeypatch: pytest.MonkeyPatch) -> Rating:
        def rate(scorer: Any, lengths: Any) -> Any:
            if len(self.asked) == self.until:
                raise KeyboardInterrupt
            self.asked.append(lengths)
            return self.call(scorer, lengths)

        monkeypatch.setattr(search.Scorer, "__call__", rate)
        return self


def test_an_interrupted_search_goes_on_and_a_model_follows_what_it_found(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (folder / "model" / "method.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        Rating(until=20).into(patch)
        with pytest.raises(KeyboardInterrupt):
            evaluate(looking(folder, *QUICK, "search.evaluations=26"))
    assert len(found_in(folder)["ratings"]) == 20
    with monkeypatch.context() as patch:
        rating = Rating().into(patch)
        evaluate(looking(folder, *QUICK, "search.evaluations=26"))
    assert len(rating.asked) == 6
    out = capsys.readouterr().out
    assert "20 ratings of an earlier search" in out
    found = found_in(folder)
    assert (found["rated"], len(found["ratings"])) == (26, 26)
    assert "training rows, without their labels" in found["rows"]
    assert 1 < len(found["points"]) <= 4
    for point in found["points"]:
        assert f"{point['relative_flops']:.3f}" in out
        assert f"{point['metric']:.4f}" in out
    assert found["points"][-1]["score"] == pytest.approx(0, abs=1e-6)  # all tokens: its own answers
    assert (folder / "search" / "search.png").read_bytes().startswith(b"\x89PNG")
    ElementTree.parse(folder / "search" / "search.svg")
    # the run is as it was, and the model that was found is a run of its own that takes any budget
    assert (folder / "model" / "method.safetensors").read_bytes() == before
    model = skim.from_pretrained(folder / "search" / "model", budget=0.6)
    method, inputs = model.method, load(looking(folder / "search", "max_samples=24")).parts.task.sample_batches(32, 24)
    assert spend(model, inputs) == pytest.approx(0.6, abs=0.05)
    for point in found["points"]:
        at = method.lengths(torch.tensor(sum(point["lengths"]) / len(point["lengths"]) - method.middle))
        assert at.tolist() == pytest.approx(point["lengths"], abs=1e-5)


def test_labels_are_read_where_that_is_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And ratings of other rows, or by other means, are not mixed with those."""
    evaluate(looking(folder, *QUICK, "search.evaluations=17", "search.by=metric", "search.seed=1"))
    found = found_in(folder)
    assert "searched anew" in capsys.readouterr().out or len(found["ratings"]) == 17
    assert found["rows"] == "16 labelled rows of the evaluation split"
    assert all(0 <= one["score"] <= 1 for one in found["ratings"])
    assert found["points"][0]["relative_flops"] < 0.6


def test_what_has_no_lengths_cannot_be_searched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = load(looking(folder, *QUICK))
    with standing_in(there.parts.model, skim.Dense()), monkeypatch.context() as patch:
        patch.setattr(search, "load", lambda cfg: there)
        with pytest.raises(SkimError, match=r"what=search looks for lengths of layers, and method=dense has none"):
            evaluate(looking(folder, *QUICK))
    (folder / "search").mkdir(exist_ok=True)
    (folder / "search" / "search.json").write_text("{")
    with pytest.raises(SkimError, match=r"search.json cannot be read as an earlier search.*\nDelete it"):
        evaluate(looking(folder, *QUICK))
