"""Ridge regression on standardised neurons, to its optimum: what probes are trained by when nothing else is asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from skim.analysis.redundancy.losses import losses
from skim.analysis.redundancy.moments import moments
from skim.analysis.redundancy.rows import Rows

if TYPE_CHECKING:
    from skim.analysis.redundancy.probes import Bank

MEMORY = 8  # steps that a direction is made from (Liu and Nocedal, 1989)
SUFFICIENT = 1e-4  # share of the promised decrease that a step must bring (Armijo)
SHORTEST = 1e-3  # of a full step: a probe that needs a shorter one is as low as float32 can tell
TINY = 1e-30


@dataclass(frozen=True)
class Ridge:
    """Probe of standardised columns: mean loss + decay / 2 * ||W||_F^2, over all rows at once, by L-BFGS.

    It has one optimum, so there is no seed and no order of rows. All probes step together, each with a direction and a
    step length of its own; libraries minimise one after another, and read the data again for each.

    Attributes:
        spread: standard deviation of an output before any row is seen. The decay follows from it, ``columns / (rows *
            spread^2)``, as in Bayesian ridge regression: a probe of ten columns and one of ten thousand start alike.
        passes: over the rows, at most.
        tolerance: a probe is done when no number of its gradient is larger.
    """

    spread: float = 2.0
    passes: int = 25
    tolerance: float = 1e-4

    def fit(self, bank: Bank, rows: Rows) -> None:
        """Set the weights of a bank, in place."""
        found = moments(rows.values, bank.neurons)
        bank.shift = torch.from_numpy(found.mean).float()
        # 0 for constant columns, and for those whose spread is too small for float32 to divide by
        bank.scale = torch.from_numpy(found.std).reciprocal().float().nan_to_num_(0, 0, 0)
        right = bank.target.encode(rows.labels)
        decay = torch.tensor([self.decay(probe.stop - probe.start, len(rows)) for probe in bank.probes])

        def value(flat: Tensor) -> tuple[Tensor, Tensor]:
            """Objective of each probe, (P,) float64, and the gradient of their sum."""
            gradient = torch.zeros_like(flat)
            total = torch.zeros(len(bank.probes), dtype=torch.float64)
            for places, x in bank.read(rows):
                lost, errors = losses(bank.outputs(x, flat), right[places])
                total += lost / len(rows)
                bank.add_gradient(x, errors.div_(len(rows)), gradient)
            decayed = flat * decay[bank.owner]
            bank.parts(decayed)[1].zero_()
            return total + bank.sums(decayed * flat) / 2, gradient.add_(decayed)

        bank.flat = minimize(value, bank, self.passes, self.tolerance)

    def decay(self, columns: int, rows: int) -> float:
        """Compute the weight of half the squared norm, beside the mean loss."""
        return columns / (rows * self.spread**2)


def minimize(value: Callable[[Tensor], tuple[Tensor, Tensor]], bank: Bank, passes: int, tolerance: float) -> Tensor:
    """Minimise the objectives of all probes side by side, from 0.

    A probe whose trial brought too little stays where it is and shortens its step; that pass leaves nothing in its
    memory, while the others go on.

    Args:
        value: objective of each probe, (P,) float64, and the gradient of their sum, at parameters as ``bank.flat``.
        bank: knows the probe of each parameter.
        passes: calls of ``value``, at most.
        tolerance: largest number of a gradient with which a probe is done.
    """
    here = torch.zeros_like(bank.flat)
    level, slope = value(here)
    memory: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=MEMORY)
    length = torch.ones_like(level)
    curve = bank.sums(slope.square()).sqrt().clamp_min(TINY)  # of the objective, so that the first step has length 1
    for _ in range(passes - 1):
        active = (bank.largest(slope) > tolerance) & (length > SHORTEST)
        if not active.any():
            break
        step = _direction(slope, memory, curve, bank).mul_(length.float()[bank.owner])
        step.masked_fill_(~active[bank.owner], 0)  # where a probe is done, its curvature is rounding
        promised = bank.sums(step * slope)
        there, gradient = value(here + step)
        better = active & (there <= level + SUFFICIENT * promised)
        moved = better[bank.owner]
        step, change = (part.masked_fill_(~moved, 0) for part in (step, gradient - slope))
        product, squares = bank.sums(step * change), bank.sums(change.square())
        curved = product > TINY
        memory.append((step, change, torch.where(curved, 1 / product, 0)))
        curve = torch.where(curved, squares / product, curve)
        here, slope = here + step, torch.where(moved, gradient, slope)
        # where the parabola through both levels and the slope is lowest
        shorter = (promised / (2 * (promised - there + level))).clamp(0.1, 0.5)
        length = torch.where(better, 1.0, length * shorter)
        level = torch.where(better, there, level)
    return here


def _direction(slope: Tensor, memory: Iterable[tuple[Tensor, Tensor, Tensor]], curve: Tensor, bank: Bank) -> Tensor:
    """Multiply the negative gradient by the inverse curvature that the memory has of each probe (two loops)."""
    pairs = list(memory)
    direction = -slope
    weights = []
    for step, change, inverse in reversed(pairs):
        weights.append((inverse * bank.sums(step * direction)).float())
        direction.sub_(change * weights[-1][bank.owner])
    direction.div_(curve.float()[bank.owner])
    for (step, change, inverse), weight in zip(pairs, reversed(weights), strict=True):
        direction.add_(step * (weight - (inverse * bank.sums(change * direction)).float())[bank.owner])
    return direction
