"""Tokenising is done once: for later setups, for later processes, and for ranks that start together."""

from __future__ import annotations

import logging
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest

from tasks.text import Text
from tests.tasks.test_text import make, write

ROWS = {"text": ["a good film", "the soup", "bad film", "it"] * 300, "label": [1, 0, 0, 1] * 300}


class Counted(Text):
    """Counts what it tokenises, and takes its time: the other rank comes to the lock meanwhile."""

    tokenised = 0

    def encode(self, rows: dict[str, list]) -> dict[str, list]:
        self.tokenised += len(rows["text"])
        time.sleep(0.3)
        return super().encode(rows)


def rank(folder: Path, tokenizer: Any, both: Any, out: Any) -> None:
    """What a process does that is told of nothing but the file: it tells how much it tokenised, and what it maps."""
    task = Counted(name="text", files={"train": str(folder / "rows.csv"), "validation": str(folder / "rows.csv")})
    task.setup_tokenizer(tokenizer)
    both.wait(60)
    task.setup("fit")
    files = [Path(entry["filename"]) for rows in task._rows.values() for entry in rows.cache_files]
    found = {(file.name, file.stat().st_ino, file.stat().st_mtime_ns) for file in files}
    out.put((task.tokenised, sorted(found), len(task._rows["train"])))


def test_ranks_that_start_together_tokenise_once_and_later_processes_never(tmp_path: Path, tokenizer: Any) -> None:
    write(tmp_path / "rows.csv", ROWS)
    context = multiprocessing.get_context("fork")  # with this test's cache folder

    def together(count: int) -> list[Any]:
        both, out = context.Barrier(count), context.Queue()
        processes = [context.Process(target=rank, args=(tmp_path, tokenizer, both, out)) for _ in range(count)]
        for process in processes:
            process.start()
        found = [out.get(timeout=100) for _ in processes]
        for process in processes:
            process.join(20)
        return found

    one, two = together(2)
    # training and validation are the same rows: one table for both
    assert one[0] + two[0] == len(ROWS["text"])
    assert one[1] == two[1]
    assert len(one[1]) == 1
    assert together(1) == [(0, one[1], len(ROWS["text"]))]


def test_a_second_setup_calls_no_tokenizer(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        make(tmp_path, tokenizer, ROWS, length_max=60)
    assert "train: 1,200 rows tokenised in " in caplog.text

    def never(*arguments: object, **options: object) -> None:
        raise AssertionError("called")

    caplog.clear()
    # nothing of the texts becomes a Python object either, and no file is read again
    monkeypatch.setattr(Text, "encode", never)
    monkeypatch.setattr(Text, "count", never)
    monkeypatch.setattr("tasks.data.files.parse", never)
    with caplog.at_level(logging.INFO):
        task = make(tmp_path, tokenizer, ROWS, length_max=60)
    assert task.report["from_cache"] == {"train": True, "validation": True}
    assert "train: 1,200 rows from the cache in " in caplog.text
    task.setup("fit")
    assert len(caplog.messages) == 2  # a line for each part, and none for a setup that has nothing to do


def test_other_ranks_say_nothing(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tasks.data.parts.rank_zero_only.rank", 1)
    with caplog.at_level(logging.INFO):
        make(tmp_path, tokenizer, ROWS)
    assert "rows" not in caplog.text


def test_tables_are_mapped_and_columns_stay_in_arrow(
    tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(tmp_path, tokenizer, ROWS)
    asked: list[int] = []
    import tasks.data.columns

    usual = tasks.data.columns.rows_of
    monkeypatch.setattr(tasks.data.columns, "rows_of", lambda *arguments: asked.append(1) or usual(*arguments))
    task = make(tmp_path, tokenizer, ROWS)
    assert not asked  # rows are looked at one by one only where a column is known to hold something wrong
    assert all(rows.cache_files for rows in task._rows.values())
    assert task._raw["train"].data.nbytes > 0
    assert task._raw["train"].cache_files
