"""Any number of labels for each text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import MultilabelConfusionMatrix, MultilabelExactMatch, MultilabelF1Score

from skim.errors import SkimError
from tasks.heads.base import BALANCED, Head
from tasks.losses import BinaryCrossEntropy, Loss, softened_divergence
from tasks.metrics.scores import by_class


class MultiLabel(Head):
    """Any number of labels, by binary cross entropy; a label is predicted where its probability is above a half."""

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
        """Mark each label that is predicted by 1, (B, C)."""
        return (logits > 0).long()

    def distance(self, logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
        """Divergence of each label's yes and no, mean over labels."""
        found, wanted = (torch.stack((one, torch.zeros_like(one)), -1) for one in (logits, taught))
        return softened_divergence(found, wanted, temperature)

    def predictions(self, logits: Tensor, names: list[str]) -> list[dict[str, Any]]:
        """Return ``prediction`` (the names of the labels), and ``probabilities`` of all by name."""
        rows, found = logits.float().sigmoid().tolist(), self.predict(logits).tolist()
        return [
            {"prediction": self.named(labels, names), "probabilities": dict(zip(names, row, strict=True))}
            for labels, row in zip(found, rows, strict=True)
        ]

    def named(self, label: Any, names: list[str]) -> Any:
        return [name for name, given in zip(names, label, strict=True) if given]

    def counts(self, names: list[str]) -> Metric:
        return MultilabelConfusionMatrix(len(names))

    def table(self, counts: Tensor, names: list[str]) -> dict[str, Any]:
        hits, labels, predicted = counts[:, 1, 1], counts[:, 1].sum(-1), counts[:, :, 1].sum(-1)
        shares = by_class(hits, labels, predicted)
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
        """Weigh the positive rows of labels; balanced: other rows / positive rows."""
        weights = self._given_weights(names)
        if self.weights == BALANCED:
            rows = self.rows_of(labels, names)
            balanced = np.where(rows > 0, (len(labels) - rows) / np.maximum(rows, 1), 1.0)
            weights = torch.from_numpy(balanced).float()
        return None if weights is None and not smoothing else BinaryCrossEntropy(weights, smoothing)
