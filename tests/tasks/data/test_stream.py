"""Streams: the same blocks whether read at once or in two goes, each document once per pass and on one rank."""

from __future__ import annotations

import gzip
import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor

from skim.errors import SkimError
from skim.lightning.recipe import train
from tasks.data import stream
from tasks.data.masking import IGNORED
from tasks.data.stream import Place
from tasks.pretraining import MaskedLanguage
from tests.runs import composed

WORDS = "a good bad film soup the was not very and it is".split()
TEXTS = [" ".join(WORDS[(i * 7 + j * j) % 12] for j in range(3 + i % 9)) for i in range(90)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK", 10)


def make(folder: Path, tokenizer: Any, kind: str = "jsonl", texts: list[Any] = TEXTS, **options: Any) -> MaskedLanguage:
    """A task that streams a file of these texts, ready for its loaders."""
    file = folder / f"rows.{kind}"
    rows = pd.DataFrame({"text": texts})
    match kind:
        case "jsonl":
            file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        case "jsonl.gz":
            file.write_bytes(gzip.compress("".join(json.dumps({"text": text}) + "\n" for text in texts).encode()))
        case "txt":
            file.write_text("\n".join(texts) + "\n")
        case "csv":
            rows.to_csv(file, index=False)
        case "parquet":
            rows.to_parquet(file)
    (folder / "validation.txt").write_text("a good film\n")
    settings = {"batch_size": 4, "max_length": 16, "shuffle_buffer": 20, "streaming": True}
    files = {"train": str(file), "validation": str(folder / "validation.txt")}
    task = MaskedLanguage(name="own", **{**settings, "files": files, **options})
    task.setup_tokenizer(tokenizer)
    task.setup("fit")
    return task


def first(task: MaskedLanguage, count: int) -> list[dict[str, Tensor]]:
    return list(itertools.islice(task.train_dataloader(), count))


def same(one: list[dict[str, Tensor]], other: list[dict[str, Tensor]]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a[key], b[key]) for a, b in zip(one, other, strict=True) for key in a
    )


def documents(batches: list[dict[str, Tensor]], rows: int | None = None) -> Counter[tuple[int, ...]]:
    """The rows as they were before they were masked."""
    found: Counter[tuple[int, ...]] = Counter()
    for batch in batches:
        ids = torch.where(batch["labels"] == IGNORED, batch["input_ids"], batch["labels"])
        found.update(tuple(i[real.bool()].tolist()) for i, real in zip(ids, batch["attention_mask"], strict=True))
    return found


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "txt", "csv", "parquet"])
def test_a_pass_is_every_document_once_in_another_order_each_time(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    task = make(tmp_path, tokenizer, kind, pack=False, batch_size=9)
    twenty = first(task, 20)  # two passes
    expected = Counter(tuple(tokenizer(text).input_ids) for text in TEXTS)
    assert documents(twenty[:10]) == documents(twenty[10:]) == expected
    assert list(documents(twenty[:10])) != list(documents(twenty[10:]))
    assert same(twenty, first(make(tmp_path, tokenizer, kind, pack=False, batch_size=9), 20))
    assert not same(twenty[:1], first(make(tmp_path, tokenizer, kind, pack=False, batch_size=9, seed=2), 1))


def test_masks_differ_from_pass_to_pass(tmp_path: Path, tokenizer: Any) -> None:
    text = " ".join(WORDS)
    batches = first(make(tmp_path, tokenizer, texts=[text] * 12, pack=False, batch_size=12, mask_rate=0.4), 2)
    assert not torch.equal(batches[0]["labels"], batches[1]["labels"])
    assert len({tuple(row.tolist()) for row in batches[0]["labels"]}) > 8, "and from row to row"


def test_blocks_are_full_and_their_numbers_are_their_own(tmp_path: Path, tokenizer: Any) -> None:
    batches = first(make(tmp_path, tokenizer), 8)
    assert all(batch["attention_mask"].all() and batch["input_ids"].shape == (4, 16) for batch in batches)
    rows = torch.cat([batch["row"] for batch in batches]).tolist()
    assert len(set(rows)) == len(rows)


@pytest.mark.parametrize("done", [1, 10, 11, *(pytest.param(n, marks=pytest.mark.slow) for n in (3, 9, 25))])
@pytest.mark.parametrize("pack", [True, False])
def test_it_goes_on_where_it_stood(tmp_path: Path, tokenizer: Any, done: int, pack: bool) -> None:
    """In the middle of a chunk, behind one, and in a later pass."""
    task = make(tmp_path, tokenizer, pack=pack)
    whole = first(task, 40)
    before = make(tmp_path, tokenizer, pack=pack)
    first(before, done)
    assert before._stream is not None
    place = before._stream.places[done]
    after = make(tmp_path, tokenizer, pack=pack)
    after.load_state_dict({"places": [list(place)]})
    after.resume_at(0, done)
    assert same(first(after, 40 - done), whole[done:])
    if done == 25:
        assert place.turn > 0


def test_ranks_take_disjoint_parts(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"{' a' * (i // 8)} soup{' good' * (i % 8)} film".strip() for i in range(64)]
    parts = []
    for rank in range(2):
        loader = make(tmp_path, tokenizer, texts=texts, pack=False, batch_size=8, max_length=32).train_dataloader()
        loader.dataset.rank, loader.dataset.ranks = rank, 2
        parts.append(list(itertools.islice(loader, 4)))
    assert sum((documents(part) for part in parts), Counter()) == Counter(tuple(tokenizer(t).input_ids) for t in texts)
    rows = [row for part in parts for batch in part for row in batch["row"].tolist()]
    assert len(set(rows)) == len(rows), "or ranks would share masks"


def test_as_many_processes_as_before(tmp_path: Path, tokenizer: Any) -> None:
    task = make(tmp_path, tokenizer)
    task.load_state_dict({"places": [list(Place()), list(Place())]})
    task.resume_at(0, 3)
    with pytest.raises(SkimError, match="the checkpoint has places in the stream of 2 processes, and now there are 1"):
        task.train_dataloader()


def test_a_pattern_names_several_files(tmp_path: Path, tokenizer: Any) -> None:
    for i in range(3):
        (tmp_path / f"part{i}.txt").write_text("\n".join(TEXTS[i * 30 : (i + 1) * 30]) + "\n")
    files = {"train": str(tmp_path / "part*.txt"), "validation": str(tmp_path / "part0.txt")}
    batches = first(make(tmp_path, tokenizer, files=files, pack=False, batch_size=9), 10)
    assert documents(batches) == Counter(tuple(tokenizer(text).input_ids) for text in TEXTS)


@pytest.mark.parametrize(
    ("texts", "options", "says"),
    [
        (TEXTS, {"holdout": 0.1}, "task.holdout=0.1 needs all training rows at once"),
        (TEXTS, {"max_train_samples": 5}, "task.max_train_samples=5 needs all"),
        (TEXTS, {"shuffle_buffer": 0}, "shuffle_buffer=0"),
        (TEXTS, {"text_column": "words"}, "has no text column 'words'. Its columns: text"),
        (["a good", "film"], {}, "less text than one block of 16 tokens"),
        (["a good film", None], {"pack": False}, "a row holds None, not a text"),
        (TEXTS, {"files": {"train": "none*.jsonl"}}, r"none\*.jsonl is not there"),
    ],
)
def test_what_is_refused(tmp_path: Path, tokenizer: Any, texts: list[Any], options: dict[str, Any], says: str) -> None:
    if "files" in options:
        (tmp_path / "v.txt").write_text("a film\n")
        options["files"]["validation"] = str(tmp_path / "v.txt")
    if "text_column" in options:
        (tmp_path / "v.csv").write_text("words\na film\n")
        (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
        options["files"] = {"train": str(tmp_path / "rows.jsonl"), "validation": str(tmp_path / "v.csv")}
    with pytest.raises(SkimError, match=says):
        first(make(tmp_path, tokenizer, texts=texts, **options), 1)


def test_bad_rows_are_skipped_where_that_is_asked_for(tmp_path: Path, tokenizer: Any) -> None:
    task = make(tmp_path, tokenizer, texts=["a good film", None, "soup"], pack=False, batch_size=2, on_bad_row="skip")
    assert documents(first(task, 1)) == Counter(tuple(tokenizer(text).input_ids) for text in ("a good film", "soup"))


def test_a_chunk_of_bad_rows_alone(tmp_path: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Bad rows may be all that a pass has left for its last chunk; they are told once."""
    bad: list[Any] = [None] * 30
    some = make(tmp_path, tokenizer, texts=["a good film", *bad, "soup"], pack=False, on_bad_row="skip", batch_size=2)
    batches = first(some, 3)
    assert sum(documents(batches).values()) == 6
    assert caplog.text.count("rows without a text are skipped") == 1


@pytest.mark.parametrize("options", [[], ["train.max_steps=3"], ["train.eval_every=2"]])
def test_steps_and_evaluations_have_to_be_given(tmp_path: Path, options: list[str]) -> None:
    cfg = composed("task=builtin_text", "task.streaming=true", "method=dense", "hardware=cpu", *options)
    with pytest.raises(SkimError, match=r"Set train.max_steps=<optimizer steps> and train.eval_every="):
        train(cfg, tmp_path / "run", "")
