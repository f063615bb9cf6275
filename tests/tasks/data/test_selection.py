"""Rows that are held out keep the classes' shares, whatever those are, and what few rows say little about is told."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from tasks.data.selection import held_out
from tasks.text import Text


@settings(max_examples=200, deadline=None)
@given(some.lists(some.integers(0, 60), min_size=1, max_size=8), some.floats(0.01, 0.99), some.integers(0, 99))
def test_every_class_keeps_its_share(sizes: list[int], share: float, seed: int) -> None:
    classes = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    kept = held_out(len(classes), share, np.random.default_rng(0), classes)
    assert len(set(kept.tolist())) == len(kept)
    given_by = np.bincount(classes[kept], minlength=len(sizes))
    for size, count in zip(sizes, given_by.tolist(), strict=True):
        if size < 2:
            assert count == 0, "what has a single row is trained on"
        else:
            assert 1 <= count < size
            assert abs(count - share * size) <= 1
    assert np.array_equal(kept, held_out(len(classes), share, np.random.default_rng(0), classes))


def test_rows_of_no_class_are_held_out_by_chance() -> None:
    kept = held_out(200, 0.1, np.random.default_rng(0))
    assert len({*kept.tolist()}) == 20
    assert kept.max() < 200


def unbalanced(folder: Path, **settings: Any) -> Text:
    """200 rows, of which five are spam."""
    rows = [{"text": f"a film {i}", "label": "spam" if i in (3, 50, 77, 120, 199) else "ham"} for i in range(200)]
    file = folder / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return Text(name="text", **{"files": {"train": str(file)}, "holdout": 0.1, **settings})


def labels_of(task: Text) -> list[int]:
    return [label for batch in task.val_dataloader() for label in batch["labels"].tolist()]


def test_a_held_out_tenth_has_its_share_of_five_positives(
    tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    numbers = []
    for seed in (1, 2):
        task = unbalanced(tmp_path, seed=seed)
        task.setup_tokenizer(tokenizer)
        with caplog.at_level(logging.WARNING):
            task.setup("fit")
        assert sum(labels_of(task)) == 1
        assert task.report["rows"] == {"train": 180, "validation": 20}
        numbers.append(task.numbers["validation"].tolist())
        assert not {*numbers[-1]} & {*task.numbers["train"].tolist()}
    assert numbers[0] == numbers[1], "the same rows for every seed"
    note = "validation: its 20 rows hold 1 of 'spam': scores on so few rows say little."
    assert task.notes("validation") == [note]
    assert note in caplog.text
    assert task.notes("train") == []


def test_classes_without_rows_are_told_of(tmp_path: Path, tokenizer: Any) -> None:
    task = unbalanced(tmp_path, label_names=["ham", "spam", "other"])
    task.setup_tokenizer(tokenizer)
    task.setup("fit")
    assert task.notes("train") == ["train: its 180 rows hold 0 of 'other': nothing is learned of them."]
    assert "hold 1 of 'spam', 0 of 'other':" in task.notes("validation")[0]
