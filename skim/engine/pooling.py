"""Merging neighbours: which rows make a window, and what state it gets. Pure functions over rows in a line."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

Pooling: TypeAlias = Literal["mean", "max"]  # how a window gets its state
POOLINGS = get_args(Pooling)


def openings(first: Tensor, alone: Tensor, stride: int) -> Tensor:
    """Rows with which a window begins.

    Windows of ``stride`` rows fill each stretch of rows between those that stay alone; the last of a stretch may be
    shorter.

    Args:
        first: ``(T,)`` bool, rows that begin a sequence.
        alone: ``(T,)`` bool, rows that are a window by themselves.
        stride: rows per window, at least 1.

    Returns:
        ``(T,)`` bool.
    """
    rows = torch.arange(len(first), device=first.device)
    behind = torch.cat([alone.new_zeros(min(len(alone), 1)), alone[:-1]])  # the row before stays alone
    begins = first | alone | behind
    stretch = torch.where(begins, rows, 0).cummax(0).values if len(rows) else rows
    return alone | ((rows - stretch) % stride == 0)


def pooled(
    states: Tensor, opens: Tensor, size: Tensor, kind: str, stride: int, weights: Tensor | None = None
) -> Tensor:
    """States of windows from those of their rows, ``(T, D)`` to ``(W, D)``; differentiable.

    Args:
        states: of all rows.
        opens: ``(W,)`` the row with which each window begins.
        size: ``(W,)`` its number of rows.
        kind: ``mean`` or ``max`` over the rows.
        stride: the most rows that a window has.
        weights: ``(T,)`` of the rows in a mean; ``None``: all alike.
    """
    if weights is not None and kind == "mean":
        weights = weights[:, None].to(states.dtype)
        return pooled(states * weights, opens, size, kind, stride) / pooled(weights, opens, size, kind, stride)
    merged = states.index_select(0, opens)
    for k in range(1, stride):
        inside = (size > k)[:, None]
        other = states.index_select(0, (opens + k).clamp(max=states.shape[0] - 1))
        if kind == "max":
            merged = torch.where(inside, torch.maximum(merged, other), merged)
        else:
            merged = merged + torch.where(inside, other, 0.0)
    return merged if kind == "max" else merged / size[:, None].to(merged.dtype)
