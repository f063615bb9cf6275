"""Rows in a rectangle, ``(B, K)``: what the masked and the narrowed form have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from skim.engine.pooling import openings, pooled
from skim.engine.tokens import Occupancy, merge


class Rectangle(Occupancy):
    """Rows of B sequences side by side; some may be filler.

    Attributes:
        position: ``(B, K)`` input position of each row; ``N`` on filler rows.
        there: ``(B, K)`` bool, False on filler rows and pads.
    """

    position: Tensor
    there: Tensor

    @property
    def whole(self) -> bool:
        """True if every row still is where it came in, K = N."""
        return self.position is self.sequences.position

    def counts(self) -> Tensor:
        return self.weights.sum(1)

    def alive(self) -> Tensor:
        alive = self.weights > 0.5
        if self.whole:
            return alive
        batch, positions = self.sequences.real.shape
        spread = self.sequences.real.new_zeros(batch, positions + 1).scatter(1, self.position, alive)
        return self.shared(spread[:, :positions]) & self.sequences.real

    def rows(self, values: Tensor) -> Tensor:
        if self.whole:
            return values
        rest = values.shape[2:]
        index = self.position.view(*self.position.shape, *[1] * len(rest)).expand(*self.position.shape, *rest)
        return F.pad(values, (*[0, 0] * len(rest), 0, 1)).gather(1, index)

    def put(self, values: Tensor, into: Tensor) -> Tensor:
        if self.whole:
            return values.to(into.dtype)
        return F.pad(into, (0, 1)).scatter(1, self.position, values.to(into.dtype))[:, :-1]

    def follow(self, values: Tensor, later: Occupancy) -> Tensor:
        if later.position is self.position:
            return values
        rows = torch.searchsorted(self.position.contiguous(), later.position.contiguous())
        rows = rows.clamp(max=self.position.shape[1] - 1)  # filler finds filler, or the last row
        index = rows.view(*rows.shape, *[1] * (values.dim() - 2)).expand(*rows.shape, *values.shape[2:])
        return values.gather(1, index)

    def by_sequence(self, function: Callable[..., tuple[Tensor, ...]], *values: Tensor) -> tuple[Tensor, ...]:
        alive = self.weights > 0.5
        order = self.falling(alive.to(torch.int8))  # alive rows at the front

        def moved(value: Tensor) -> Tensor:
            tail = [1] * (value.dim() - 2)
            value = value.masked_fill(~alive.view(*alive.shape, *tail), 0)
            return value.gather(1, order.view(*order.shape, *tail).expand_as(value))

        return tuple(torch.empty_like(found).scatter(1, order, found) for found in function(*map(moved, values)))

    def restored(self, states: Tensor, left: Tensor | None) -> Tensor:
        """States of the rows at their input positions, among the last states of all that left.

        Args:
            states: ``(B, K, D)``.
            left: ``(B, N + 1, D)``, column N for filler; ``None`` before anybody has left.

        Returns:
            ``(B, N + 1, D)``; out of place, because filler rows share a column and a scatter must not race.
        """
        if left is None:
            batch, positions = self.sequences.real.shape
            left = states.new_zeros(batch, positions + 1, states.shape[-1])
        index = self.position[..., None].expand(-1, -1, states.shape[-1])
        return left.scatter(1, index, states.to(left.dtype))


class Merged(NamedTuple):
    """Merged rows of a rectangle, each sequence's side by side at its front."""

    hidden: Tensor  # (B, K, D)
    position: Tensor  # (B, K) of the row whose place each took; N on filler
    there: Tensor  # (B, K) bool
    merged: Tensor  # (B, N) the input position at which each token's row sits
    kept: Tensor | None  # (B, K) the mean weight of the rows that became one, if they had any


def windows(
    hidden: Tensor, rows: Rectangle, kept: Tensor | None, stride: int, alone: Tensor, kind: str, pads: bool
) -> Merged:
    """Merge each ``stride`` neighbouring alive rows.

    Args:
        hidden: ``(B, K, D)``.
        rows: the rectangle.
        kept: ``(B, K)`` weights of the rows in a mean, 1 for those that are alive for certain; ``None``: all alike.
        stride: rows per window.
        alone: ``(B, K)`` bool, rows that stay rows of their own.
        kind: ``mean`` or ``max``.
        pads: windows are laid over pads as well.
    """
    batch, positions = rows.sequences.real.shape
    there = rows.there if kept is None else rows.there & (kept > 0.5)
    line = torch.arange(there.numel(), device=there.device)
    if not pads:
        line = line[there.reshape(-1)]
    of = line // there.shape[1]  # the sequence of each row
    first = torch.ones_like(of, dtype=torch.bool)
    first[1:] = of[1:] != of[:-1]
    opens = openings(first, alone.reshape(-1)[line], stride).nonzero().squeeze(1)
    size = F.pad(opens, (0, 1), value=len(line)).diff()
    weight = None if kept is None else kept.reshape(-1)[line]
    states = pooled(hidden.reshape(-1, hidden.shape[-1])[line], opens, size, kind, stride, weight)
    # each sequence's windows side by side at the front of a rectangle; with pads, real if any member is
    of_window = of[opens]
    count = of_window.bincount(minlength=batch)
    slot = torch.arange(len(opens), device=line.device) - (count.cumsum(0) - count)[of_window]
    width = max(int(count.max()), 1)
    place = of_window * width + slot
    window = torch.arange(len(opens), device=line.device).repeat_interleave(size, output_size=len(line))
    real = torch.zeros_like(opens, dtype=torch.int64).index_add(0, window, there.reshape(-1)[line].long()) > 0
    at = rows.position.reshape(-1)[line]
    shape = batch, width
    packed = states.new_zeros(batch * width, states.shape[-1]).index_copy(0, place, states)
    position = torch.full((batch * width,), positions, device=line.device).index_copy(0, place, at[opens])
    taken = torch.zeros_like(position, dtype=torch.bool).index_copy(0, place, real)
    here = at < positions  # filler merges with filler
    merged = merge(rows, (of * positions + at)[here], (of * positions + at[opens][window])[here])
    if weight is not None:
        weight = pooled(weight[:, None], opens, size, "mean", stride).squeeze(1)
        weight = weight.new_zeros(batch * width).index_copy(0, place, weight).view(shape)
    return Merged(packed.view(*shape, -1), position.view(shape), taken.view(shape), merged, weight)


def joined(hidden: Tensor, rows: Rectangle, kept: Tensor | None, joins: Tensor, into: Tensor) -> Merged:
    """Merge alive rows with those that they join.

    Args:
        hidden: ``(B, K, D)``.
        rows: the rectangle.
        kept: ``(B, K)`` as in :func:`windows`.
        joins: ``(B, K)`` bool, as in :meth:`~skim.engine.tokens.TokenBatch.join`.
        into: ``(B, K)`` int64, likewise.
    """
    alive = rows.weights > 0.5
    joins = joins & alive
    line = torch.arange(alive.shape[1], device=alive.device).expand_as(alive)
    order = rows.falling(alive.to(torch.int8))  # the row at each place
    row = torch.where(joins, order.gather(1, torch.where(joins, into, 0)), line)  # that each becomes one with
    sizes = rows.sizes.to(torch.promote_types(hidden.dtype, torch.float32)) * alive
    weight = sizes if kept is None else sizes * kept
    states = hidden * share_of(weight, row)[..., None].to(hidden.dtype)
    states = torch.zeros_like(hidden).scatter_add(1, row[..., None].expand_as(hidden), states)
    stays = alive & ~joins
    front = rows.falling(stays.to(torch.int8))[:, : max(int(stays.sum(1).max()), 1)]
    there = stays.gather(1, front)
    batch, positions = rows.sequences.real.shape
    place = torch.arange(batch, device=alive.device)[:, None] * positions + rows.position
    merged = merge(rows, place[alive], place.gather(1, row)[alive])
    if kept is not None:
        kept = torch.zeros_like(weight).scatter_add(1, row, kept * share_of(sizes, row)).gather(1, front)
    states = states.gather(1, front[..., None].expand(-1, -1, hidden.shape[-1]))
    position = torch.where(there, rows.position.gather(1, front), positions)
    return Merged(states, position, there, merged, kept)


def share_of(weight: Tensor, row: Tensor) -> Tensor:
    """Each row's share in the weight of all that become one with the same ``row``; both are ``(B, K)``."""
    total = torch.zeros_like(weight).scatter_add(1, row, weight).gather(1, row)
    return weight / total.clamp_min(torch.finfo(weight.dtype).tiny)
