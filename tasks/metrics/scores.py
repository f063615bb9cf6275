"""Metrics of classes and of numbers, computed in float64 from all predictions, as scikit-learn and SciPy do.

torchmetrics' own compute in float32, and its Spearman adds an epsilon; scores that are to be compared with those of
other programs differ by more than the rounding of a table then. States are summed, or gathered, over ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


def accuracy(counts: Tensor) -> Tensor:
    """Share of the diagonal of a confusion matrix, ``(C, C)`` float64, by label and by prediction."""
    return counts.trace() / counts.sum()


def confusion(counts: Tensor) -> Tensor:
    """Confusion matrix itself."""
    return counts


def f1(counts: Tensor, positive: int | None = None) -> Tensor:
    """F1 of a class (of two, GLUE takes the second), or without one the mean over those that occur."""
    hits, seen = counts.diagonal(), counts.sum(0) + counts.sum(1)
    scores = torch.where(seen > 0, 2 * hits / seen.clamp_min(1), 0)
    return scores[seen > 0].mean() if positive is None else scores[positive]


def by_class(hits: Tensor, labels: Tensor, predicted: Tensor) -> dict[str, list[Any]]:
    """Compute ``precision``, ``recall`` and ``f1`` of each class, 0 where they are not defined, and its ``rows``.

    Args:
        hits: rows that have the class and are predicted to, (C,).
        labels: rows that have it, (C,).
        predicted: rows that are predicted to, (C,).
    """
    hits, labels, predicted = (count.double() for count in (hits, labels, predicted))
    return {
        "precision": (hits / predicted.clamp_min(1)).tolist(),
        "recall": (hits / labels.clamp_min(1)).tolist(),
        "f1": (2 * hits / (labels + predicted).clamp_min(1)).tolist(),
        "rows": labels.long().tolist(),
    }


def matthews(counts: Tensor) -> Tensor:
    """Correlation of labels and predictions (Gorodkin, 2004); 0 if one of them is always the same."""
    total, labels, predictions = counts.sum(), counts.sum(1), counts.sum(0)
    covariance = counts.trace() * total - labels @ predictions
    spread = (total**2 - labels @ labels) * (total**2 - predictions @ predictions)
    return torch.where(spread > 0, covariance / spread.clamp_min(1).sqrt(), 0)


def pearson(found: Tensor, wanted: Tensor) -> Tensor:
    """Linear correlation of two ``(B,)`` float64; 0 if one of them is always the same, nan if one is not finite."""
    if (found == found[0]).all() or (wanted == wanted[0]).all():
        return found[0] * 0
    found, wanted = found - found.mean(), wanted - wanted.mean()
    return ((found @ wanted) / (found.norm() * wanted.norm())).clamp(-1, 1)


def spearman(found: Tensor, wanted: Tensor) -> Tensor:
    """Linear correlation of the ranks of two ``(B,)`` float64; 0 and nan as in :func:`pearson`."""
    if not (found.isfinite().all() and wanted.isfinite().all()):
        return found.new_tensor(float("nan"))
    return pearson(ranks(found), ranks(wanted))


def ranks(values: Tensor) -> Tensor:
    """Places in the order of size, from 1; equal values share the mean of theirs."""
    _, which, counts = values.unique(return_inverse=True, return_counts=True)
    return (counts.cumsum(0) - (counts - 1) / 2)[which].double()


class OfClasses(Metric):
    """Score of the confusion matrix.

    Args:
        labels: C.
        score: from the matrix, ``(C, C)`` float64, by label and by prediction.
    """

    full_state_update = False
    higher_is_better = True
    counts: Tensor

    def __init__(self, labels: int, score: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.labels, self.score = labels, score
        self.add_state("counts", torch.zeros(labels, labels, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, found: Tensor, wanted: Tensor) -> None:
        """Add predicted and right classes, (B,) each."""
        pairs = wanted.long() * self.labels + found
        self.counts += torch.bincount(pairs, minlength=self.labels**2).view(self.labels, self.labels)

    def compute(self) -> Tensor:
        """Compute the score, a scalar in float64 on the CPU: not every device has that."""
        return self.score(self.counts.cpu().double())


class OfNumbers(Metric):
    """Correlation of predicted and right numbers.

    Args:
        score: from both, ``(B,)`` float64.
    """

    full_state_update = False
    higher_is_better = True
    found: list[Tensor]
    wanted: list[Tensor]

    def __init__(self, score: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.score = score
        self.add_state("found", [], dist_reduce_fx="cat")
        self.add_state("wanted", [], dist_reduce_fx="cat")

    def update(self, found: Tensor, wanted: Tensor) -> None:
        """Add predicted and right numbers, (B,) each."""
        self.found.append(found)
        self.wanted.append(wanted)

    def compute(self) -> Tensor:
        """Compute the correlation, a scalar in float64 on the CPU."""
        found, wanted = (dim_zero_cat(state).cpu().double() for state in (self.found, self.wanted))
        return self.score(found, wanted)
