"""Order of neurons by the mass of a probe's weights, in closed form (Dalvi et al., EMNLP 2020, section 6.2).

A class spreads its mass, the sum of its absolute weights, over the neurons. The published search raises a share p from
0 to 1 in ``stride`` steps, and at each takes from every class the largest weights until they hold p of its mass: who is
new enters the order. A neuron therefore enters at the first step whose mass exceeds that of the larger weights before
it, in the class where this comes first, and no step has to be searched.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from skim.errors import SkimError


@dataclass(frozen=True)
class Ranking:
    """Neurons from the most to the least important.

    Attributes:
        order: (neurons,) columns of the weights. Within a step those come first before which least mass of a class is
            spent, and of these the one with the largest share of it. Columns whose weights are all 0 have no mass and
            never enter in the published code; here they stand last, by rising index.
        cutoffs: (steps,) number of neurons that have entered at the end of each step; the last one counts all that
            have mass.
    """

    order: np.ndarray
    cutoffs: np.ndarray

    def chunks(self) -> list[np.ndarray]:
        """List the neurons that enter at each step at which any does; those without mass are in none."""
        ends = np.unique(self.cutoffs)
        return np.split(self.order[: ends[-1]], ends[:-1])

    def granular(self, size: int) -> np.ndarray:
        """Sizes of the first sets of the order that hold at least 0, ``size``, 2 ``size`` ... neurons."""
        wanted = np.arange(0, len(self.order) + 1, size)
        ends = np.searchsorted(self.cutoffs, wanted[wanted <= self.cutoffs[-1]])
        return np.unique(self.cutoffs[ends])


def rank(weights: np.ndarray, stride: int = 1000) -> Ranking:
    """Order neurons by the weights of a linear probe.

    Args:
        weights: (classes, neurons), one row for a regression.
        stride: steps between no mass and all of it; the published scripts search 1,000.

    Raises:
        SkimError: weights that are NaN or infinite, or a stride below 1.
    """
    if stride < 1:
        raise SkimError(f"A ranking needs at least 1 step; stride={stride}.")
    mass, order, before = _spent(weights, descending=True)
    total = mass.sum(1, keepdims=True)  # in the weights' own precision, as published: borderline neurons depend on it
    steps = total * (np.arange(stride + 1) / stride).astype(mass.dtype)
    entered = np.full(mass.shape[1], stride + 1)
    spent = np.full(mass.shape[1], np.inf)
    for c, ranks in enumerate(order):
        step = np.searchsorted(steps[c], before[c], side="right")
        step[0] = 0  # the largest weight of a class enters with no mass at all
        entered[ranks] = np.minimum(entered[ranks], step)
        spent[ranks] = np.minimum(spent[ranks], before[c] / (total[c] or 1))
    share = (mass / np.where(total, total, 1)).max(0)
    entered[share == 0] = stride + 1
    # lexsort's last key is its first
    ranking = np.lexsort((-share, spent, entered))
    return Ranking(ranking, np.searchsorted(entered[ranking], np.arange(stride + 1), side="right"))


def top_neurons(weights: np.ndarray, share: float) -> list[np.ndarray]:
    """List for each class its largest weights, falling, that hold this share of its mass; at least one.

    Args:
        weights: (classes, neurons).
        share: of mass, from 0 to 1.
    """
    return _prefixes(weights, share, descending=True)


def bottom_neurons(weights: np.ndarray, share: float) -> list[np.ndarray]:
    """List for each class its smallest weights, rising, that hold this share of its mass; at least one."""
    return _prefixes(weights, share, descending=False)


def neurons_above(weights: np.ndarray, fraction: float) -> np.ndarray:
    """List the neurons with a weight above the largest of its class divided by ``fraction``, by rising index."""
    mass = np.abs(weights)
    return np.flatnonzero((mass > mass.max(1, keepdims=True) / fraction).any(0))


def _prefixes(weights: np.ndarray, share: float, descending: bool) -> list[np.ndarray]:
    mass, order, before = _spent(weights, descending)
    counts = (before < mass.sum(1, keepdims=True) * mass.dtype.type(share)).sum(1)
    return [ranks[: max(1, count)] for ranks, count in zip(order, counts, strict=True)]


def _spent(weights: np.ndarray, descending: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Absolute weights; columns of each class by size; mass of those before each: (classes, neurons) all three."""
    mass = np.abs(np.asarray(weights))
    if not np.isfinite(mass).all():
        raise SkimError("Weights of the probe are NaN or infinite: it diverged. Lower its learning rate.")
    order = np.argsort(-mass if descending else mass, axis=1, kind="stable")
    before = np.zeros_like(mass)
    np.cumsum(np.take_along_axis(mass, order, 1)[:, :-1], axis=1, out=before[:, 1:])
    return mass, order, before
