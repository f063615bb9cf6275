"""Scores of probes by name: those of the tasks, in float64, and the means of two that the published code knows."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from skim.errors import unknown
from tasks.metrics import scores

OF_NUMBERS = ("pearson", "spearman", "pearson_and_spearman")
METRICS = ("accuracy", "f1", "accuracy_and_f1", "matthews", *OF_NUMBERS)


def metric(name: str, outputs: int) -> Callable[[np.ndarray, np.ndarray], float]:
    """Look up a score of predicted and right labels, (rows,) each; places among the classes, or numbers.

    Args:
        name: one of ``METRICS``; ``f1`` of two classes is that of the second, of more the mean over those that occur.
        outputs: classes; 1 for numbers.

    Raises:
        SkimError: there is no such score, or it is not for labels of this kind.
    """
    if name not in METRICS:
        raise unknown("metric of probes", name, METRICS)
    if (name in OF_NUMBERS) != (outputs == 1):
        fitting = OF_NUMBERS if outputs == 1 else sorted(set(METRICS) - set(OF_NUMBERS))
        raise unknown(f"metric of {'numbers' if outputs == 1 else 'classes'}", name, fitting)
    if "_and_" in name:
        parts = [metric(part, outputs) for part in name.split("_and_")]
        return lambda predicted, right: sum(part(predicted, right) for part in parts) / len(parts)
    if outputs == 1:
        correlation = {"pearson": scores.pearson, "spearman": scores.spearman}[name]
        return lambda predicted, right: float(correlation(*(torch.as_tensor(x).double() for x in (predicted, right))))
    of_counts = {
        "accuracy": scores.accuracy,
        "f1": partial(scores.f1, positive=1 if outputs == 2 else None),
        "matthews": scores.matthews,
    }[name]

    def score(predicted: np.ndarray, right: np.ndarray) -> float:
        counts = np.bincount(right * outputs + predicted, minlength=outputs**2).reshape(outputs, outputs)
        return float(of_counts(torch.from_numpy(counts).double()))

    return score
