"""The state that flows through the layers: which tokens are alive, where they sit, and what they last looked like.

Shapes, here and everywhere in skim: B sequences, N input positions, K rows of a narrowed batch, T packed tokens,
H heads, D width, L layers.

A :class:`TokenBatch` comes in three forms that share one set of operations, so a method is written once:

* :class:`MaskedTokens` - padded ``(B, N, D)``; retiring multiplies a differentiable mask. Nothing gets cheaper; this is
  how a method trains *through* its decisions.
* :class:`PackedTokens` - one row ``(1, T, D)`` of all alive tokens, no pads; retiring removes rows.
* :class:`NarrowedTokens` - padded ``(B, K, D)``, K the longest survivor; for families whose attention cannot be handed
  a function and so needs a rectangle.

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

from skim.engine.pooling import openings, pooled
from skim.errors import SkimError


@dataclass(frozen=True)
class Sequences:
    """What entered the encoder; never changes during a forward.

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
        """Where every token came in, ``(B, N)``; one tensor, so that ``is`` tells whether rows have moved."""
        return torch.arange(self.real.shape[1], device=self.real.device).expand_as(self.real)


class Occupancy:
    """Who is alive, and at which input position each row sits. Shared by all states between two retirements."""

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
        """What was given per input position, ``(B, N)``, at the present rows: ``(B, N)``, ``(1, T)`` or ``(B, K)``."""
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
        """What was given per sequence, ``(B,)``, at (or broadcastable to) its rows: ``(B, 1)`` or ``(1, T)``."""
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
        """Who attention looks at."""
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


@dataclass(frozen=True)
class MaskedOccupancy(Occupancy):
    """A mask over the padded batch.

    Attributes:
        sequences: what entered.
        kept: ``(B, N)`` running product of all decisions, decisions on pads included (only the published Transkimmer
            loss looks at those); ``None`` until the first decision.
        faded: ``(B, N)`` factors on this layer's output that leave attention alone (LTP's published soft stage).
    """

    sequences: Sequences
    kept: Tensor | None = None
    faded: Tensor | None = None
    merged: Tensor | None = None

    @property
    def position(self) -> Tensor:  # type: ignore[override]
        """``(B, N)``: every row is where it came in."""
        return self.sequences.position

    @property
    def weights(self) -> Tensor:  # type: ignore[override]
        """How much each row counts as a key, ``(B, N)``: 0 for pads and retired tokens; bool if nothing was decided."""
        return self.sequences.real if self.kept is None else self.kept * self.sequences.real

    def counts(self) -> Tensor:
        return self.weights.sum(1)

    def alive(self) -> Tensor:
        return self.weights > 0.5

    def rows(self, values: Tensor) -> Tensor:
        return values

    def put(self, values: Tensor, into: Tensor) -> Tensor:
        return values.to(into.dtype)


@dataclass(frozen=True)
class MaskedTokens(TokenBatch):
    """Padded states ``(B, N, D)`` under a mask.

    Retired rows go on being computed: nobody reads them, but the gradient of the mask does - it compares a token's last
    state with the one it would have had.
    """

    hidden: Tensor
    occupancy: MaskedOccupancy
    sequences: Sequences
    settled: Tensor | None = None  # (B, N, D): the states of rows retired so far, valid where kept == 0
    memory: MaskedTokens | None = None
    carry: Any = None

    @classmethod
    def start(cls, hidden: Tensor, sequences: Sequences) -> MaskedTokens:
        return cls(hidden, MaskedOccupancy(sequences), sequences)

    def retire(self, keep: Tensor) -> MaskedTokens:
        kept = self.occupancy.kept
        stay = self.sequences.protected
        if not (self.sequences.covered or self.sequences.run_on):
            stay = stay | last_tokens(self.occupancy.alive(), (keep > 0.5) | stay)
        keep = torch.where(stay, 1.0, keep.float())
        occupancy = MaskedOccupancy(self.sequences, keep if kept is None else kept * keep)
        return replace(self, occupancy=occupancy, settled=self.restore(), memory=None)

    def halt(self, running: Tensor) -> MaskedTokens:
        memory = self if self.memory is None else self.memory
        kept = self.occupancy.kept
        running = running.float() if kept is None else kept * running
        occupancy = MaskedOccupancy(self.sequences, running)
        return replace(self, occupancy=occupancy, settled=self.restore(), memory=memory)

    def leave(self, gone: Tensor) -> MaskedTokens:
        kept, stay = self.occupancy.kept, (~gone).float()[:, None].expand_as(self.sequences.real)
        occupancy = MaskedOccupancy(self.sequences, stay if kept is None else kept * stay)
        return replace(self, occupancy=occupancy, settled=self.restore(), memory=None)

    def pool(self, stride: int, alone: Tensor, kind: str = "mean", pads: bool = False) -> NarrowedTokens:
        kept = self.occupancy.kept
        if self.memory is not None or (kept is not None and kept.requires_grad):
            raise SkimError("Tokens that have halted, or whose decisions are relaxed, cannot be merged; pool first.")
        start = replace(NarrowedTokens.start(self.hidden, self.sequences), carry=self.carry)
        if kept is not None:
            start = replace(start, left=F.pad(self.restore(), (0, 0, 0, 1)))
            start = replace(start, occupancy=replace(start.occupancy, weights=self.occupancy.weights > 0.5))
        return start.pool(stride, alone, kind, pads)

    def fade(self, factors: Tensor) -> MaskedTokens:
        """Note factors ``(B, N)`` for this layer's output, without anybody leaving; the method applies them there."""
        return replace(self, occupancy=replace(self.occupancy, faded=factors))

    def restore(self) -> Tensor:
        kept = self.occupancy.kept
        if kept is None or self.settled is None or self.sequences.run_on:
            return self.hidden
        kept = kept[..., None].to(self.hidden.dtype)
        return self.settled * (1 - kept) + self.hidden * kept


@dataclass(frozen=True)
class PackedOccupancy(Occupancy):
    """Rows of all sequences behind one another, without pads.

    Attributes:
        index: ``(T,)`` flat input position of each row, ``sequence * N + position``; rising.
        bounds: ``(B + 1,)`` where each sequence's rows begin and end.
        sequences: what entered.
    """

    index: Tensor
    bounds: Tensor
    sequences: Sequences
    merged: Tensor | None = None

    @cached_property
    def position(self) -> Tensor:  # type: ignore[override]
        """``(1, T)``."""
        return (self.index % self.sequences.real.shape[1])[None]

    @property
    def weights(self) -> Tensor:  # type: ignore[override]
        """``(1, T)``, all alike: who does not count is not here."""
        return torch.ones_like(self.position, dtype=torch.bool)

    @cached_property
    def sequence(self) -> Tensor:
        """Which sequence each row is of, ``(T,)``."""
        return self.index // self.sequences.real.shape[1]

    @cached_property
    def place(self) -> Tensor:
        """Each row's place among its sequence's rows, ``(T,)``."""
        return torch.arange(len(self.index), device=self.index.device) - self.bounds[self.sequence]

    @cached_property
    def rectangle(self) -> tuple[Tensor, Tensor]:
        """Where each row sits in ``B`` rows of N places, ``(T,)`` flat, and which places are taken, ``(B, N)`` bool.

        N and not the longest survivor, because knowing that one would wait for the device.
        """
        positions = self.sequences.real.shape[1]
        taken = torch.arange(positions, device=self.index.device) < self.bounds.diff()[:, None]
        return self.sequence * positions + self.place, taken

    @cached_property
    def by_length(self) -> tuple[Tensor, Tensor, list[tuple[int, int]]]:
        """Sequences of equal length side by side, so that one attention call serves them all.

        Returns:
            The rows in that order ``(T,)``, the way back ``(T,)``, and the groups as (sequences, length).
        """
        counts, order = self.bounds.diff().sort(stable=True)
        total = torch.arange(len(self.index), device=self.index.device)
        shift = self.bounds[:-1][order] - (counts.cumsum(0) - counts)
        rows = total + shift.repeat_interleave(counts, output_size=len(self.index))
        lengths, sizes = counts.unique_consecutive(return_counts=True)
        groups = [(size, length) for size, length in zip(sizes.tolist(), lengths.tolist(), strict=True) if length]
        return rows, torch.empty_like(rows).index_copy_(0, rows, total), groups

    def counts(self) -> Tensor:
        return self.bounds.diff()

    def alive(self) -> Tensor:
        alive = torch.zeros_like(self.sequences.real)
        alive.view(-1)[self.index] = True
        return self.shared(alive)

    def rows(self, values: Tensor) -> Tensor:
        return values.reshape(1, -1)[:, self.index]

    def put(self, values: Tensor, into: Tensor) -> Tensor:
        return into.reshape(-1).index_copy(0, self.index, values[0].to(into.dtype)).view_as(into)

    def spread(self, values: Tensor) -> Tensor:
        return values[self.sequence][None]

    def largest(self, values: Tensor) -> Tensor:
        lowest = values.new_full((len(self.bounds) - 1,), -torch.inf)
        return lowest.scatter_reduce(0, self.sequence, values[0], "amax")

    def rank(self, values: Tensor) -> Tensor:
        falling = values[0].argsort(descending=True, stable=True)
        order = falling[self.sequence[falling].argsort(stable=True)]  # sequence by sequence, falling in each
        return torch.empty_like(order).scatter_(0, order, self.place)[None]


@dataclass(frozen=True)
class PackedTokens(TokenBatch):
    """Alive states only, ``(1, T, D)``."""

    hidden: Tensor
    occupancy: PackedOccupancy
    sequences: Sequences
    left: Tensor | None = None  # (B * N, D): last states of rows that left; None while nobody has
    memory: PackedTokens | None = None
    carry: Any = None
    within: Tensor | None = None  # (T,) where the rows are among the memory's, if others have halted
    changed: Tensor | None = None  # rows of the memory that are new since the layer before; None: all

    @classmethod
    def start(cls, hidden: Tensor, sequences: Sequences) -> PackedTokens:
        index = sequences.real.reshape(-1).nonzero().squeeze(1)
        bounds = F.pad(sequences.lengths.cumsum(0), (1, 0))
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        if len(index) < rows.shape[1]:
            rows = rows[:, index]
        return cls(rows, PackedOccupancy(index, bounds, sequences), sequences)

    def retire(self, keep: Tensor) -> PackedTokens:
        if self.memory is not None:
            raise SkimError("Tokens cannot retire where others have halted: who has halted is still looked at.")
        index, bounds = self.occupancy.index, self.occupancy.bounds
        keep = (keep.view(-1) > 0.5) | self.sequences.protected.view(-1)[index]
        if not self.sequences.covered:
            survivors = F.pad(keep.cumsum(0), (1, 0))[bounds].diff()
            lost = (survivors == 0) & (bounds.diff() > 0)
            keep = keep.index_put((bounds[:-1][lost],), keep.new_ones(()))
        return self._only(keep)

    def leave(self, gone: Tensor) -> PackedTokens:
        if self.memory is not None:
            raise SkimError("Sequences cannot leave where tokens have halted: who has halted is still looked at.")
        return self._only(~gone[self.occupancy.sequence])

    def _only(self, keep: Tensor) -> PackedTokens:
        """The rows that ``keep`` ``(T,)`` says; the others' states are put where ``restore`` finds them."""
        rows = keep.nonzero().squeeze(1)  # the one host sync of a packed layer: the new T must be known
        if len(rows) == len(keep):
            return self
        bounds = torch.searchsorted(rows, self.occupancy.bounds)
        occupancy = replace(self.occupancy, index=self.occupancy.index[rows], bounds=bounds)
        return replace(self, hidden=self.hidden.index_select(1, rows), occupancy=occupancy, left=self._put_back())

    def halt(self, running: Tensor) -> PackedTokens:
        rows = (running.view(-1) > 0.5).nonzero().squeeze(1)  # the one host sync, as in retire
        memory, within = self._memory(), self.within
        occupancy = replace(
            self.occupancy,
            index=self.occupancy.index[rows],
            bounds=torch.searchsorted(rows, self.occupancy.bounds),
        )
        return replace(
            self,
            hidden=self.hidden.index_select(1, rows),
            occupancy=occupancy,
            memory=memory,
            within=rows if within is None else within[rows],
            changed=within,
        )

    def _memory(self) -> PackedTokens:
        """All rows, halted ones included, as they are now."""
        if self.memory is None or self.within is None:
            return replace(self, memory=None, carry=None)
        return replace(self.memory, hidden=self.memory.hidden.index_copy(1, self.within, self.hidden))

    def wanting(self, known: bool) -> tuple[PackedTokens, Tensor | None]:
        """Rows of the memory whose keys and values are missing, those of sequences in which nobody runs left out.

        Args:
            known: those of rows that did not run in the layer before are there already.

        Returns:
            The rows, and where they are among the memory's; ``None``: they are all of them.
        """
        memory = self.memory
        assert memory is not None
        looks = (self.occupancy.bounds.diff() > 0)[memory.occupancy.sequence]
        if known and self.changed is not None:
            looks = looks & torch.zeros_like(looks).index_fill(0, self.changed, True)
        rows = looks.nonzero().squeeze(1)
        if len(rows) == len(looks):
            return memory, None
        bounds = torch.searchsorted(rows, memory.occupancy.bounds)
        occupancy = replace(memory.occupancy, index=memory.occupancy.index[rows], bounds=bounds)
        return replace(memory, hidden=memory.hidden.index_select(1, rows), occupancy=occupancy), rows

    def pool(self, stride: int, alone: Tensor, kind: str = "mean", pads: bool = False) -> PackedTokens:
        if pads:
            raise SkimError("Windows over pads need pads; use execution=masked, or the method without preset=paper.")
        if self.memory is not None:
            raise SkimError("Halted tokens cannot be merged; pool first.")
        index, bounds = self.occupancy.index, self.occupancy.bounds
        first = torch.zeros_like(index, dtype=torch.bool).index_fill(0, bounds[:-1][bounds.diff() > 0], True)
        opening = openings(first, alone.view(-1), stride)
        opens = opening.nonzero().squeeze(1)
        size = F.pad(opens, (0, 1), value=len(index)).diff()
        hidden = pooled(self.hidden[0], opens, size, kind)[None]
        merged = merge(self.occupancy, index, index[opens].repeat_interleave(size, output_size=len(index)))
        occupancy = PackedOccupancy(index[opens], torch.searchsorted(opens, bounds), self.sequences, merged)
        return replace(self, hidden=hidden, occupancy=occupancy)

    def _put_back(self) -> Tensor:
        """The buffer of last states with the current states written into it.

        In place, although an earlier batch may hold the same buffer: that batch still has every row it would read from
        here among its own states, and writes those first.
        """
        if self.left is None:
            left = self.hidden.new_zeros(self.sequences.real.numel(), self.hidden.shape[-1])
        else:
            left = self.left
        return left.index_copy_(0, self.occupancy.index, self.hidden[0].to(left.dtype))

    def restore(self) -> Tensor:
        if self.within is not None:
            return self._memory().restore()
        if self.left is None:
            states = self.hidden[0] if self._full else self._put_back()
        else:  # a copy: what is handed out must not change under a later retirement
            states = self.left.index_copy(0, self.occupancy.index, self.hidden[0].to(self.left.dtype))
        return self.occupancy.shared(states.view(*self.sequences.real.shape, -1))

    @property
    def _full(self) -> bool:
        return len(self.occupancy.index) == self.sequences.real.numel()


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


def last_tokens(alive: Tensor, keep: Tensor) -> Tensor:
    """The first alive token of every sequence that ``keep`` would empty; all three are ``(B, N)`` bool."""
    lost = alive.any(1) & ~(alive & keep).any(1)
    first = F.one_hot(alive.int().argmax(1), alive.shape[1]).bool()
    return first & lost[:, None]


def merge(occupancy: Occupancy, members: Tensor, firsts: Tensor) -> Tensor:
    """Where each token's row sits, ``(B, N)``, once rows at flat positions ``members`` have joined ``firsts``."""
    real = occupancy.sequences.real
    batch, positions = real.shape
    joined = torch.arange(real.numel(), device=real.device).index_copy(0, members, firsts).view(batch, positions)
    begins = torch.arange(batch, device=real.device)[:, None] * positions
    return occupancy.shared(joined - begins) if occupancy.merged is not None else joined - begins
