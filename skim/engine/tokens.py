"""The state that flows through the layers: which tokens are alive, where they sit, and what they last looked like.

Shapes, here and everywhere in skim: B sequences, N input positions, K rows of a narrowed batch, T packed tokens,
H heads, D width, L layers.

A :class:`TokenBatch` comes in three forms that share one set of operations, so a method is written once:

* masked (:mod:`skim.engine.masked`) - padded ``(B, N, D)``; retiring multiplies a differentiable mask. Nothing gets
  cheaper; this is how a method trains *through* its decisions.
* packed (:mod:`skim.engine.packed`) - one row ``(1, T, D)`` of all alive tokens, no pads; retiring removes rows.
* narrowed (:mod:`skim.engine.narrowed`) - padded ``(B, K, D)``, K the longest survivor; for families whose attention
  cannot be handed a function and so needs a rectangle.

All three are immutable: an operation returns a new batch. A token can leave the rows in three ways: *retired*, it is
gone; *halted*, it is computed no further but still looked at; *merged*, its window goes on as one row.
``restore()`` puts every token's last state back at its input position.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Sequences:
    """Sequences as they entered the encoder; constant during a forward.

    Attributes:
        real: ``(B, N)`` bool, False on pads.
        protected: ``(B, N)`` bool, tokens that no method may retire.
        covered: whether every sequence has a protected token, so that none can lose its last one.
        run_on: retired rows run on without attention, the head reads what becomes of them, and a sequence may lose its
            last token: what the published LTP code does. Masked execution only.
    """

    real: Tensor
    protected: Tensor
    covered: bool = False
    run_on: bool = False

    @cached_property
    def lengths(self) -> Tensor:
        """Real tokens per sequence, ``(B,)`` int64."""
        return self.real.sum(1)

    @cached_property
    def position(self) -> Tensor:
        """Input position of every token, ``(B, N)``; one tensor, so that ``is`` tells whether rows have moved."""
        return torch.arange(self.real.shape[1], device=self.real.device).expand_as(self.real)


class Occupancy:
    """Alive tokens, and the input position of each row. Shared by all states between two retirements."""

    position: Tensor  # input position of each row, of its first token if it merges several: (B, N), (B, K) or (1, T)
    weights: Tensor  # how much each row counts as a key, in the same shape
    sequences: Sequences
    merged: Tensor | None = None  # (B, N) the input position at which each token's row sits; None: at its own

    def counts(self) -> Tensor:
        """Alive real tokens per sequence, ``(B,)``; differentiable where the mask is."""
        raise NotImplementedError

    def alive(self) -> Tensor:
        """Alive real tokens at their input positions, ``(B, N)`` bool."""
        raise NotImplementedError

    def rows(self, values: Tensor) -> Tensor:
        """Select values of input positions, ``(B, N)``, at the present rows: ``(B, N)``, ``(1, T)`` or ``(B, K)``."""
        raise NotImplementedError

    def put(self, values: Tensor, into: Tensor) -> Tensor:
        """The way back: a copy of ``into`` ``(B, N)`` with ``values`` of the present rows at their input positions."""
        raise NotImplementedError

    def shared(self, values: Tensor) -> Tensor:
        """Values at input positions, ``(B, N, ...)``, with each merged token's row's value at the token's."""
        if self.merged is None:
            return values
        where = self.merged.view(*self.merged.shape, *[1] * (values.dim() - 2))
        return values.gather(1, where.expand(*self.merged.shape, *values.shape[2:]))

    def spread(self, values: Tensor) -> Tensor:
        """Repeat values given per sequence, ``(B,)``, for (or broadcastable to) its rows: ``(B, 1)`` or ``(1, T)``."""
        return values[:, None]

    def largest(self, values: Tensor) -> Tensor:
        """The largest value among each sequence's alive rows, ``(B,)``, minus infinity where there are none.

        Args:
            values: floating, one per row.
        """
        return values.masked_fill(self.weights <= 0.5, -torch.inf).amax(1)

    def rank(self, values: Tensor) -> Tensor:
        """Each alive row's place in its sequence by falling value, 0 for the largest; ties go by position."""
        order = values.masked_fill(self.weights <= 0.5, -torch.inf).argsort(dim=1, descending=True, stable=True)
        places = torch.arange(order.shape[1], device=order.device).expand_as(order)
        return torch.empty_like(order).scatter_(1, order, places)


class TokenBatch:
    """States of the alive tokens and the last states of the retired ones; see the module's docstring.

    Attributes:
        hidden: one state per row.
        occupancy: who the rows are.
        sequences: what entered.
        memory: what attention looks at, where that is not the rows themselves: all rows, halted ones included, or the
            rows before they were merged.
        carry: what the method hands along from layer to layer; never looked at by the engine.
    """

    hidden: Tensor
    occupancy: Occupancy
    sequences: Sequences
    memory: Any = None
    carry: Any = None

    @property
    def looked_at(self) -> Occupancy:
        """Rows that attention attends to."""
        return self.occupancy if self.memory is None else self.memory.occupancy

    def with_hidden(self, hidden: Tensor) -> TokenBatch:
        """The same tokens with new states, of the same shape as ``hidden``."""
        return replace(self, hidden=hidden)  # type: ignore[type-var]  # every subclass is a dataclass

    def retire(self, keep: Tensor) -> TokenBatch:
        """Let tokens leave the computation for good.

        Protected tokens stay whatever ``keep`` says, and no sequence loses its last token: of one that would, the first
        alive token stays.

        Args:
            keep: one value per row of ``hidden``, ``hidden.shape[:-1]``; 1 keeps, 0 retires; or bool. Gradients
                flow into it in masked execution only; the other forms read ``keep > 0.5``.
        """
        raise NotImplementedError

    def halt(self, running: Tensor) -> TokenBatch:
        """Freeze rows: they keep their state and are computed no further, but the others go on looking at them.

        Unlike :meth:`retire` it takes whoever it is given, protected tokens too: nobody loses anything by it. To be
        called with the states as they are to be frozen; a masked row's state must not change any more.

        Args:
            running: one value per row of ``hidden``; 1 runs on, 0 halts; or bool.
        """
        raise NotImplementedError

    def leave(self, gone: Tensor) -> TokenBatch:
        """Let whole sequences leave the computation: all their rows, protected ones too, with the states they have.

        Args:
            gone: ``(B,)`` bool.
        """
        raise NotImplementedError

    def pool(self, stride: int, alone: Tensor, kind: str = "mean", pads: bool = False) -> TokenBatch:
        """Merge neighbours: each window of ``stride`` alive rows becomes one row, at its first row's place.

        Attention looks at the rows before they were merged as long as ``memory`` holds them; the caller decides.

        Args:
            stride: rows per window.
            alone: bool, one per row: these stay rows of their own.
            kind: ``mean`` or ``max``.
            pads: windows are laid over pads as well, as published (a result then changes with the padding).
        """
        raise NotImplementedError

    def looking_at(self, memory: TokenBatch | None) -> TokenBatch:
        """The same rows, looking at these; ``None``: at one another."""
        return replace(self, memory=memory)  # type: ignore[type-var]

    def carrying(self, carry: Any) -> TokenBatch:
        """The same rows with what the method hands along."""
        return replace(self, carry=carry)  # type: ignore[type-var]

    def unpool(self, hidden: Tensor) -> TokenBatch:
        """Every token as a row of its own again, with these states ``(B, N, D)``; the carry goes along."""
        return replace(type(self).start(hidden, self.sequences), carry=self.carry)  # type: ignore[attr-defined]

    def restore(self) -> Tensor:
        """Every token's last state at its input position, ``(B, N, D)``; a merged one has its row's."""
        raise NotImplementedError


def last_tokens(alive: Tensor, keep: Tensor) -> Tensor:
    """The first alive token of every sequence that ``keep`` would empty; all three are ``(B, N)`` bool."""
    lost = alive.any(1) & ~(alive & keep).any(1)
    first = F.one_hot(alive.int().argmax(1), alive.shape[1]).bool()
    return first & lost[:, None]


def merge(occupancy: Occupancy, members: Tensor, firsts: Tensor) -> Tensor:
    """Find each token's row, ``(B, N)``, once rows at flat positions ``members`` have joined ``firsts``."""
    real = occupancy.sequences.real
    batch, positions = real.shape
    joined = torch.arange(real.numel(), device=real.device).index_copy(0, members, firsts).view(batch, positions)
    begins = torch.arange(batch, device=real.device)[:, None] * positions
    return occupancy.shared(joined - begins) if occupancy.merged is not None else joined - begins
