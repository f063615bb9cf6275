"""Splits of the published experiments, of every task of the paper: which rows train, choose and test."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from skim.analysis.redundancy import splits
from skim.analysis.redundancy.extraction import Extraction
from skim.analysis.redundancy.splits import Split, check, cut, splits_of
from skim.errors import SkimError
from skim.lightning.build import Parts, build
from tests.runs import composed
from tests.tasks.test_every_task import backbones, overrides_of  # noqa: F401

SENTENCES = ("sst2", "mrpc", "qqp", "stsb", "mnli", "qnli", "rte")
EXTRACTED = ("mrpc", "stsb", "conll2000")  # the others differ from these in labels and columns alone
WORDS = ("conll2000", "conll2000_pos", "ud", "ud_xpos", "conll2003", "sem", "ccg")


def built(task: str, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *more: str) -> Parts:
    monkeypatch.setenv("SKIM_MIRROR", str(tmp_path / "mirror"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(splits, "LEAST", 1)  # the samples are small
    given = overrides_of(task, folders, tmp_path)
    return build(composed(f"task={task}", "method=dense", *given, *more), purpose="validate")


@pytest.mark.parametrize("task", [*SENTENCES, *WORDS])
def test_the_states_of_every_task_of_the_paper(
    task: str,
    backbones: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = built(task, backbones, tmp_path, monkeypatch)
    parts.model.eval()
    found = {split.name: split for split in splits_of(parts.task)}
    train, dev, test = found["train"], found["dev"], found["test"]
    if task in SENTENCES:
        assert (train.part, dev.part, test.part) == ("train", "train", "validation")
        assert sorted([*train.examples, *dev.examples]) == list(range(len(parts.task.tokenised("train")[1])))
        assert train.words is None
    else:
        assert (train.part, dev.part, test.part) == ("train", "validation", "test")
        assert train.types is not None
        assert len(train.types) == train.rows == train.counts.sum() > len(train.examples)
    assert train.labels.dtype == (np.float32 if task == "stsb" else np.int64)
    for split in found.values() if task in EXTRACTED else ():
        states, _ = Extraction(parts.model, parts.task).run(split, tmp_path / split.name)
        assert states.values.shape == (split.rows, 3, 32)
        assert np.array_equal(states.labels, split.labels)
        assert states.examples.tolist() == np.repeat(range(len(split.counts)), split.counts).tolist()


def test_rows_are_cut_as_published() -> None:
    train, dev = cut(10)
    np.random.seed(7361)
    order = np.arange(10)
    np.random.shuffle(order)
    assert ([*train], [*dev]) == ([*order[:9]], [*order[9:]])
    assert sorted([*train, *dev]) == list(range(10))


def test_words_are_those_that_the_task_labels_and_their_types_are_the_same_in_all_splits(
    backbones: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for part, rows in {
        "train": [("ada sang ada", "A B A"), ("lo", "B")],
        "validation": [("sang", "B"), ("lo ada", "B _")],
        "test": [("ada dasa", "A C"), ("x", "A")],
    }.items():
        lines = ["\n".join(map("\t".join, zip(words.split(), tags.split(), strict=True))) for words, tags in rows]
        (tmp_path / f"{part}.conll").write_text("\n\n".join(lines) + "\n")
    files = [f"task.files.{part}={tmp_path / part}.conll" for part in ("train", "validation", "test")]
    more = ["task.untagged=[_]", "task.on_unknown_tag=wrong", *files]
    monkeypatch.setattr("tests.analysis.redundancy.test_splits.overrides_of", lambda *_: own(backbones))
    parts = built("tagging", backbones, tmp_path, monkeypatch, *more)
    train, dev, test = splits_of(parts.task)
    assert parts.task.label_names == ["A", "B"]
    assert (train.labels.tolist(), train.words.tolist(), train.counts.tolist()) == ([0, 1, 0, 1], [0, 1, 2, 0], [3, 1])
    assert (dev.labels.tolist(), dev.words.tolist()) == ([1, 1], [0, 0])  # one has no tag
    assert test.labels.tolist() == [0, 2, 0]  # a tag that training has not seen is one of none
    ada, sang, _, lo = train.types.tolist()
    assert train.types[2] == ada
    assert dev.types.tolist() == [sang, lo]
    assert test.types[0] == ada
    assert test.types[1] not in (ada, sang, lo)  # the same letters in another order
    fewer = splits_of(parts.task, max_rows=3)[0]
    assert (fewer.rows, fewer.examples.tolist()) == (3, [0])  # whole sentences
    with pytest.raises(SkimError, match="max_rows=2 is less than the first sentence has"):
        splits_of(parts.task, max_rows=2)


def own(folders: dict[str, Path]) -> list[str]:
    return ["backbone=minilm", f"backbone.hub_id={folders['bert']}"]


def split_of(labels: Any, name: str = "train") -> Split:
    labels = np.asarray(labels)
    return Split(name, "train", np.arange(len(labels)), labels, None, None, np.ones(len(labels), dtype=np.int64))


@pytest.mark.parametrize(
    ("split", "said"),
    [
        (split_of([0, 1] * 4), "mine, train .of train.: 8 rows are too few"),
        (split_of([1] * 20), "all 20 rows have the same label, yes"),
        (split_of([0.5] * 20), "all 20 rows have the same label, 0.5"),
        (split_of([0.5, np.nan] * 10), "row 1 has a label that is not a number"),
        (split_of([1] * 4, "dev"), "mine, dev .of train.: 4 rows are too few"),
    ],
)
def test_splits_that_say_nothing_are_refused(split: Split, said: str) -> None:
    task: Any = SimpleNamespace(
        name="mine", named=lambda label: label if isinstance(label, float) else ["no", "yes"][label]
    )
    with pytest.raises(SkimError, match=said) as error:
        check(split, task)
    assert len(str(error.value).splitlines()) <= 2


def test_a_dev_split_of_one_class_is_taken() -> None:
    task: Any = SimpleNamespace(name="mine")
    check(split_of([1] * 20, "dev"), task)


def test_tasks_without_a_label_per_text_or_word_are_refused(
    backbones: dict[str, Path],  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = built("squad", backbones, tmp_path, monkeypatch)
    with pytest.raises(SkimError, match="task=squad has not one label, or one number, per text or word"):
        splits_of(parts.task)
