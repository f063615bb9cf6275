"""Steering of a training in which every forward has a budget of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from skim.methods.budget import GAIN, REACH, STIFFNESS, Budget
from skim.methods.options import Target
from skim.methods.table import Table, hats


class Steering(Budget):
    r"""The controller of :class:`Budget` for a range: an augmented Lagrangian with a multiplier for each anchor.

    A step has several forwards, each with a goal of its own, and the price of a FLOP rises as the budget falls: one
    multiplier would settle where the errors of all goals cancel, too much spent at the small ones and too little at the
    large. So each anchor of the table has one, and a forward at budget b is weighed by the straight line between its
    two neighbours. The errors of a forward count for both, by their share in it; they move the multiplier at the next
    step, over the progress since that anchor was moved last, so that budgets that are drawn rarely are steered as far
    as those of every step.

    A method whose decisions have a calibrated shift at each budget only needs what no shift can give, the trade-off
    between layers: for it there is one multiplier, moved by the mean error of a step (``apart=False``).

    Args:
        table: of the method.
        warmup: share of training over which the goals fall from 1 to their budgets.
        apart: one multiplier for each anchor; False is one for all.
    """

    errors: Tensor
    seen: Tensor
    weights: Tensor

    def __init__(self, table: Table, warmup: float, apart: bool) -> None:
        super().__init__(table.high, warmup)
        self.anchors = table.anchors if apart else [table.low]
        for name in ("multiplier", "last", "errors", "seen"):
            self.register_buffer(name, torch.zeros(len(self.anchors), dtype=torch.float32))
        self.register_buffer("weights", torch.zeros(len(self.anchors), dtype=torch.float32), persistent=False)
        self.choose(table.now)

    def choose(self, budget: float) -> None:
        super().choose(budget)
        self.weights.copy_(hats(budget, self.anchors))

    @torch.no_grad()
    def step(self, progress: float, relative_flops: Tensor) -> None:
        error = self.agreed(relative_flops) - self.goal(progress)
        due = (self.seen > 0) & (self.last < progress)
        mean = (self.errors / self.seen.clamp_min(1e-6)).clamp(-REACH, REACH)
        moved = GAIN * mean * (progress - self.last) * self.seen.clamp_max(1.0)
        self.multiplier += torch.where(due, moved, 0.0)
        self.last.masked_fill_(due, progress)
        for counted in (self.errors, self.seen):
            counted.masked_fill_(due, 0.0)
        self.errors += self.weights * error
        self.seen += self.weights
        # not in place: the loss of an earlier forward of this step holds the one before
        self.coefficient = self.multiplier @ self.weights + STIFFNESS * error


def steered(target: Target | None, table: Table | None, warmup: float, apart: bool = False) -> Budget | None:
    """Make the steering of a method to its target in training; ``None`` without a target."""
    if table is not None:
        return Steering(table, warmup, apart)
    return None if target is None or isinstance(target, tuple) else Budget(target, warmup)
