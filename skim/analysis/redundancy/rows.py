"""Rows of neurons with their labels, read in blocks: the data of every probe."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from skim.errors import SkimError

READ = 256  # rows of a block where nothing else says: 10 MB of 9,984 neurons, which a cache holds


@dataclass(frozen=True)
class Rows:
    """One split: the activations of all neurons, row by row, and a label for each row.

    Attributes:
        values: (rows, neurons), an array or a memmap; float32 or float16, contiguous by row.
        labels: (rows,), integers for classes, floats for numbers.
    """

    values: np.ndarray
    labels: np.ndarray

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.labels.shape != self.values.shape[:1]:
            raise SkimError(
                f"Probes need a matrix (rows, neurons) and a label for each row, not {self.values.shape} and "
                f"{self.labels.shape}."
            )
        if not len(self.labels):
            raise SkimError("A split has no rows: probes need some to train on and some to be measured on.")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def neurons(self) -> int:
        """Count all neurons of the network, those that a probe leaves out too."""
        return self.values.shape[1]

    def blocks(self, neurons: np.ndarray | None = None, size: int = READ) -> Iterator[tuple[slice, Tensor]]:
        """Yield places and activations, float32 ``(rows of the block, neurons)``, in the order of the rows.

        Args:
            neurons: global ids in the order of the columns; ``None``: all.
            size: rows of a block.
        """
        columns = _columns(neurons)
        for start in range(0, len(self), size):
            rows = slice(start, min(start + size, len(self)))
            block = self.values[rows]
            if isinstance(columns, slice):
                block = block[:, columns]
            else:
                # take keeps rows contiguous; block[:, columns] is laid out by column, and products run 8 x slower
                block = np.take(block, columns, axis=1)
            yield rows, torch.from_numpy(np.array(block, dtype=np.float32, order="C"))


@dataclass(frozen=True)
class Target:
    """Classes that a probe tells apart, or one number.

    Attributes:
        classes: (C,) sorted; ``None``: a number is predicted.
    """

    classes: np.ndarray | None

    @property
    def outputs(self) -> int:
        """Count the outputs of a probe: a class each, or one number."""
        return 1 if self.classes is None else len(self.classes)

    def encode(self, labels: np.ndarray) -> Tensor:
        """Convert labels, (rows,), to places among the classes, int64, or to numbers, float32."""
        if self.classes is None:
            return torch.from_numpy(labels.astype(np.float32))
        places = np.searchsorted(self.classes, labels).clip(max=len(self.classes) - 1)
        if (strange := self.classes[places] != labels).any():
            raise SkimError(
                f"Label {labels[strange][0]} is none of the {len(self.classes)} classes: the target of a probe is made "
                "from the labels of all its splits."
            )
        return torch.from_numpy(places)


def target_of(train: np.ndarray, *others: np.ndarray) -> Target:
    """Find what probes learn: the union of the classes of all splits, sorted, or a number if labels are floats.

    A class that the training rows have lost keeps its output. Nothing teaches it, so it is hardly ever predicted, and
    rows of that class count as wrong.

    Args:
        train: labels of the training rows, (rows,).
        others: those of the other splits.

    Raises:
        SkimError: labels of two kinds, numbers that are not finite, or training rows that all have the same label.
    """
    splits = [np.asarray(labels) for labels in (train, *others)]
    kinds = {labels.dtype.kind for labels in splits}
    numbers = kinds <= {"f"}
    if not numbers and not kinds <= {"i", "u"}:
        raise SkimError("Labels of probes are integers (classes) in all splits or floats (numbers) in all of them.")
    if numbers and not all(np.isfinite(labels).all() for labels in splits):
        raise SkimError("Some labels are not finite numbers: leave those rows out.")
    if not len(splits[0]) or (splits[0] == splits[0][0]).all():
        raise SkimError(
            f"All {len(splits[0])} training rows have the same label: there is nothing that a probe could learn.\n"
            "Use more rows, or a task with at least two labels."
        )
    return Target(None if numbers else np.unique(np.concatenate(splits)))


def _columns(neurons: np.ndarray | Sequence[int] | None) -> np.ndarray | slice:
    """Neighbours as a slice, which costs no copy of single columns."""
    if neurons is None:
        return slice(None)
    neurons = np.asarray(neurons, dtype=np.int64)
    start, stop = (int(neurons[0]), int(neurons[0]) + len(neurons)) if len(neurons) else (0, 0)
    return slice(start, stop) if np.array_equal(neurons, np.arange(start, stop)) else neurons
