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
gone; *halted*, it is computed no further but still looked at; *merged*, it goes on with others as one row.
``restore()`` puts every token's last state back at its input position. Attention looks at the rows themselves unless
the batch has other rows for it: its ``memory``, once rows have halted, or its ``source``, in a layer that merges.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from skim.flops import precise


@dataclass(frozen=True)
class Sequences:
    """Sequences as they entered the encoder; constant during a forward.

    Attributes:
        real: ``(B, N)`` bool, False on pads.
        protected: ``(B, N)`` bool, tokens that no method may retire.
        covered: whether every sequence has a protected token, so that none can lose its last one.
        run_on: retired rows run on without attention, the head reads what becomes of them, and a sequence may lose its
            last token: what the published LTP code does. Masked execution only.
        place: ``first`` or ``last``: the real token that the head reads as [CLS].
        total: real tokens of the batch, where the host knows.
        input_ids: ``(B, N)``, for a method that decides by them; ``None`` when the caller passed embeddings.
    """

    real: Tensor
    protected: Tensor
    covered: bool = False
    run_on: bool = False
    place: str = "first"
    total: int | None = None
    input_ids: Tensor | None = None
    derived: ClassVar[tuple[str, ...]] = ("lengths", "read", "stay")  # what is computed once, and goes along

    @cached_property
    def lengths(self) -> Tensor:
        """Real tokens per sequence, ``(B,)`` int64."""
        return self.real.sum(1)

    @cached_property
    def read(self) -> Tensor:
        """``(B, N)`` bool: of each sequence the token that stands for it, which its head reads."""
        return at_place(self.real, self.place)

    @cached_property
    def stay(self) -> Tensor:
        """:attr:`protected` in a line, ``(B * N + 1,)``; the last place is that of filler."""
        return F.pad(self.protected.reshape(-1), (0, 1))

    @cached_property
    def position(self) -> Tensor:
        """Input position of every token, ``(B, N)``; one tensor, so that ``is`` tells whether rows have moved."""
        return torch.arange(self.real.shape[1], device=self.real.device).expand_as(self.real)


def at_place(real: Tensor, place: str) -> Tensor:
    """The ``first`` or the ``last`` real token of each sequence, ``(B, N)`` bool; none of a sequence without any."""
    order = real.int() if place == "first" else real.int().cumsum(1)
    return (torch.arange(real.shape[1], device=real.device) == order.argmax(1, keepdim=True)) & real


class Occupancy:
    """The rows: which are alive, and where each came in. Shared by all states between two retirements."""

    position: Tensor  # input position of each row, of one of its tokens if it merges several: (B, N), (B, K) or (1, T)
    weights: Tensor  # how much each row counts as a key, in the same shape
    sequences: Sequences
    merged: Tensor | None = None  # (B, N) the input position at which each token's row sits; None: at its own
    attention: ClassVar[Any] = None  # a form's own way to compute it, instead of the kernels

    @property
    def places(self) -> Tensor:
        """One tensor as long as the rows are those that they were, so that ``is`` tells whether they have moved."""
        return self.position

    @property
    def computed(self) -> int:
        """Rows that are computed, filler and pads among them."""
        return self.weights.numel()

    def counts(self) -> Tensor:
        """Alive real tokens per sequence, ``(B,)``; differentiable where the mask is."""
        raise NotImplementedError

    def alive(self) -> Tensor:
        """Alive real tokens at their input positions, ``(B, N)`` bool."""
        raise NotImplementedError

    def rows(self, values: Tensor) -> Tensor:
        """Select values of input positions, ``(B, N, ...)``, at the present rows: ``(B, K, ...)``, ``(1, T, ...)``."""
        raise NotImplementedError

    def put(self, values: Tensor, into: Tensor) -> Tensor:
        """The way back: a copy of ``into`` ``(B, N)`` with ``values`` of the present rows at their input positions."""
        raise NotImplementedError

    def add(self, values: Tensor, rows: Tensor) -> Tensor:
        """A copy of ``values`` ``(B, N)`` with those of the present rows raised by ``rows``, one number per row."""
        return self.put(self.rows(values) + rows, values)

    def follow(self, values: Tensor, later: Occupancy) -> Tensor:
        """Take values of these rows along to those of them that a later occupancy still has.

        Args:
            values: one per row, or one vector per row: ``(B, N, ...)``, ``(1, T, ...)`` or ``(B, K, ...)``.
            later: some of these rows, in the same order.
        """
        raise NotImplementedError

    def among(self, others: Occupancy) -> Occupancy:
        """Keep the rows that ``others`` has as well; both of the same form."""
        raise NotImplementedError

    def shared(self, values: Tensor) -> Tensor:
        """Values at input positions, ``(B, N, ...)``, with each merged token's row's value at the token's."""
        if self.merged is None:
            return values
        where = self.merged.view(*self.merged.shape, *[1] * (values.dim() - 2))
        return values.gather(1, where.expand(*self.merged.shape, *values.shape[2:]))

    @property
    def sizes(self) -> Tensor:
        """Tokens that each row stands for, float32: 1, more of one that others were merged with; 1 on filler."""
        real = self.sequences.real.float()
        if self.merged is not None:
            real = torch.zeros_like(real).scatter_add(1, self.merged, real)
        return self.rows(real).clamp_min(1.0)

    def by_sequence(self, function: Callable[..., tuple[Tensor, ...]], *values: Tensor) -> tuple[Tensor, ...]:
        """Run a function over whole sequences side by side, for what compares the rows of each among themselves.

        Args:
            function: takes rectangles ``(G, n, ...)`` of ``values``, one sequence's alive rows in their order at the
                front of each line, and zeros behind; gives rectangles ``(G, n)``. Several calls may serve the batch.
            values: one, or one vector, per row; finite on all but filler.

        Returns:
            What the function gave, one number per alive row; anything on others.
        """
        raise NotImplementedError

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
        order = self.falling(values.masked_fill(self.weights <= 0.5, -torch.inf))
        places = torch.arange(order.shape[1], device=order.device).expand_as(order)
        return torch.empty_like(order).scatter_(1, order, places)

    def share(self, rate: Tensor) -> Tensor:
        """``rate``, a float64 scalar, times each sequence's real tokens, rounded, halves to even: ``(B,)``."""
        return (precise(self.sequences.lengths) * rate).round()

    def falling(self, values: Tensor) -> Tensor:
        """Numbers of a rectangle's rows by falling value, ``(B, K)``; ties go by position."""
        return values.argsort(dim=1, descending=True, stable=True)


@dataclass(frozen=True)
class Nobody(Occupancy):
    """The rows of a layer that does not run."""

    sequences: Sequences

    @property
    def computed(self) -> int:
        return 0

    def counts(self) -> Tensor:
        return torch.zeros_like(self.sequences.lengths)

    def alive(self) -> Tensor:
        return torch.zeros_like(self.sequences.real)


@dataclass(frozen=True)
class Charge:
    """FLOPs of a method's own modules, charged on the rows that they ran over.

    Attributes:
        occupancy: those rows.
        per_row: FLOPs for each of them.
        per_sequence: FLOPs for each sequence that has any; a number or ``(B,)``.
    """

    occupancy: Occupancy
    per_row: float = 0.0
    per_sequence: Tensor | float = 0.0

    def flops(self) -> Tensor:
        """FLOPs per sequence, ``(B,)`` float64; differentiable in masked training."""
        counts = self.occupancy.counts()
        return self.per_row * precise(counts) + self.per_sequence * precise(counts > 0)


class TokenBatch:
    """States of the alive tokens and the last states of the retired ones; see the module's docstring.

    Attributes:
        hidden: one state per row.
        occupancy: the rows.
        sequences: what entered.
        memory: all rows that attention looks at once some have halted: these and the halted ones; ``None`` before.
        source: the rows before they were merged, while attention looks at them; ``None`` else.
        carry: what the method hands from layer to layer; the engine does not read it.
        charges: FLOPs of the method's own modules in this layer so far, see :meth:`charge`.
    """

    hidden: Tensor
    occupancy: Occupancy
    sequences: Sequences
    memory: Any = None
    source: Any = None
    carry: Any = None
    charges: tuple[Charge, ...] = ()

    @property
    def others(self) -> Any:
        """The batch whose rows attention looks at, where they are not these: the source, or the memory; or ``None``."""
        return self.memory if self.source is None else self.source

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
        """Let whole sequences leave the computation: all their rows, protected and halted ones too, as they are.

        Args:
            gone: ``(B,)`` bool.
        """
        raise NotImplementedError

    def pool(self, stride: int, alone: Tensor, kind: str = "mean", pads: bool = False) -> TokenBatch:
        """Merge neighbours: each window of ``stride`` alive rows becomes one row, at its first row's place.

        Attention looks at the rows before they were merged as long as ``source`` holds them; the caller decides.

        Args:
            stride: rows per window.
            alone: bool, one per row: these stay rows of their own.
            kind: ``mean`` or ``max``.
            pads: windows are laid over pads as well, as published (a result then changes with the padding).
        """
        raise NotImplementedError

    def join(self, joins: Tensor, into: Tensor) -> TokenBatch:
        """Merge rows with others of their sequence, wherever those are: a row that joins another is one with it.

        What becomes of them is the mean of their states, weighed by the tokens that each stands for
        (:attr:`Occupancy.sizes`), at the place of the row that was joined.

        Args:
            joins: bool, one per row: these join another.
            into: int64, one per row: the place, among its sequence's alive rows, of a row that does not join itself;
                anything for a row that stays.
        """
        raise NotImplementedError

    def looking_at(self, source: TokenBatch | None) -> TokenBatch:
        """The same rows, looking at those of ``source``, from which they were merged; ``None``: no longer."""
        return replace(self, source=source)  # type: ignore[type-var]

    def carrying(self, carry: Any) -> TokenBatch:
        """The same rows with what the method hands to its next hook."""
        return replace(self, carry=carry)  # type: ignore[type-var]

    def charge(self, per_row: float = 0.0, per_sequence: Tensor | float = 0.0) -> TokenBatch:
        """Charge FLOPs of a module of the method that has just run over the present rows.

        Args:
            per_row: FLOPs for each row.
            per_sequence: FLOPs for each sequence that has a row; a number or ``(B,)``.
        """
        charge = Charge(self.occupancy, per_row, per_sequence)
        return replace(self, charges=(*self.charges, charge))  # type: ignore[type-var]

    def uncharged(self) -> TokenBatch:
        """The same rows at the beginning of a layer, in which nothing has been charged yet."""
        return replace(self, charges=()) if self.charges else self  # type: ignore[type-var]

    def renewed(self) -> TokenBatch:
        """The same rows at the beginning of attention: halted ones and those that run are looked at as they are now."""
        return self

    def between(self, coming: int) -> TokenBatch:
        """The same rows when they have entered a layer: what the host has learned by now may cut their capacity.

        Args:
            coming: layers behind it.
        """
        return self

    def standing(self) -> tuple[Tensor, Tensor]:
        """The tokens that stand for their sequences, which have to be protected ones.

        Returns:
            Their last states ``(n, D)``, and of which sequences they are, ``(n,)``, rising. Those are the sequences
            that have rows left; where only the device knows which, all are, and of the others any state.
        """
        here = self.occupancy.counts() > 0
        if self.memory is None:  # one of each sequence is among the rows, in their order
            states = self.hidden[self.occupancy.rows(self.sequences.read) & (self.occupancy.weights > 0.5)]
        else:  # it may have halted
            states = self.restore()[self.sequences.read & here[:, None]]
        return states, here.nonzero().squeeze(1)

    def unpool(self, hidden: Tensor) -> TokenBatch:
        """Every token as a row of its own again, with these states ``(B, N, D)``."""
        start = type(self).start(hidden, self.sequences)  # type: ignore[attr-defined]
        return replace(start, carry=self.carry, charges=self.charges)

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
    joined = torch.arange(real.numel() + 1, device=real.device).index_copy(0, members, firsts)
    joined = joined[:-1].view(batch, positions)  # the last is filler's
    begins = torch.arange(batch, device=real.device)[:, None] * positions
    return occupancy.shared(joined - begins) if occupancy.merged is not None else joined - begins
