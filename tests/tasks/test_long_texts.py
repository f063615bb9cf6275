"""The built-in pairs, and the files that TR-BERT publishes its long texts in, from training to predictions."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from skim.lightning.looks import evaluate
from skim.lightning.recipe import train
from tests.runs import composed, looking
from tests.tasks.test_every_task import ONCE, backbones  # noqa: F401


def predictions(folder: Path, *overrides: str) -> list[dict[str, str]]:
    evaluate(looking(folder, "what=predict", *overrides))
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]


def test_the_built_in_pairs_with_a_method(tmp_path: Path) -> None:
    run = tmp_path / "run"
    results = train(composed("task=builtin_pairs", "method=transkimmer", *ONCE, "train.max_steps=3"), run, "").results
    assert set(results.metrics) == {"accuracy", "loss"}
    evaluate(looking(run, "max_samples=32"))
    metrics = json.loads((run / "evaluation.json").read_text())["metrics"]
    assert metrics == pytest.approx(results.metrics, abs=1e-5)
    rows = predictions(run, "split=validation", "max_samples=32")
    right = [row["prediction"] == row["label"] for row in rows]
    assert sum(right) / 32 == pytest.approx(metrics["accuracy"])


REVIEWS = [f'the soup was "{word}",\nreally' for word in ("good", "bad") for _ in range(10)]


def test_yelp_as_published_has_no_header_and_counts_stars_from_1(
    tmp_path: Path,
    backbones: dict[str, Path],  # noqa: F811
) -> None:
    file, run = tmp_path / "train.csv", tmp_path / "run"
    with file.open("w", newline="") as stream:
        csv.writer(stream, quoting=csv.QUOTE_ALL).writerows(
            [["1" if "bad" in review else "2", review] for review in REVIEWS]
        )
    files = [f"task.files.{part}={file}" for part in ("train", "validation", "test")]
    bert = ["backbone=minilm", f"backbone.hub_id={backbones['bert']}", "method=dense"]
    results = train(composed("task=text", "task.file_columns=[label,text]", *files, *bert, *ONCE), run, "").results
    assert results.samples == {"train": 20, "validation": 20}
    rows = predictions(run)
    assert [row["text"] for row in rows] == REVIEWS
    assert {row["prediction"] for row in rows} <= {"1", "2"}
    assert [row["label"] for row in rows] == ["2"] * 10 + ["1"] * 10


def test_the_other_long_texts_as_published_are_json_lines(
    tmp_path: Path,
    backbones: dict[str, Path],  # noqa: F811
) -> None:
    file, run = tmp_path / "train.jsonl", tmp_path / "run"
    rows = [{"text": review, "label": int("bad" in review)} for review in REVIEWS]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bert = ["backbone=minilm", f"backbone.hub_id={backbones['bert']}", "method=dense", "task.max_length=16"]
    results = train(composed("task=text", f"task.files.train={file}", *bert, *ONCE), run, "").results
    assert results.samples == {"train": 18, "validation": 2}
    assert results.truncated == {"train": 18, "validation": 2}
