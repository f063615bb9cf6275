"""Kinds of answer to a text: a class, several labels, or a number. How each is learned, measured and shown."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MultilabelConfusionMatrix, MultilabelExactMatch, MultilabelF1Score

from skim.errors import SkimError, unknown
from tasks.base import softened_divergence
from tasks.losses import BinaryCrossEntropy, CrossEntropy, Loss
from tasks.metrics.scores import OfClasses, OfNumbers, accuracy, by_class, confusion, f1, matthews, pearson, spearman

BALANCED = "balanced"


class Head(ABC):
    """A kind of answer. ``names`` are those of the labels, in the order of their ids; a number has none.

    Args:
        positive: the label that ``f1`` is of; ``None``: the second of two, the mean over more.
        weights: of labels in the training loss: ``balanced``, or a number for each; ``None``: all alike.

    Raises:
        SkimError: what this kind has no use for.
    """

    problem_type: ClassVar[str]  # what transformers calls it
    known: ClassVar[tuple[str, ...]]  # the metrics that there are
    standard: ClassVar[tuple[str, ...]]  # those that are reported if none are named; the first selects

    def __init__(self, positive: str | None = None, weights: str | Sequence[float] | None = None) -> None:
        self.positive = None if positive is None else str(positive).strip()  # a number is a name by its text
        self.weights = weights if weights is None or isinstance(weights, str) else list(weights)
        if isinstance(weights, str) and weights != BALANCED:
            raise unknown("task.class_weights", weights, (BALANCED,))
        for weight in self.weights or [] if not isinstance(self.weights, str) else []:
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not number or not math.isfinite(weight) or weight < 0:
                raise SkimError(f"task.class_weights={self.weights}: {weight!r} is no number from 0.")

    @abstractmethod
    def metrics(self, names: list[str]) -> dict[str, Callable[[], Metric]]:
        """Makers of all metrics in ``known``, by name, for these labels."""

    @abstractmethod
    def predict(self, logits: Tensor) -> Tensor:
        """Turn logits (B, C) into answers."""

    @abstractmethod
    def distance(self, logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """From logits (B, C) to a teacher's, a scalar."""

    @abstractmethod
    def predictions(self, logits: Tensor, names: list[str]) -> list[dict[str, Any]]:
        """Turn logits (B, C) into answers for people, one per row."""

    def named(self, label: Any, names: list[str]) -> Any:
        """A row's label for people."""
        return label

    def counts(self, names: list[str]) -> Metric | None:
        """A fresh metric whose value :meth:`table` takes."""
        return None

    def table(self, counts: Tensor, names: list[str]) -> dict[str, Any] | None:
        """Precision, recall, F1 and rows of each label, and what was taken for what; JSON's types."""
        return None

    def rows_of(self, labels: np.ndarray, names: list[str]) -> np.ndarray | None:
        """Count the rows of each label, (C,)."""
        return None

    def strata(self, labels: np.ndarray) -> np.ndarray | None:
        """Groups of rows, (rows,), from 0, that two parts shall have the same shares of."""
        return None

    def loss(self, labels: np.ndarray, names: list[str], smoothing: float) -> Loss | None:
        """The training loss in place of the model's own; ``None`` where that will do.

        Args:
            labels: of all training rows.
            names: of the labels.
            smoothing: of labels, from 0 to below 1.
        """
        if smoothing:
            raise SkimError(f"train.label_smoothing={smoothing}: a number to predict is no label. Set it to 0.")
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


class Regression(Head):
    """A number, by mean squared error."""

    problem_type = "regression"
    known = ("pearson", "spearman")
    standard = known[:1]

    def __init__(self, positive: str | None = None, weights: str | Sequence[float] | None = None) -> None:
        for option, value in (("positive", positive), ("class_weights", weights)):
            if value is not None:
                raise SkimError(f"task.{option}={value}: task.head=regression has no classes. Set it to null.")
        super().__init__()

    def metrics(self, names: list[str]) -> dict[str, Callable[[], Metric]]:
        return {"pearson": partial(OfNumbers, pearson), "spearman": partial(OfNumbers, spearman)}

    def predict(self, logits: Tensor) -> Tensor:
        """Numbers, (B,)."""
        return logits.squeeze(-1).float()

    def distance(self, logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
        return F.mse_loss(logits, taught)

    def predictions(self, logits: Tensor, names: list[str]) -> list[dict[str, Any]]:
        """``prediction``: the number."""
        return [{"prediction": number} for number in self.predict(logits).tolist()]


class Classification(Head):
    """One class, by cross entropy."""

    problem_type = "single_label_classification"
    known = ("accuracy", "f1", "matthews")
    standard = known[:1]

    def metrics(self, names: list[str]) -> dict[str, Callable[[], Metric]]:
        scores: dict[str, Callable[[Tensor], Tensor]] = {"accuracy": accuracy, "matthews": matthews}
        scores["f1"] = partial(f1, positive=self._positive(names))
        return {name: partial(OfClasses, len(names), score) for name, score in scores.items()}

    def _positive(self, names: list[str]) -> int | None:
        if self.positive is None:
            return 1 if len(names) == 2 else None
        if self.positive not in names:
            raise unknown("label in task.positive", self.positive, names)
        return names.index(self.positive)

    def predict(self, logits: Tensor) -> Tensor:
        """Class ids, (B,)."""
        return logits.argmax(-1)

    def distance(self, logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
        return softened_divergence(logits, taught, temperature)

    def predictions(self, logits: Tensor, names: list[str]) -> list[dict[str, Any]]:
        """``prediction``: the class's name; its ``probability``, and ``probabilities`` of all by name (softmax)."""
        rows = logits.float().softmax(-1).tolist()
        return [
            {
                "prediction": names[label],
                "probability": row[label],
                "probabilities": dict(zip(names, row, strict=True)),
            }
            for label, row in zip(self.predict(logits).tolist(), rows, strict=True)
        ]

    def named(self, label: Any, names: list[str]) -> Any:
        return names[label]

    def counts(self, names: list[str]) -> Metric:
        return OfClasses(len(names), confusion)

    def table(self, counts: Tensor, names: list[str]) -> dict[str, Any]:
        positive = self._positive(names)
        hits, labels, said = counts.diagonal(), counts.sum(1), counts.sum(0)
        return {
            "kind": "classes",
            "names": names,
            "positive": None if positive is None else names[positive],
            **by_class(hits, labels, said),
            "confusion": counts.long().tolist(),
        }

    def rows_of(self, labels: np.ndarray, names: list[str]) -> np.ndarray:
        return np.bincount(labels, minlength=len(names))

    def strata(self, labels: np.ndarray) -> np.ndarray:
        return labels

    def loss(self, labels: np.ndarray, names: list[str], smoothing: float) -> Loss | None:
        """Balanced weights: rows / (classes * rows of the class), King and Zeng, 2001."""
        weights = self._given_weights(names)
        if self.weights == BALANCED:
            rows = self.rows_of(labels, names)
            balanced = len(labels) / (len(names) * np.maximum(rows, 1)) * (rows > 0)
            weights = torch.from_numpy(balanced).float()
        return None if weights is None and not smoothing else CrossEntropy(weights, smoothing)


class MultiLabel(Head):
    """Any number of labels, by binary cross entropy; a label is said where its probability is above a half."""

    problem_type = "multi_label_classification"
    known = ("micro_f1", "macro_f1", "subset_accuracy")
    standard = known

    def __init__(self, positive: str | None = None, weights: str | Sequence[float] | None = None) -> None:
        if positive is not None:
            raise SkimError(f"task.positive={positive}: with task.head=multi_label, every label is. Set it to null.")
        super().__init__(weights=weights)

    def metrics(self, names: list[str]) -> dict[str, Callable[[], Metric]]:
        count = len(names)
        return {
            "micro_f1": partial(MultilabelF1Score, count, average="micro"),
            "macro_f1": partial(MultilabelF1Score, count, average="macro"),
            "subset_accuracy": partial(MultilabelExactMatch, count),
        }

    def predict(self, logits: Tensor) -> Tensor:
        """1 for each label that is said, (B, C)."""
        return (logits > 0).long()

    def distance(self, logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """Divergence of each label's yes and no, mean over labels."""
        found, wanted = (torch.stack((one, torch.zeros_like(one)), -1) for one in (logits, taught))
        return softened_divergence(found, wanted, temperature)

    def predictions(self, logits: Tensor, names: list[str]) -> list[dict[str, Any]]:
        """``prediction``: the names of the labels that are said; ``probabilities`` of all by name."""
        rows, said = logits.float().sigmoid().tolist(), self.predict(logits).tolist()
        return [
            {"prediction": self.named(labels, names), "probabilities": dict(zip(names, row, strict=True))}
            for labels, row in zip(said, rows, strict=True)
        ]

    def named(self, label: Any, names: list[str]) -> Any:
        return [name for name, given in zip(names, label, strict=True) if given]

    def counts(self, names: list[str]) -> Metric:
        return MultilabelConfusionMatrix(len(names))

    def table(self, counts: Tensor, names: list[str]) -> dict[str, Any]:
        hits, labels, said = counts[:, 1, 1], counts[:, 1].sum(-1), counts[:, :, 1].sum(-1)
        shares = by_class(hits, labels, said)
        return {
            "kind": "labels",
            "names": names,
            "positive": None,
            **shares,
            "confusion": counts.long().tolist(),
        }

    def rows_of(self, labels: np.ndarray, names: list[str]) -> np.ndarray:
        return labels.sum(0).astype(np.int64)

    def strata(self, labels: np.ndarray) -> np.ndarray:
        """Group rows by their rarest label; those without any are a group of their own."""
        rows = self.rows_of(labels, [])
        rarest = np.where(labels > 0, rows, np.inf).argmin(1)
        return np.where(labels.any(1), rarest, labels.shape[1])

    def loss(self, labels: np.ndarray, names: list[str], smoothing: float) -> Loss | None:
        """Balanced weights of a label's positive rows: other rows / positive rows."""
        weights = self._given_weights(names)
        if self.weights == BALANCED:
            rows = self.rows_of(labels, names)
            balanced = np.where(rows > 0, (len(labels) - rows) / np.maximum(rows, 1), 1.0)
            weights = torch.from_numpy(balanced).float()
        return None if weights is None and not smoothing else BinaryCrossEntropy(weights, smoothing)


HEADS: dict[str, type[Head]] = {
    "classification": Classification,
    "multi_label": MultiLabel,
    "regression": Regression,
}
