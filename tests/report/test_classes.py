from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

import skim
from skim.lightning.looks import evaluate
from skim.lightning.recipe import train
from skim.report.classes import MOST, class_tables
from skim.report.heatmap import load_texts
from skim.report.page import page
from tests.report.results import results
from tests.report.test_heatmap import Seen
from tests.runs import looking, small

EVIL = "<script>alert('x')</script>"
CLASSES = {
    "kind": "classes",
    "names": ["ham", EVIL],
    "positive": EVIL,
    "precision": [0.98, 0.8],
    "recall": [0.99, 2 / 3],
    "f1": [0.985, 0.7273],
    "rows": [1195, 6],
    "confusion": [[1193, 2], [1, 4]],
}
LABELS = {
    "kind": "labels",
    "names": ["sport", "food"],
    "positive": None,
    "precision": [0.5, 1.0],
    "recall": [0.25, 1.0],
    "f1": [1 / 3, 1.0],
    "rows": [4, 9],
    "confusion": [[[5, 1], [3, 1]], [[1, 0], [0, 9]]],
}


def printed(classes, width=80) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO(), color_system=None)
    console.print(class_tables(classes))
    return [" ".join(line.split()) for line in console.export_text().splitlines() if line.strip()]


def test_scores_of_each_class_and_what_was_taken_for_what():
    lines = printed({**CLASSES, "names": ["ham", "spam"], "positive": "spam"})
    assert lines[0] == "class precision recall F1 rows"
    assert lines[2:4] == ["ham 0.9800 0.9900 0.9850 1,195", "spam 0.8000 0.6667 0.7273 6"]
    assert lines[4] == "true \\ predicted ham spam"
    assert lines[6:] == ["ham 1,193 2", "spam 1 4", "f1, as one number, is that of 'spam'"]


def test_labels_have_a_matrix_each():
    lines = printed(LABELS)
    assert lines[0] == "label precision recall F1 rows right missed wrong"
    assert lines[2:4] == ["sport 0.5000 0.2500 0.3333 4 1 3 1", "food 1.0000 1.0000 1.0000 9 9 0 0"]


def test_many_classes_are_shown_without_their_matrix():
    count = MOST + 1
    names = [f"a class of a long name, number {i}" for i in range(count)]
    many = {
        "kind": "classes",
        "names": names,
        "positive": None,
        **{score: [0.5] * count for score in ("precision", "recall", "f1")},
        "rows": [2] * count,
        "confusion": [[0] * count] * count,
    }
    lines = printed(many)
    assert sum("0.5000 0.5000 0.5000 2" in line for line in lines) == count
    assert "classes.confusion" in " ".join(lines)
    few = {key: value[:MOST] if isinstance(value, list) else value for key, value in many.items()}
    few["confusion"] = [[7] * MOST] * MOST
    assert sum(line.split().count("7") for line in printed(few)) >= MOST**2, "all of the matrix, in several tables"


def test_the_page_shows_classes_and_escapes_their_names():
    whole = page(results(classes=CLASSES))
    assert "<script" not in whole
    text = Seen(whole).text
    for part in ("By class", "0.6667", "1,193", f"that of '{EVIL}'", EVIL):
        assert part in text
    assert "By class" not in page(results())


def test_a_run_and_its_evaluation_tell_of_classes(tmp_path, capsys):
    made = train(small("method=dense", "train.max_steps=2", "task.positive=negative"), tmp_path, "").results
    assert made.parameters == sum(weight.numel() for weight in skim.from_pretrained(tmp_path / "model").parameters())
    assert made.classes["names"] == ["negative", "positive"]
    assert made.classes["positive"] == "negative"
    (a, b), (c, d) = made.classes["confusion"]
    assert a + b + c + d == 96
    assert made.metrics["accuracy"] == (a + d) / 96
    assert made.classes["rows"] == [a + b, c + d]
    assert made.classes["recall"] == [a / (a + b), d / (c + d)]
    assert "By class" in (tmp_path / "report.html").read_text(encoding="utf-8")
    groups = made.by_length
    assert sum(group["rows"] for group in groups) == 96
    assert sum(group["rows"] * group["score"] for group in groups) == pytest.approx(a + d)
    assert all(group["relative_flops"] == pytest.approx(1) for group in groups)
    assert [text.layers for text in load_texts(tmp_path)] == [len(made.keep_ratio)] * 6
    capsys.readouterr()
    evaluate(looking(tmp_path))
    assert json.loads((tmp_path / "evaluation.json").read_text())["by_length"] == groups
    assert json.loads((tmp_path / "evaluation.json").read_text())["classes"] == made.classes
    assert "is that of 'negative'" in capsys.readouterr().out
