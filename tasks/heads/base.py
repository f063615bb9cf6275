"""Contract of a kind of answer to a text: how it is learned, measured and shown."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from skim.errors import SkimError
from tasks.losses import Loss

BALANCED = "balanced"


class Head(ABC):
    """Kind of answer. ``names`` are those of the labels, in the order of their ids; a number has none.

    Args:
        positive: the label that ``f1`` is of; ``None``: the second of two, the mean over more.
        weights: of labels in the training loss: ``balanced``, or a number for each; ``None``: all alike.

    Raises:
        SkimError: an option that this kind does not have.
    """

    problem_type: ClassVar[str]  # its name in transformers
    known: ClassVar[tuple[str, ...]]  # the metrics that there are
    standard: ClassVar[tuple[str, ...]]  # those that are reported if none are named; the first selects

    def __init__(self, positive: str | None = None, weights: str | Sequence[float] | None = None) -> None:
        self.positive = None if positive is None else positive.strip()
        self.weights = weights if weights is None or isinstance(weights, str) else list(weights)

    @abstractmethod
    def metrics(self, names: list[str]) -> dict[str, Callable[[], Metric]]:
        """Return makers of all metrics in ``known``, by name, for these labels."""

    @abstractmethod
    def predict(self, logits: Tensor) -> Tensor:
        """Turn logits (B, C) into answers."""

    def scored(self, logits: Tensor, labels: Tensor) -> Tensor | None:
        """Score each row, (B,), 1 for one whose answer is right in all; ``None`` where none is simply right."""
        return (self.predict(logits) == labels).view(len(labels), -1).all(1).float()

    @abstractmethod
    def distance(self, logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """Measure how far logits (B, C) are from a teacher's, a scalar."""

    @abstractmethod
    def predictions(self, logits: Tensor, names: list[str]) -> list[dict[str, Any]]:
        """Turn logits (B, C) into answers to be read, one per row."""

    def named(self, label: Any, names: list[str]) -> Any:
        """Return a row's label to be read."""
        return label

    def counts(self, names: list[str]) -> Metric | None:
        """Make a fresh metric whose value :meth:`table` takes."""
        return None

    def table(self, counts: Tensor, names: list[str]) -> dict[str, Any] | None:
        """Lay out precision, recall, F1 and rows of each label, and the confusion matrix; JSON's types."""
        return None

    def rows_of(self, labels: np.ndarray, names: list[str]) -> np.ndarray | None:
        """Count the rows of each label, (C,)."""
        return None

    def strata(self, labels: np.ndarray) -> np.ndarray | None:
        """Group rows, (rows,) from 0, so that two parts get the same share of each group; ``None`` for no groups."""
        return None

    def loss(self, labels: np.ndarray, names: list[str], smoothing: float) -> Loss | None:
        """Make the training loss in place of the model's own; ``None`` where that will do.

        Args:
            labels: of all training rows.
            names: of the labels.
            smoothing: of labels, from 0 to below 1.
        """
        if smoothing:
            raise SkimError(f"train.label_smoothing={smoothing}: a number to predict is not a label. Set it to 0.")
        return None

    def _given_weights(self, names: list[str]) -> Tensor | None:
        if self.weights is None or isinstance(self.weights, str):
            return None
        if len(self.weights) != len(names):
            raise SkimError(
                f"task.class_weights={self.weights} are {len(self.weights)} numbers for {len(names)} labels: "
                f"{', '.join(names)}."
            )
        return torch.tensor(self.weights, dtype=torch.float32)
