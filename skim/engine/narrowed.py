"""Narrowed execution: a padded batch cut to its longest survivor, for attention that needs a rectangle."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from skim.engine.pooling import openings, pooled
from skim.engine.tokens import Occupancy, Sequences, TokenBatch, last_tokens, merge
from skim.errors import SkimError


@dataclass(frozen=True)
class NarrowedOccupancy(Occupancy):
    """A rectangle cut to the longest survivor.

    Attributes:
        position: ``(B, K)`` input position of each row; ``N`` on filler rows.
        weights: ``(B, K)`` bool, False on filler rows and pads.
        sequences: what entered.
    """

    position: Tensor
    weights: Tensor
    sequences: Sequences
    merged: Tensor | None = None

    def counts(self) -> Tensor:
        return self.weights.sum(1)

    def alive(self) -> Tensor:
        batch, positions = self.sequences.real.shape
        alive = self.sequences.real.new_zeros(batch, positions + 1)
        return self.shared(alive.scatter(1, self.position, self.weights)[:, :positions]) & self.sequences.real

    def rows(self, values: Tensor) -> Tensor:
        return F.pad(values, (0, 1)).gather(1, self.position)

    def put(self, values: Tensor, into: Tensor) -> Tensor:
        return F.pad(into, (0, 1)).scatter(1, self.position, values.to(into.dtype))[:, :-1]


@dataclass(frozen=True)
class NarrowedTokens(TokenBatch):
    """Alive states moved to the front of a rectangle ``(B, K, D)``."""

    hidden: Tensor
    occupancy: NarrowedOccupancy
    sequences: Sequences
    left: Tensor | None = None  # (B, N + 1, D): last states of rows that left; column N takes the filler
    memory: NarrowedTokens | None = None
    carry: Any = None

    @classmethod
    def start(cls, hidden: Tensor, sequences: Sequences) -> NarrowedTokens:
        return cls(hidden, NarrowedOccupancy(sequences.position, sequences.real, sequences), sequences)

    def retire(self, keep: Tensor) -> NarrowedTokens:
        position, alive = self.occupancy.position, self.occupancy.weights
        keep = keep > 0.5
        stay = F.pad(self.sequences.protected, (0, 1)).gather(1, position)
        if not self.sequences.covered:
            stay = stay | last_tokens(alive, keep | stay)
        return self._only((keep | stay) & alive, narrowest=1)

    def leave(self, gone: Tensor) -> NarrowedTokens:
        return self._only(self.occupancy.weights & ~gone[:, None], narrowest=0)

    def _only(self, keep: Tensor, narrowest: int) -> NarrowedTokens:
        """The rows that ``keep`` ``(B, K)`` says; the others' states are put where ``restore`` finds them."""
        position, positions = self.occupancy.position, self.sequences.real.shape[1]
        width = max(int(keep.sum(1).max()), narrowest)  # the one host sync of a narrowed layer: K must be known
        rows = keep.to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :width]
        keep = keep.gather(1, rows)
        position = torch.where(keep, position.gather(1, rows), positions)
        occupancy = replace(self.occupancy, position=position, weights=keep)
        hidden = self.hidden.gather(1, rows[..., None].expand(-1, -1, self.hidden.shape[-1]))
        return replace(self, hidden=hidden, occupancy=occupancy, left=self._put_back(), memory=None)

    def halt(self, running: Tensor) -> NarrowedTokens:
        raise SkimError("Halted tokens are still looked at, so no rectangle gets narrower; use execution=packed.")

    def pool(self, stride: int, alone: Tensor, kind: str = "mean", pads: bool = False) -> NarrowedTokens:
        batch, positions = self.sequences.real.shape
        there = self.occupancy.weights
        rows = torch.arange(there.numel(), device=there.device)
        if not pads:
            rows = rows[there.view(-1)]
        of = rows // there.shape[1]  # the sequence of each row
        first = torch.ones_like(of, dtype=torch.bool)
        first[1:] = of[1:] != of[:-1]
        opens = openings(first, alone.reshape(-1)[rows], stride).nonzero().squeeze(1)
        size = F.pad(opens, (0, 1), value=len(rows)).diff()
        states = pooled(self.hidden.reshape(-1, self.hidden.shape[-1])[rows], opens, size, kind)
        # each sequence's windows side by side at the front of a rectangle; with pads, real if any member is
        of_window = of[opens]
        count = of_window.bincount(minlength=batch)
        slot = torch.arange(len(opens), device=rows.device) - (count.cumsum(0) - count)[of_window]
        width = max(int(count.max()), 1)
        place = of_window * width + slot
        window = torch.arange(len(opens), device=rows.device).repeat_interleave(size, output_size=len(rows))
        real = torch.zeros_like(opens, dtype=torch.int64).index_add(0, window, there.reshape(-1)[rows].long()) > 0
        at = self.occupancy.position.reshape(-1)[rows]
        hidden = states.new_zeros(batch * width, states.shape[-1]).index_copy(0, place, states)
        position = torch.full((batch * width,), positions, device=rows.device).index_copy(0, place, at[opens])
        weights = torch.zeros_like(position, dtype=torch.bool).index_copy(0, place, real)
        here = at < positions  # filler merges with filler
        merged = merge(self.occupancy, (of * positions + at)[here], (of * positions + at[opens][window])[here])
        occupancy = NarrowedOccupancy(position.view(batch, width), weights.view(batch, width), self.sequences, merged)
        return replace(self, hidden=hidden.view(batch, width, -1), occupancy=occupancy)

    def _put_back(self) -> Tensor:
        """As in the packed form; out of place, because filler rows share a column and the scatter must not race."""
        batch, positions = self.sequences.real.shape
        left = self.left
        if left is None:
            left = self.hidden.new_zeros(batch, positions + 1, self.hidden.shape[-1])
        index = self.occupancy.position[..., None].expand(-1, -1, self.hidden.shape[-1])
        return left.scatter(1, index, self.hidden.to(left.dtype))

    def restore(self) -> Tensor:
        if self.left is None and self.occupancy.merged is None:
            return self.hidden
        return self.occupancy.shared(self._put_back()[:, : self.sequences.real.shape[1]])
