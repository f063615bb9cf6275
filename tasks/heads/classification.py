"""One class for each text: sentiment, topics, entailment."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from skim.errors import unknown
from tasks.heads.base import BALANCED, Head
from tasks.losses import CrossEntropy, Loss, softened_divergence
from tasks.metrics.scores import OfClasses, accuracy, by_class, confusion, f1, matthews


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
        """Choose class ids, (B,)."""
        return logits.argmax(-1)

    def distance(self, logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
        return softened_divergence(logits, taught, temperature)

    def predictions(self, logits: Tensor, names: list[str]) -> list[dict[str, Any]]:
        """Return ``prediction`` (the class's name), its ``probability``, and ``probabilities`` of all (softmax)."""
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
        hits, labels, predicted = counts.diagonal(), counts.sum(1), counts.sum(0)
        return {
            "kind": "classes",
            "names": names,
            "positive": None if positive is None else names[positive],
            **by_class(hits, labels, predicted),
            "confusion": counts.long().tolist(),
        }

    def rows_of(self, labels: np.ndarray, names: list[str]) -> np.ndarray:
        return np.bincount(labels, minlength=len(names))

    def strata(self, labels: np.ndarray) -> np.ndarray:
        return labels

    def loss(self, labels: np.ndarray, names: list[str], smoothing: float) -> Loss | None:
        """Weigh classes; balanced: rows / (classes * rows of the class), King and Zeng, 2001."""
        weights = self._given_weights(names)
        if self.weights == BALANCED:
            rows = self.rows_of(labels, names)
            balanced = len(labels) / (len(names) * np.maximum(rows, 1)) * (rows > 0)
            weights = torch.from_numpy(balanced).float()
        return None if weights is None and not smoothing else CrossEntropy(weights, smoothing)
