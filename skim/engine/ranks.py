"""Sums over the processes of a training, so that its loss is one of the whole step and not a mean of their losses.

Two processes have as many sequences each, give or take one, and not as many labels, tokens or FLOPs. DDP takes the mean
of their gradients, which is that of the step only if each process weighs as much as what it has. So a ratio of totals
is taken of totals over all processes: :func:`share`. What it gives is the same number everywhere, and the gradients are
those that one process with all sequences would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

Said = TypeVar("Said")
_JOINED: ContextVar[bool] = ContextVar("joined", default=False)


@contextmanager
def joined() -> Iterator[None]:
    """Let :func:`share` be over all processes, each of which has to come to it: a step that all of them train."""
    token = _JOINED.set(dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1)
    try:
        yield
    finally:
        _JOINED.reset(token)


class Summed(torch.autograd.Function):
    """Sum of a tensor over processes; every process knows the gradient of the sum."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.detach().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        # each of the processes has the loss of all, and DDP takes the mean of what they say
        return gradient * dist.get_world_size()


def share(part: Tensor, whole: Tensor) -> Tensor:
    """``part / whole``, and 1 of nothing: a batch of nothing but padding must not make a loss, or steering, NaN.

    Within :func:`joined`, both are summed over the processes first.

    Args:
        part: of any shape.
        whole: a scalar, or of the same shape.
    """
    if _JOINED.get():
        kind = torch.promote_types(part.dtype, whole.dtype)
        kind = kind if kind.is_floating_point else torch.float32
        # in one message, for one of two numbers takes as long as one of one
        both = Summed.apply(torch.cat([part.reshape(-1).double(), whole.reshape(-1).double()]))
        part, whole = both[: part.numel()].view(part.shape).to(kind), both[part.numel() :].view(whole.shape).to(kind)
    # not clamped: a sum of class weights may be below 1
    return torch.where(whole > 0, part / torch.where(whole > 0, whole, 1), 1.0)


def mean(values: Tensor) -> Tensor:
    """Mean of values, a scalar; within :func:`joined` of those of all processes."""
    return share(values.sum(), values.new_full((), values.numel()))


def weighed(value: Tensor, count: Callable[[], int | Tensor]) -> Tensor:
    """Mean over processes of what is a mean over so many things in each; outside of :func:`joined` as it is.

    Args:
        value: a scalar.
        count: tells the number of labels, sequences or tokens; only asked if there is another process.
    """
    if not _JOINED.get():
        return value
    things = torch.as_tensor(count(), device=value.device)
    # a mean of nothing is NaN, and the other processes have something
    return share(torch.where(things > 0, value * things.to(value.dtype), 0.0), things)


def everywhere(mine: Said) -> list[Said]:
    """Gather what every process of the run has to say, in their order; all of them have to come to it."""
    if not (dist.is_available() and dist.is_initialized()):
        return [mine]
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, mine)
    return told
