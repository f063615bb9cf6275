"""Layers that a redundancy report suggests: which are read, and what is said where there are none."""

import json
from pathlib import Path

import pytest

from skim.errors import SkimError
from skim.methods.suggestion import Suggestion, suggested

REPORT = {
    "version": 1,
    "backbone": "tiny",
    "layers": {
        "total": 3,
        "width": 32,
        "not_run": [],
        "selected": [{"delta": 0.5, "layers": 3}, {"delta": 1.0, "layers": 2}, {"delta": 5, "layers": 1}],
    },
}


def written(path: Path, content: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def test_a_run_or_a_file_of_it_or_the_report_alone(tmp_path: Path) -> None:
    results = written(tmp_path / "run" / "results.json", {"method": "dense", "redundancy": REPORT})
    alone = written(tmp_path / "redundancy.json", REPORT)
    for place in (tmp_path / "run", str(results), alone):
        assert suggested(place, 1.0) == Suggestion((0, 1), layers=3, width=32, backbone="tiny")
    assert suggested(alone, 5.0).kept == (0,)


def test_layers_that_did_not_run_there_are_not_suggested(tmp_path: Path) -> None:
    layers = {**REPORT["layers"], "not_run": [2]}  # counted from the embeddings
    file = written(tmp_path / "report.json", {**REPORT, "layers": layers})
    assert suggested(file, 0.5).kept == (0, 2)
    assert suggested(file, 1.0).kept == (0,)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({"method": "dense"}, r"holds no redundancy report; python evaluate.py what=redundancy ckpt="),
        ({"method": "dense", "redundancy": None}, "holds no redundancy report"),
        ([], "holds no redundancy report"),
        ({"layers": {"total": 3}}, "is damaged, or no report of this version: 'selected'"),
        ({**REPORT, "layers": {**REPORT["layers"], "selected": 4}}, "is damaged, or no report"),
    ],
)
def test_what_is_no_report(content: object, said: str, tmp_path: Path) -> None:
    with pytest.raises(SkimError, match=said):
        suggested(written(tmp_path / "results.json", content), 1.0)


def test_where_nothing_lies_and_what_cannot_be_read(tmp_path: Path) -> None:
    for place in (tmp_path, tmp_path / "results.json"):
        with pytest.raises(SkimError, match=r"No redundancy report is at .*results.json: No such.*what=redundancy"):
            suggested(place, 1.0)
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(SkimError, match="cannot be read as a redundancy report"):
        suggested(tmp_path, 1.0)


def test_a_delta_that_was_not_looked_at_and_one_that_allows_nothing(tmp_path: Path) -> None:
    file = written(tmp_path / "report.json", REPORT)
    with pytest.raises(SkimError, match=r"no selection of layers for delta=2; it has one for 0.5, 1, 5\."):
        suggested(file, 2.0)
    with pytest.raises(SkimError, match=r"none of the 3 layers redundant at delta=0.5.*\n.*delta \(it has 0.5, 1, 5"):
        suggested(file, 0.5)
