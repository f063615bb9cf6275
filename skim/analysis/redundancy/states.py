"""States of a model's layers on the rows of a split, as the analysis reads them: arrays, mostly memory-mapped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class States:
    """States of one split: a row is a sentence, or a word of one.

    A token that a method retired has the state with which it left; ``ran`` tells the layers that computed it.

    Attributes:
        values: ``(rows, layers, width)`` float32 or float16; the first layer is the embeddings.
        labels: ``(rows,)`` int64 classes, or float64 numbers of a regression. A class that is not among the names (a
            tag that training did not see) is one that no probe can say.
        examples: ``(rows,)`` int64, the example that each row is of.
        ran: ``(rows, layers)`` bool, whether the layer computed the row.
        numbers: of the layers: 0 is the embeddings, k what comes out of encoder layer k. Layers that run for nobody
            are left out, so that numbers may be missing.
        types: ``(rows,)`` int64 for tasks whose rows are words: the same number for the same word, in every split.
    """

    values: np.ndarray
    labels: np.ndarray
    examples: np.ndarray
    ran: np.ndarray
    numbers: tuple[int, ...]
    types: np.ndarray | None = None

    @property
    def rows(self) -> int:
        """Number of rows."""
        return self.values.shape[0]

    @property
    def width(self) -> int:
        """Neurons of one layer."""
        return self.values.shape[2]

    @property
    def neurons(self) -> int:
        """Neurons of all layers."""
        return self.values.shape[1] * self.width

    @property
    def flat(self) -> np.ndarray:
        """All neurons of each row side by side, ``(rows, neurons)``; a view."""
        return self.values.reshape(self.rows, self.neurons)

    def place(self, neuron: int) -> tuple[int, int]:
        """Return the layer's number and the dimension of a neuron."""
        return self.numbers[neuron // self.width], neuron % self.width

    def blocks(self, size: int = 4096) -> Iterator[slice]:
        """Walk the rows in slices of at most ``size``."""
        return (slice(start, min(start + size, self.rows)) for start in range(0, self.rows, size))


@dataclass(frozen=True, eq=False)
class Splits:
    """States to train probes on, to choose by, and to report.

    Attributes:
        train: in the order in which unshuffled training goes through them.
        dev: that choices are made by.
        test: that is reported and nothing else.
        label_names: of the classes; none for a regression.
    """

    train: States
    dev: States
    test: States
    label_names: list[str]

    @property
    def named(self) -> dict[str, States]:
        """States by the name of their split."""
        return {"train": self.train, "dev": self.dev, "test": self.test}

    @property
    def regression(self) -> bool:
        """True if labels are numbers."""
        return not self.label_names
