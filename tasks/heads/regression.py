"""A number for each text: similarity, stars, an age."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from skim.errors import SkimError
from tasks.heads.base import Head
from tasks.metrics.scores import OfNumbers, pearson, spearman


class Regression(Head):
    """Number to predict, by mean squared error."""

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
        """Return numbers, (B,)."""
        return logits.squeeze(-1).float()

    def scored(self, logits: Tensor, labels: Tensor) -> None:
        return None

    def distance(self, logits: Tensor, taught: Tensor, temperature: float) -> Tensor:
        return F.mse_loss(logits, taught)

    def predictions(self, logits: Tensor, names: list[str]) -> list[dict[str, Any]]:
        """Return ``prediction``: the number."""
        return [{"prediction": number} for number in self.predict(logits).tolist()]
