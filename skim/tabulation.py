"""Filling of a table of shifts by budget: every anchor is solved for, each from where its neighbour has ended."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from skim.methods.base import Method

REACH = 12.0  # largest shift that is tried to either side of 0; the unit is the method's
STRIDE = 0.5  # first step to where the other side of a budget may be; each further one is twice as long
TRIES = 12  # passes over the inputs for one anchor, at most

Point = tuple[float, float]  # a shift, and what is spent with it


def tabulate(
    method: Method,
    spend: Callable[[], float],
    places: Sequence[int] | None = None,
    within: float = 0.003,
    each: Callable[[], object] = bool,
) -> None:
    """Set the shifts of a table to what spends its anchors, and the method to the budget that it had.

    What is spent rises with the shift, so each pass over the inputs is a bound for all budgets, and two or three passes
    are enough for each. Where the budget is an input of the decisions as well, bounds are of one anchor alone, and
    begin at the shift of the next larger.

    Args:
        method: with a table, on a model in evaluation.
        spend: measures what the model spends as it is now.
        places: anchors to solve for, the correction of the others is on straight lines between those; ``None``: all.
        within: of an anchor, in relative FLOPs, is close enough.
        each: called when an anchor is done.
    """
    table, shift = method.table, method.shift
    assert table is not None
    assert shift is not None
    standing, before = table.now, table.shifts.tolist()
    known: list[Point] = []
    solved: dict[int, float] = {}
    for k in sorted(range(len(table.anchors)) if places is None else places, reverse=True):
        method.meet(table.anchors[k])

        def spent(value: float) -> float:
            shift.fill_(value)
            return spend()

        correction = solved[min(solved)] - before[min(solved)] if solved else 0.0
        known = [] if method.conditioned else known
        solved[k] = solve(spent, table.anchors[k], before[k] + correction, known, within)
        each()
    moved = np.interp(range(len(before)), sorted(solved), [solved[k] - before[k] for k in sorted(solved)])
    shifts = torch.tensor(np.asarray(before) + moved, dtype=torch.float32)
    table.shifts.copy_(shifts if method.conditioned else shifts.cummax(0).values)
    method.meet(standing)


def solve(spent: Callable[[float], float], goal: float, start: float, known: list[Point], within: float) -> float:
    """Find the shift that spends a goal, or comes nearest: between bounds false position and halving in turns.

    Args:
        spent: what a shift spends; rises with it.
        goal: relative FLOPs.
        start: where to begin if there is no bound.
        known: points that bound it, to which those that were tried are added.
        within: of the goal is close enough.
    """
    stride = STRIDE
    for count in range(TRIES + 1):
        # more than dense is never worth it, however near: a budget of 1 is that
        best = min(known, key=lambda point: (point[1] > 1, abs(point[1] - goal)), default=None)
        below = max((point for point in known if point[1] <= goal), default=None)
        above = min((point for point in known if point[1] > goal), default=None)
        if best is not None and (abs(best[1] - goal) <= within or count == TRIES):
            break
        if below is not None and above is not None:
            share = (goal - below[1]) / (above[1] - below[1])
            share = 0.5 if count % 2 else min(max(share, 0.05), 0.95)
            value = below[0] + share * (above[0] - below[0])
        elif below is not None or above is not None:
            value = below[0] + stride if below is not None else above[0] - stride  # type: ignore[index]
            stride *= 2
        else:
            value = start
        value = min(max(value, -REACH), REACH)
        if any(value == point[0] for point in known):  # at the end of all shifts, or of what float tells apart
            break
        known.append((value, spent(value)))
    assert best is not None
    return best[0]
