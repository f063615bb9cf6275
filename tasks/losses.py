"""Training losses: in place of the head's own, where classes are weighed or labels smoothed; and to a teacher."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor


class Loss(ABC):
    """A loss of a model's output on a batch."""

    @abstractmethod
    def __call__(self, output: Any, batch: dict[str, Tensor]) -> Tensor:
        """Compute the mean over the batch, a scalar."""

    def weight(self, batch: dict[str, Tensor], labelled: int) -> Tensor | int:
        """Weigh a batch among those of other processes that share its step.

        Args:
            batch: of one process.
            labelled: its labels, see :meth:`tasks.base.Task.labelled`.
        """
        return labelled


@dataclass(frozen=True)
class CrossEntropy(Loss):
    """Cross entropy of a class for each sequence, token or set of options: mean over labels, weighted by class.

    Attributes:
        weights: of each class, (C,); ``None``: all alike.
        smoothing: share of a label's probability that goes to all classes alike (arXiv 1512.00567, section 7).
    """

    weights: Tensor | None = None
    smoothing: float = 0.0

    def __call__(self, output: Any, batch: dict[str, Tensor]) -> Tensor:
        logits = output.logits.flatten(0, -2).float()
        weights = None if self.weights is None else self.weights.to(logits)
        return F.cross_entropy(logits, batch["labels"].flatten(), weights, label_smoothing=self.smoothing)

    def weight(self, batch: dict[str, Tensor], labelled: int) -> Tensor | int:
        labels = batch["labels"]
        return labelled if self.weights is None else self.weights.to(labels.device)[labels[labels >= 0]].sum()


@dataclass(frozen=True)
class BinaryCrossEntropy(Loss):
    """Cross entropy of a yes or no for each label, mean over labels and sequences.

    Attributes:
        weights: of each label's positive rows, (C,); ``None``: as its others.
        smoothing: share of the way from yes and no to a half.
    """

    weights: Tensor | None = None
    smoothing: float = 0.0

    def __call__(self, output: Any, batch: dict[str, Tensor]) -> Tensor:
        logits = output.logits.float()
        wanted = batch["labels"] * (1 - self.smoothing) + self.smoothing / 2
        weights = None if self.weights is None else self.weights.to(logits)
        return F.binary_cross_entropy_with_logits(logits, wanted, pos_weight=weights)


def softened_divergence(logits: Tensor, target: Tensor, temperature: float) -> Tensor:
    """KL divergence of the softened distributions, times T squared; mean over all but the last dimension.

    Args:
        logits: ``(..., C)``.
        target: ``(..., C)``, the teacher's.
        temperature: T, see Hinton et al. 2015 (arXiv 1503.02531), section 2.
    """
    log_p, log_q = ((x.flatten(0, -2) / temperature).log_softmax(-1) for x in (logits, target))
    return F.kl_div(log_p, log_q, log_target=True, reduction="batchmean") * temperature * temperature
