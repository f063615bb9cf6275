"""Budgets of a range, and what moves a method's decisions from one to the other: a table, saved with the method."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from skim.methods.precision import Precise

ANCHORS = 11  # budgets of the table; between two of them it is a straight line
EDGE = 1e-6  # how far beyond a step, of another depth, its second anchor is
NEARLY = 0.99  # what stands for all of the FLOPs in the table: decisions that retire nothing have no finite shift


class Table(Precise):
    r"""Shift of a method's hard decisions by budget.

    At anchors :math:`b_0 < \dots < b_{K-1}`, evenly spaced over the range, stand the shifts that spend them; between
    two of them the shift is a straight line. A budget of 1 needs none: there the method decides nothing. Where the
    number of layers changes with the budget, there are anchors on both sides of each step.

    Args:
        low: smallest budget of the range, relative FLOPs.
        high: largest.

    Attributes:
        anchors: budgets at which shifts are known, rising.
        shifts: ``(K,)`` float32, one for each anchor; 0 until they are calibrated.
        weights: ``(K,)`` float32 of the anchors in the budget that is set: the sum is 1, two at most are above 0.
    """

    shifts: Tensor
    chosen: Tensor
    weights: Tensor

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.low, self.high = low, high
        self.register_buffer("chosen", torch.zeros((), dtype=torch.float32))
        self._now = (low + high) / 2
        self.lay(())
        self.register_load_state_dict_post_hook(as_saved)

    @property
    def now(self) -> float:
        """The budget that is set, a number of the host."""
        return self._now

    def lay(self, steps: Iterable[float]) -> None:
        """Lay the anchors anew, with one before and one behind each step; their shifts are then to be found."""
        even = [self.low + k * (self.high - self.low) / (ANCHORS - 1) for k in range(ANCHORS)]
        both = [edge for step in steps if self.low < step < self.high for edge in (step, step + EDGE)]
        most = max(NEARLY, self.low)  # a range may begin above that
        self.anchors = sorted({min(anchor, most) for anchor in (*even, *both)})
        self.register_buffer("shifts", torch.zeros(len(self.anchors), dtype=torch.float32))
        self.register_buffer("weights", torch.zeros(len(self.anchors), dtype=torch.float32), persistent=False)
        self.choose(self.now)

    def restate(self, share: float) -> None:
        """Count budgets in FLOPs of a part, which has this share of them all; the shifts stay."""
        now, shifts = self.now, self.shifts
        self.low, self.high = self.low / share, min(self.high / share, 1.0)
        self.lay(())
        self.shifts.copy_(shifts)
        self.choose(now / share)

    def choose(self, budget: float) -> None:
        """Set a budget; one beyond the range by no more than float32 rounds is at its end."""
        self._now = budget = min(max(budget, self.low), self.high)
        self.chosen.fill_(budget)
        self.weights.copy_(hats(budget, self.anchors))

    def shift(self) -> Tensor:
        """Shift at the budget that is set, a scalar."""
        return self.shifts @ self.weights


def as_saved(table: Table, report: object) -> None:
    """Set the budget that a loaded state says; a function of the module, or no model could be pickled."""
    table.choose(table.chosen.item())


def hats(value: float, anchors: list[float]) -> Tensor:
    """Weights by which a value stands between two anchors, ``(K,)`` float32; beyond the last, it is at the last."""
    weights = torch.zeros(len(anchors), dtype=torch.float32)
    above = next((k for k, anchor in enumerate(anchors) if value <= anchor), len(anchors) - 1)
    if above == 0 or value >= anchors[above]:
        weights[above] = 1.0
        return weights
    share = (value - anchors[above - 1]) / (anchors[above] - anchors[above - 1])
    weights[above - 1], weights[above] = 1 - share, share
    return weights
