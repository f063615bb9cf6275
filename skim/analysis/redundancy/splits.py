"""Rows that probes are trained on, chosen by and tested on: the splits of the published experiments.

Sentences: the training split in 90 and 10 percent, shuffled by NumPy's old generator with a fixed seed; the evaluation
split is the test set. Words: the task's own evaluation and test splits, and of the training split the first sentences
up to 150,000 words; a task that has no test split is cut as one of sentences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skim.errors import SkimError
from tasks.base import Task

SEED = 7361  # of the published split
SHARE = 0.9  # of the training rows that train
WORDS = 150_000  # that train, at most
LEAST = 10  # examples of a split: fewer say nothing, and a tenth of fewer is none
COUNTED = 512  # examples whose labels are read at a time


@dataclass(frozen=True, eq=False)
class Split:
    """Rows of one split.

    Attributes:
        name: train, dev or test.
        part: the task's part that they are rows of: train, validation or test.
        examples: ``(E,)`` the numbers of its tokenised rows, in the order of the split.
        labels: ``(rows,)`` their labels, example by example; those of words without a label, or cut off, left out.
        words: ``(rows,)`` the word of its example that each row is, or ``None`` where rows are whole examples.
        types: ``(rows,)`` of words: the same number for the same word, see :class:`States`; or ``None``.
        counts: ``(E,)`` rows of each example.
    """

    name: str
    part: str
    examples: np.ndarray
    labels: np.ndarray
    words: np.ndarray | None
    types: np.ndarray | None
    counts: np.ndarray

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.labels)

    @property
    def starts(self) -> np.ndarray:
        """First row of each example, ``(E,)``."""
        return np.cumsum(self.counts) - self.counts


def splits_of(task: Task, max_rows: int | None = None) -> list[Split]:
    """Choose the rows of train, dev and test.

    Args:
        task: with its tokenizer; its parts are loaded here.
        max_rows: training rows at most; the first ones, after the shuffle of a cut.

    Raises:
        SkimError: a task without one label per sequence or word, and splits of too few rows, or of one class.
    """
    task.setup("fit")
    words = task.words_of(task.tokenised("train")[0][[0]]) is not None
    own = words and _has_test(task)
    if own:
        task.setup("test")
        train = np.arange(len(task.tokenised("train")[1]))
        found = [_read(task, name, part, None) for name, part in (("dev", "validation"), ("test", "test"))]
    else:
        train, dev = cut(len(task.tokenised("train")[1]))
        found = [_read(task, "dev", "train", dev), _read(task, "test", "validation", None)]
    limit = min(WORDS, max_rows or WORDS) if words else max_rows
    splits = [_read(task, "train", "train", train, limit), *found]
    for split in splits:
        check(split, task)
    return splits


def cut(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut row numbers in two as published: shuffled, the first 90 percent to train on, the rest to choose by."""
    order = np.arange(rows)
    np.random.RandomState(SEED).shuffle(order)  # what np.random.seed and np.random.shuffle do, and nothing shared
    return order[: int(SHARE * rows)], order[int(SHARE * rows) :]


def _has_test(task: Task) -> bool:
    """Tell whether the task has a test split of its own, other than the one that it is evaluated on."""
    if task.hub_id is None or any(task.files.values()):
        return task.files.get("test") is not None
    return task.split_of("test") != task.split_of("validation")


def _read(task: Task, name: str, part: str, examples: np.ndarray | None, limit: int | None = None) -> Split:
    """Read the labels of some rows of a part, all of them if none are named, up to a limit of labels."""
    rows, lengths = task.tokenised(part)
    examples = np.arange(len(lengths)) if examples is None else examples
    labels, words, types, counts = [], [], [], []
    seen = 0
    for start in range(0, len(examples), COUNTED):
        if limit is not None and seen >= limit:
            break
        batch = rows[examples[start : start + COUNTED].tolist()]
        found, of_word = task.labels_of(batch), task.words_of(batch)
        if found is None or batch["input_ids"].dim() > 2:  # several texts to an example, which choices are
            raise SkimError(
                f"task={task.name} has not one label, or one number, per text or word that a probe could learn"
                f" ({part}).\nwhat=redundancy is for classification, regression and tagging."
            )
        if of_word is None:
            labels.append(found.numpy())
            counts.append(np.ones(len(found), dtype=np.int64))
        else:
            place, number, kind = _words(batch["input_ids"].numpy(), of_word.numpy(), found.numpy())
            labels.append(found.numpy()[place, number])
            words.append(number)
            types.append(kind)
            counts.append(np.bincount(place, minlength=len(found)))
        seen += len(labels[-1])
    every = np.concatenate(counts)
    whole = len(every) if limit is None else int(np.searchsorted(np.cumsum(every), limit, side="right"))
    kept = int(every[:whole].sum())
    if whole == 0:
        raise SkimError(f"task={task.name}, {part}: redundancy.max_rows={limit} is less than the first sentence has.")
    return Split(
        name,
        part,
        examples[:whole],
        np.concatenate(labels)[:kept],
        np.concatenate(words)[:kept] if words else None,
        np.concatenate(types)[:kept] if types else None,
        every[:whole],
    )


def _words(ids: np.ndarray, of_word: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the labelled words of a batch that have tokens: example, number and type, each ``(rows,)``."""
    example, position = np.nonzero(of_word >= 0)
    word = of_word[example, position]
    first = np.r_[True, (np.diff(example) != 0) | (np.diff(word) != 0)][: len(word)]
    begins = np.flatnonzero(first)
    tokens = ids[example, position].astype(np.uint64)
    # a polynomial of the word's token ids, modulo 2^64: order counts, and equal words are equal in every split
    place = (np.arange(len(word)) - np.repeat(begins, np.diff(np.r_[begins, len(word)]))).astype(np.uint64)
    powers = np.power(np.uint64(0x9E3779B97F4A7C15), place + np.uint64(1))
    types = np.add.reduceat((tokens + np.uint64(1)) * powers, begins) if len(begins) else tokens
    example, word = example[first], word[first]
    tagged = labels[example, word] >= 0
    return example[tagged], word[tagged], types.view(np.int64)[tagged]


def check(split: Split, task: Task) -> None:
    """Refuse a split that no probe could be trained on, chosen by or tested on.

    Raises:
        SkimError: too few rows, one class, labels that are not numbers, or training labels that have no name.
    """
    where = f"task={task.name}, {split.name} (of {split.part})"
    if len(split.examples) < LEAST and split.rows < LEAST:
        raise SkimError(
            f"{where}: {split.rows} rows are too few to say which layers and neurons it needs; at least {LEAST}.\n"
            "Raise max_samples, redundancy.max_rows or task.max_train_samples, or give more data."
        )
    if np.issubdtype(split.labels.dtype, np.floating) and not np.isfinite(split.labels).all():
        raise SkimError(
            f"{where}: row {int(np.flatnonzero(~np.isfinite(split.labels))[0])} has a label that is not a number."
        )
    if split.name == "train" and len(np.unique(split.labels)) < 2:
        raise SkimError(
            f"{where}: all {split.rows} rows have the same label, {task.named(split.labels[0].item())}.\n"
            "Nothing is there to learn: probes need two classes, or numbers that differ."
        )
