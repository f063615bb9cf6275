"""Noise of decisions. In a training step it belongs to the token, wherever in a batch and on whichever process it is.

Within :func:`belonging` a number is a hash of what it is for: the step, the sequence's number in the data, the token's
place in it, the layer. So two processes draw what one with the batches of both would draw, and so does a run that goes
on. A number for the batch as a whole is a hash of the step, and all processes draw the same. Elsewhere torch's
generator draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import numpy as np
import torch
from torch import Tensor

from skim.engine.tokens import Occupancy

_STEP: ContextVar[tuple[int, Tensor | None] | None] = ContextVar("step", default=None)

# of SplitMix64 (Steele, Lea and Flood 2014), as torch has no uint64 to multiply
GOLDEN, FIRST, SECOND = (n - (1 << 64) for n in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@contextmanager
def belonging(rows: Tensor | None, *step: int) -> Iterator[None]:
    """Draw noise by sequence and step.

    Args:
        rows: ``(B,)`` a number of each sequence, or set of options, that no other one of the step has; ``None``: there
            are none, and torch's generator draws for tokens.
        step: numbers from 0 that tell this step from all others: seed, epoch, batch.
    """
    key = int(np.random.SeedSequence(step).generate_state(1, np.uint64)[0] >> 1)
    token = _STEP.set((key, rows))
    try:
        yield
    finally:
        _STEP.reset(token)


def exponential(occupancy: Occupancy, layer: int, count: int) -> Tensor:
    """Standard exponential noise, ``count`` numbers for each row: ``(..., count)`` float32, above 0.

    Args:
        occupancy: the rows.
        layer: of the decision.
        count: numbers per row.
    """
    position = occupancy.position
    now = _STEP.get()
    if now is None or now[1] is None:
        return torch.empty(*position.shape, count, device=position.device).exponential_()
    key, rows = now
    assert rows is not None
    real = occupancy.sequences.real
    options = len(real) // len(rows)  # of a question, each is a sequence
    each = (rows[:, None] * options + torch.arange(options, device=rows.device)).view(-1)
    begin = real.int().argmax(1)  # pads may stand in front
    state = mixed(mixed(each ^ key) ^ layer)
    state = mixed(occupancy.spread(state) ^ (position - occupancy.spread(begin)))
    return -between(mixed(state[..., None] ^ torch.arange(count, device=state.device))).log()


def uniform(count: int, lot: int, device: torch.device) -> Tensor:
    """Uniform noise of the step as a whole, the same on all processes: ``(count,)`` float32, above 0 and below 1.

    Args:
        count: numbers.
        lot: tells them from others that the same step draws, from 0.
        device: of the numbers.
    """
    now = _STEP.get()
    if now is None:
        return torch.rand(count, device=device)
    numbers = torch.arange(count, device=device) ^ (lot << 32)
    return between(mixed(mixed(numbers) ^ now[0]))


def between(hashes: Tensor) -> Tensor:
    """Numbers between 0 and 1 of int64 hashes: as many bits as float32 tells apart, and neither 0 nor 1."""
    return (shifted(hashes, 41) + 0.5) * 2.0**-23


def mixed(numbers: Tensor) -> Tensor:
    """Mix bits by step and finaliser of SplitMix64, int64 to int64: one to one."""
    x = numbers + GOLDEN
    x = (x ^ shifted(x, 30)) * FIRST
    x = (x ^ shifted(x, 27)) * SECOND
    return x ^ shifted(x, 31)


def shifted(numbers: Tensor, bits: int) -> Tensor:
    """Shift to the right and fill with zeros, as of unsigned numbers."""
    return (numbers >> bits) & ((1 << (64 - bits)) - 1)
