"""Packed execution: one row of all alive tokens of the batch, no pads; who leaves is gone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from skim.engine.pooling import openings, pooled
from skim.engine.tokens import Charge, Occupancy, Sequences, TokenBatch, merge
from skim.errors import SkimError


class Group(NamedTuple):
    """Sequences whose attention is one call; ``full`` if none is shorter than ``length``."""

    sequences: int
    length: int
    full: bool


class Blocks(NamedTuple):
    """Rows put into rectangles, one for each length: P places.

    Attributes:
        rows: ``(P,)`` the row in each place; a sequence's last row stands again in the places left over.
        back: ``(T,)`` the place of each row.
        taken: ``(P,)`` bool, False on places left over.
        groups: the rectangles, one behind the other.
    """

    rows: Tensor
    back: Tensor
    taken: Tensor
    groups: list[Group]


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

    @property
    def computed(self) -> int:
        return len(self.index)

    @property
    def places(self) -> Tensor:
        return self.index

    @cached_property
    def position(self) -> Tensor:  # type: ignore[override]
        """``(1, T)``."""
        return (self.index % self.sequences.real.shape[1])[None]

    @cached_property
    def cumulative(self) -> Tensor:
        """``bounds`` in int32, as kernels for variable lengths take them: once per decision, not per attention."""
        return self.bounds.int()

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
        """Place of each row in ``B`` rows of N places, ``(T,)`` flat, and a mask of places that are taken, ``(B, N)``.

        N and not the longest survivor, because knowing that one would wait for the device.
        """
        positions = self.sequences.real.shape[1]
        taken = torch.arange(positions, device=self.index.device) < self.bounds.diff()[:, None]
        return self.sequence * positions + self.place, taken

    def in_rectangle(self, function: Callable[..., tuple[Tensor, ...]], *values: Tensor) -> tuple[Tensor, ...]:
        """As :meth:`by_sequence`, in one rectangle ``(B, N)``: no shape depends on who is alive."""
        batch, positions = self.sequences.real.shape
        slots = (self.sequence * positions + self.place).clamp_max(batch * positions)  # the last is filler's

        def spread(rows: Tensor) -> Tensor:
            places = rows.new_zeros(batch * positions + 1, *rows.shape[2:]).index_copy(0, slots, rows[0])
            return places[:-1].unflatten(0, (batch, positions))

        return tuple(F.pad(found.flatten(), (0, 1))[slots][None] for found in function(*map(spread, values)))

    def by_sequence(self, function: Callable[..., tuple[Tensor, ...]], *values: Tensor) -> tuple[Tensor, ...]:
        if self.index.is_cuda:  # to know the lengths would be to wait
            return self.in_rectangle(function, *values)
        rows, back, _, groups = self.blocks(1)
        parts = [value[0].index_select(0, rows) for value in values]
        made, end = [], 0
        for many, length, _ in groups or [Group(0, 1, True)]:
            begin, end = end, end + many * length
            made.append(function(*(part[begin:end].unflatten(0, (many, length)) for part in parts)))
        return tuple(torch.cat([one.flatten() for one in found])[back][None] for found in zip(*made, strict=True))

    @cached_property
    def lengths(self) -> list[int]:
        """Rows of each sequence, on the host."""
        return [len(self.index)] if len(self.bounds) == 2 else self.bounds.diff().tolist()

    @cached_property
    def _blocks(self) -> dict[int, Blocks]:
        return {}

    def blocks(self, multiple: int) -> Blocks:
        """Sequences of about equal length side by side, so that one attention call serves them all.

        Args:
            multiple: lengths are rounded up to multiples of it.
        """
        if multiple not in self._blocks:
            self._blocks[multiple] = self._side_by_side(multiple)
        return self._blocks[multiple]

    def _side_by_side(self, multiple: int) -> Blocks:
        counts, order = self.bounds.diff().sort(stable=True)
        sizes = (counts + (multiple - 1)) // multiple * multiple
        places = sum(-(-length // multiple) * multiple for length in self.lengths)
        member = torch.arange(len(order), device=order.device).repeat_interleave(sizes, output_size=places)
        place = torch.arange(places, device=order.device) - (sizes.cumsum(0) - sizes)[member]
        last = counts[member] - 1
        rows = self.bounds[order][member] + place.minimum(last)
        taken = place <= last
        back = torch.empty_like(self.index).index_copy_(0, rows[taken], taken.nonzero().squeeze(1))
        groups = []
        for size, some in groupby(sorted(self.lengths), lambda length: -(-length // multiple) * multiple):
            lengths = list(some)
            if size:
                groups.append(Group(len(lengths), size, lengths[0] == size))
        return Blocks(rows, back, taken, groups)

    def only(self, rows: Tensor) -> PackedOccupancy:
        """Some of the rows, by their numbers, rising."""
        return replace(self, index=self.index[rows], bounds=torch.searchsorted(rows, self.bounds))

    def counts(self) -> Tensor:
        return self.bounds.diff()

    def alive(self) -> Tensor:
        alive = torch.zeros_like(self.sequences.real)
        alive.view(-1)[self.index] = True
        return self.shared(alive)

    def rows(self, values: Tensor) -> Tensor:
        return values.flatten(0, 1).index_select(0, self.index)[None]

    def put(self, values: Tensor, into: Tensor) -> Tensor:
        return into.reshape(-1).index_copy(0, self.index, values[0].to(into.dtype)).view_as(into)

    def follow(self, values: Tensor, later: PackedOccupancy) -> Tensor:  # type: ignore[override]
        if later.index is self.index:
            return values
        return values.index_select(1, torch.searchsorted(self.index, later.index))

    def among(self, others: PackedOccupancy) -> PackedOccupancy:  # type: ignore[override]
        return self.only(torch.isin(self.index, others.index).nonzero().squeeze(1))

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
    source: PackedTokens | None = None
    carry: Any = None
    charges: tuple[Charge, ...] = ()
    within: Tensor | None = None  # (T,) where the rows are among the memory's, if others have halted
    changed: Tensor | None = None  # rows of the memory that are new since the layer before; None: all
    current: bool = True  # False: rows have run since the memory took their states

    @classmethod
    def start(cls, hidden: Tensor, sequences: Sequences) -> PackedTokens:
        index = sequences.real.reshape(-1).nonzero().squeeze(1)
        bounds = F.pad(sequences.lengths.cumsum(0), (1, 0))
        rows = hidden.reshape(1, -1, hidden.shape[-1])
        if len(index) < rows.shape[1]:
            rows = rows[:, index]
        return cls(rows, PackedOccupancy(index, bounds, sequences), sequences)

    def with_hidden(self, hidden: Tensor) -> PackedTokens:
        return replace(self, hidden=hidden, current=False)

    def renewed(self) -> PackedTokens:
        if self.memory is None or self.current:
            return self
        return replace(self, memory=self._memory(), changed=self.within, current=True)

    def retire(self, keep: Tensor) -> PackedTokens:
        index, bounds = self.occupancy.index, self.occupancy.bounds
        keep = (keep.view(-1) > 0.5) | self.sequences.protected.view(-1)[index]
        if not self.sequences.covered:
            survivors = F.pad(keep.cumsum(0), (1, 0))[bounds].diff()
            lost = (survivors == 0) & (bounds.diff() > 0)
            keep = keep.index_put((bounds[:-1][lost],), keep.new_ones(()))
        return self._only(keep)

    def leave(self, gone: Tensor) -> PackedTokens:
        return self._only(~gone[self.occupancy.sequence])

    def _only(self, keep: Tensor) -> PackedTokens:
        """The rows that ``keep`` ``(T,)`` names; the others' states are put where ``restore`` finds them."""
        rows = keep.nonzero().squeeze(1)  # the one host sync of a packed layer: the new T must be known
        if len(rows) == len(keep):
            return self
        if self.memory is not None:
            return self._forget(rows, keep)
        hidden = self.hidden.index_select(1, rows)
        return replace(self, hidden=hidden, occupancy=self.occupancy.only(rows), left=self._put_back())

    def _forget(self, rows: Tensor, keep: Tensor) -> PackedTokens:
        """As :meth:`_only` where others have halted: those who leave are no longer in the memory either."""
        now = self.renewed()
        memory, within, changed = now.memory, now.within, now.changed
        assert memory is not None
        assert within is not None
        stays = torch.ones_like(memory.occupancy.index, dtype=torch.bool).index_copy(0, within, keep)
        place = stays.cumsum(0) - 1  # of each row that stays, among those that do
        if changed is not None:
            changed = place[changed[stays[changed]]]
        return replace(
            self,
            hidden=self.hidden.index_select(1, rows),
            occupancy=self.occupancy.only(rows),
            memory=memory._only(stays),
            within=place[within[rows]],
            changed=changed,
            current=True,
        )

    def halt(self, running: Tensor) -> PackedTokens:
        rows = (running.view(-1) > 0.5).nonzero().squeeze(1)  # the one host sync, as in retire
        if self.memory is None and len(rows) == running.numel():
            return self
        now = self.renewed()
        return replace(
            now,
            hidden=self.hidden.index_select(1, rows),
            occupancy=self.occupancy.only(rows),
            memory=now._memory(),
            within=rows if now.within is None else now.within[rows],
            current=True,
        )

    def _memory(self) -> PackedTokens:
        """All rows, halted ones included, as they are now."""
        if self.memory is None or self.within is None:
            return replace(self, source=None, carry=None, charges=())
        if self.current:
            return self.memory
        return replace(
            self.memory, hidden=self.memory.hidden.index_copy(1, self.within, self.hidden.to(self.memory.hidden.dtype))
        )

    def wanting(self, known: bool) -> tuple[PackedTokens, Tensor | None]:
        """Rows that are looked at whose keys and values are missing, those of sequences in which nobody runs left out.

        Args:
            known: those of rows that did not run in the layer before are there already.

        Returns:
            The rows, and where they are among all that are looked at; ``None``: they are all of them.
        """
        others = self.others
        assert others is not None
        looks = (self.occupancy.bounds.diff() > 0)[others.occupancy.sequence]
        if known and self.changed is not None:
            looks = looks & torch.zeros_like(looks).index_fill(0, self.changed, True)
        rows = looks.nonzero().squeeze(1)
        if len(rows) == len(looks):
            return others, None
        hidden = others.hidden.index_select(1, rows)
        return replace(others, hidden=hidden, occupancy=others.occupancy.only(rows)), rows

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
        hidden = pooled(self.hidden[0], opens, size, kind, stride)[None]
        merged = merge(self.occupancy, index, index[opens].repeat_interleave(size, output_size=len(index)))
        occupancy = PackedOccupancy(index[opens], torch.searchsorted(opens, bounds), self.sequences, merged)
        return replace(self, hidden=hidden, occupancy=occupancy)

    def join(self, joins: Tensor, into: Tensor) -> PackedTokens:
        if self.memory is not None:
            raise SkimError("Halted tokens cannot be merged; join first.")
        rows, stays = self.occupancy, ~joins.view(-1)
        kept = stays.nonzero().squeeze(1)  # the one host sync, as in retire
        if len(kept) == len(stays):
            return self
        states, row = shares(self.hidden[0], rows, joins, into)
        gone = joins.view(-1).nonzero().squeeze(1)
        place = (stays.cumsum(0) - 1)[row[gone]]
        hidden = states.index_select(0, kept).index_add(0, place, states.index_select(0, gone))
        merged = merge(rows, rows.index, rows.index[row])
        return replace(self, hidden=hidden[None], occupancy=replace(rows.only(kept), merged=merged))

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


def shares(hidden: Tensor, rows: PackedOccupancy, joins: Tensor, into: Tensor) -> tuple[Tensor, Tensor]:
    """Find what each row adds to the one that it becomes one with.

    Args:
        hidden: ``(T, D)``.
        rows: of the states.
        joins: ``(1, T)`` bool, as in :meth:`TokenBatch.join`.
        into: ``(1, T)`` int64, likewise.

    Returns:
        Its part of the mean, ``(T, D)``, and the number of that row, ``(T,)``: its own if it stays.
    """
    line = torch.arange(len(rows.index), device=rows.index.device)
    row = torch.where(joins.view(-1), rows.bounds[rows.sequence] + into.view(-1), line)
    sizes = rows.sizes[0].to(torch.promote_types(hidden.dtype, torch.float32))
    total = torch.zeros_like(sizes).index_add(0, row, sizes)
    return hidden * (sizes / total[row])[:, None].to(hidden.dtype), row
