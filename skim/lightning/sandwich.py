"""The sandwich rule: a step of training at several budgets of a range, of which the largest teaches the others.

Each step runs its batch at the largest budget, the smallest, and some drawn between them (US-Nets, Yu and Huang, ICCV
2019; in encoders DynaBERT, Hou et al., NeurIPS 2020, and Length-Adaptive Transformer, Kim and Cho, ACL 2021): the ends
bound what is between, so both are trained in every step. The loss is the mean of theirs, in one optimizer step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from skim.engine.trace import Trace
from skim.lightning.distill import Distiller, Lesson

# of the largest budget's answers, where no teacher is configured: the labels weigh as much
INPLACE = Distiller(weight=0.5)
PLACES = ("/largest", "/smallest", "/between")  # of a forward in a step, by which a log names its numbers


def drawn(low: float, high: float, between: int, *step: int) -> list[float]:
    """Budgets of a step: the largest, the smallest, and those between, evenly distributed.

    Args:
        low: the smallest.
        high: the largest.
        between: how many.
        step: numbers from 0 that tell this step from all others: seed, epoch, batch. All processes draw the same, and
            so does a run that goes on.
    """
    numbers = np.random.default_rng(np.random.SeedSequence(step)).random(between)
    return [high, low, *(float(low + (high - low) * number) for number in numbers)]


def taught(output: Any, trace: Trace) -> Lesson:
    """The lesson of a forward for the others, from which no gradient flows back to it."""
    detached = {name: value.detach() for name, value in output.items() if isinstance(value, Tensor)}
    return Lesson(type(output)(**detached), [tokens.restore().detach() for tokens in trace.states])
