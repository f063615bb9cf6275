"""Static rows: packed execution that waits for nobody, as it runs on an accelerator.

To know how many rows are alive, the host would have to wait for the device, in every layer. So rows have a *capacity*,
a number of the host at least as large as the rows alive, from a ladder of few; the rows behind those alive are
*filler*: they belong to no sequence, are attended by none, and what becomes of them reaches nobody. Decisions are
arithmetic on the device. The host learns a count while later layers are under way, and then cuts the capacity: the
number alive only falls, so an old count is a safe bound.

Shapes as everywhere, and C for the capacity; filler has the input position ``B * N``, one behind the last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, ClassVar

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor

from skim.engine.kernels.static import compact, retire_rows
from skim.engine.packed import PackedOccupancy, shares
from skim.engine.pooling import openings, pooled
from skim.engine.tokens import Charge, Sequences, TokenBatch, merge
from skim.errors import SkimError

STEP = 64  # rows between the lower rungs
GROWTH = 1.15  # between the upper ones
LAG = 1  # layers that are under way when the host reads a count of those who entered one


@lru_cache(maxsize=4096)
def capacity(rows: int) -> int:
    """The lowest rung of the ladder that holds so many rows: multiples of 64, further up each 1.15 times the last."""
    rung = 0
    while rung < rows:
        rung = max(rung + STEP, STEP * int(rung * GROWTH / STEP))
    return rung


class Slot:
    """A place on the host for the numbers of one device, and an event that tells when they are there.

    Memory that a GPU may write to, and events, take long to make; so slots are used again, once they have been read.
    """

    free: ClassVar[dict[torch.device, list[Slot]]] = {}

    def __init__(self, device: torch.device) -> None:
        with torch.inference_mode(False):  # tensors made in it could not be written to outside
            if device.type == "cuda":
                self.places = torch.empty(2, dtype=torch.int32, pin_memory=True)  # else copies would wait
                self.told = self.places.numpy()
            else:
                self.told = numpy.empty(2, dtype=numpy.int32)
                self.places = torch.from_numpy(self.told)
        self.event = torch.cuda.Event() if device.type == "cuda" else None
        self.waits = device.type not in ("cuda", "cpu")  # without an event nothing tells that a copy has arrived

    @classmethod
    def of(cls, device: torch.device) -> Slot:
        """One that nobody waits for; threads may ask at the same time."""
        try:
            return cls.free.setdefault(device, []).pop()
        except IndexError:
            return cls(device)


class Pending:
    """Numbers of rows alive on their way from the device to the host.

    Args:
        bounds: of the rows, and of those that are looked at where these are others.
    """

    def __init__(self, bounds: tuple[Tensor, ...]) -> None:
        self.bounds = bounds
        self.numbers: list[int] | None = None
        device = bounds[0].device
        self.slot = slot = Slot.of(device)
        for i, one in enumerate(bounds):
            slot.places[i : i + 1].copy_(one[-1:], non_blocking=not slot.waits)
        if slot.event is not None:
            slot.event.record(torch.cuda.current_stream(device))  # of the tensors' device, which may not be current

    def read(self) -> list[int]:
        """The numbers; the host waits only if the device has not come that far."""
        if self.numbers is None:
            slot = self.slot
            if slot.event is not None:
                slot.event.synchronize()
            self.numbers = slot.told[: len(self.bounds)].tolist()
            Slot.free[self.bounds[0].device].append(slot)
        return self.numbers


@dataclass(frozen=True)
class StaticOccupancy(PackedOccupancy):
    """Rows of all sequences behind one another, and filler behind them.

    Attributes:
        index: ``(C,)`` flat input position of each row, ``sequence * N + position``; rising; ``B * N`` on filler.
        bounds: ``(B + 1,)`` int32, where each sequence's rows begin and end; filler begins at the last.
    """

    @property
    def cumulative(self) -> Tensor:  # type: ignore[override]
        """``bounds``, which are int32 here, as kernels for variable lengths take them."""
        return self.bounds

    @property
    def trash(self) -> int:
        """The index of filler."""
        return self.sequences.real.numel()

    @cached_property
    def weights(self) -> Tensor:  # type: ignore[override]
        """``(1, C)`` bool, False on filler."""
        return (torch.arange(len(self.index), device=self.index.device) < self.bounds[-1])[None]

    @cached_property
    def rectangle(self) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("static rows have no rectangle of their own; see kernels/static.py")

    def by_sequence(self, function: Callable[..., tuple[Tensor, ...]], *values: Tensor) -> tuple[Tensor, ...]:
        return self.in_rectangle(function, *values)

    def only(self, rows: Tensor) -> PackedOccupancy:
        raise NotImplementedError("which rows are left is the device's to know; see compacted")

    def compacted(self, keep: Tensor) -> tuple[Tensor, StaticOccupancy]:
        """The rows that stay, at the front.

        Args:
            keep: ``(C,)`` bool, anything on filler.

        Returns:
            From where each row came ``(C,)``, 0 of filler; and the rows.
        """
        rows, index, bounds = compact(keep & self.weights[0], self.index, self.bounds, self.trash)
        return rows, replace(self, index=index, bounds=bounds)

    def cut(self, rows: int) -> StaticOccupancy:
        """The same with a capacity of so many rows, at least those alive."""
        return replace(self, index=self.index[:rows])

    def counts(self) -> Tensor:
        return self.bounds.diff().long()  # as everywhere

    def alive(self) -> Tensor:
        alive = self.sequences.real.new_zeros(self.trash + 1).index_fill(0, self.index, True)
        return self.shared(alive[:-1].view_as(self.sequences.real))

    def rows(self, values: Tensor) -> Tensor:
        if values is self.sequences.protected:  # what most methods ask for, in every layer
            return self.sequences.stay.index_select(0, self.index)[None]
        flat = values.flatten(0, 1)
        return F.pad(flat, (*[0, 0] * (flat.dim() - 1), 0, 1)).index_select(0, self.index)[None]

    def put(self, values: Tensor, into: Tensor) -> Tensor:
        places = F.pad(into.reshape(-1), (0, 1)).index_copy(0, self.index, values[0].to(into.dtype))
        return places[:-1].view_as(into)

    def add(self, values: Tensor, rows: Tensor) -> Tensor:
        raised = F.pad(values.reshape(-1), (0, 1)).index_add(0, self.index, rows[0].to(values.dtype))
        return raised[:-1].view_as(values)

    def follow(self, values: Tensor, later: StaticOccupancy) -> Tensor:  # type: ignore[override]
        if later.index is self.index:
            return values
        return values.index_select(1, self.where(later.index))

    def where(self, index: Tensor) -> Tensor:
        """Find rows with these indices among the present ones; filler finds filler, or the last row."""
        return torch.searchsorted(self.index, index).clamp_max(len(self.index) - 1)

    def among(self, others: StaticOccupancy) -> StaticOccupancy:  # type: ignore[override]
        there = self.sequences.real.new_zeros(self.trash + 1).index_fill(0, others.index, True)
        return self.compacted(there[self.index])[1]

    def spread(self, values: Tensor) -> Tensor:
        return F.pad(values, (0, 1)).index_select(0, self.sequence)[None]

    def largest(self, values: Tensor) -> Tensor:
        lowest = values.new_full((len(self.bounds),), -torch.inf)
        return lowest.scatter_reduce(0, self.sequence, values[0], "amax")[:-1]

    def rank(self, values: Tensor) -> Tensor:
        longest = self.sequences.real.shape[1]
        return torch.ops.skim.rank(values.detach(), self.index, self.cumulative, longest)


@dataclass(frozen=True)
class StaticTokens(TokenBatch):
    """States of the rows, filler included, ``(1, C, D)``.

    Attributes:
        left: ``(B * N + 1, D)``: last states of tokens that left, or halted; the last place takes filler's.
        memory: all rows that are looked at once some have halted.
        changed: rows that ran in the layer before, if others had halted; ``None``: all of the memory.
        current: False: rows have run since the memory took their states.
        pending: counts on their way to the host, oldest first, each with the rows that it counts.
    """

    hidden: Tensor
    occupancy: StaticOccupancy
    sequences: Sequences
    left: Tensor
    memory: StaticTokens | None = None
    source: StaticTokens | None = None
    carry: Any = None
    charges: tuple[Charge, ...] = ()
    changed: StaticOccupancy | None = None
    current: bool = True
    pending: tuple[Pending, ...] = ()

    @classmethod
    def start(cls, hidden: Tensor, sequences: Sequences, total: int | None = None) -> StaticTokens:
        """All real tokens, of which there are ``total``, or at most; ``None``: the host has to take places for all."""
        places = sequences.real.numel()
        total = sequences.total if total is None else total
        rows = hidden.reshape(1, places, -1)
        bounds = F.pad(sequences.lengths.cumsum(0), (1, 0)).int()
        index = torch.arange(places, device=hidden.device)
        if total is None or total < places:
            _, index, _ = compact(sequences.real.reshape(-1), index, index[:0], places)
            index = index if total is None else index[: capacity(total)]
            rows = rows.index_select(1, index.clamp_max(places - 1))
        left = rows.new_zeros(places + 1, rows.shape[-1])
        return cls(rows, StaticOccupancy(index, bounds, sequences), sequences, left)

    def with_hidden(self, hidden: Tensor) -> StaticTokens:
        return replace(self, hidden=hidden, current=False)

    def retire(self, keep: Tensor) -> StaticTokens:
        return self._only(keep, self.sequences.stay)

    def leave(self, gone: Tensor) -> StaticTokens:
        return self._only(self.occupancy.spread(~gone), None)

    def _only(self, keep: Tensor, stay: Tensor | None) -> StaticTokens:
        """The rows that ``keep`` ``(1, C)`` or ``stay`` name; the others' states go where ``restore`` finds them."""
        now, rows = self.renewed(), self.occupancy
        left = self.left if now.memory is None else None  # else they are there already
        hidden, occupancy = self._moved(keep, stay, left)
        if now.memory is None:
            return replace(self, hidden=hidden, occupancy=occupancy)
        # who left is in the memory no longer: those that ran until now and do not run on
        nowhere = self.sequences.real.new_zeros(rows.trash + 1)
        gone = nowhere.index_fill(0, rows.index, True).index_fill(0, occupancy.index, False)
        kept, looked_at = now.memory.occupancy.compacted(~gone[now.memory.occupancy.index])
        memory = replace(now.memory, hidden=now.memory.hidden.index_select(1, kept), occupancy=looked_at)
        changed = None if now.changed is None else now.changed.among(looked_at)
        return replace(now, hidden=hidden, occupancy=occupancy, memory=memory, changed=changed, current=True)

    def halt(self, running: Tensor) -> StaticTokens:
        now = self.renewed()
        if now.memory is None:
            now.put_back()
            now = replace(now, memory=replace(now, source=None, carry=None, charges=(), pending=()))
        hidden, occupancy = now._moved(running, None, None)
        return replace(now, hidden=hidden, occupancy=occupancy, current=True)

    def _moved(self, keep: Tensor, stay: Tensor | None, left: Tensor | None) -> tuple[Tensor, StaticOccupancy]:
        """States and occupancy of the rows that stay; see :func:`skim.engine.kernels.static.retire_rows`."""
        rows, covered = self.occupancy, self.sequences.covered
        retire = retire_rows if torch.is_grad_enabled() else torch.ops.skim.retire
        hidden, index, bounds, _ = retire(self.hidden, keep, stay, rows.index, rows.bounds, left, rows.trash, covered)
        return hidden, replace(rows, index=index, bounds=bounds)

    def put_back(self) -> Tensor:
        """The buffer of last states with the present ones written into it.

        In place, although an earlier batch may hold the same buffer: that batch still has every row it would read from
        here among its own states, and writes those first.
        """
        return self.left.index_copy_(0, self.occupancy.index, self.hidden[0].to(self.left.dtype))

    def renewed(self) -> StaticTokens:
        if self.memory is None or self.current:
            return self
        looked_at = self.memory.occupancy
        hidden = self.put_back().index_select(0, looked_at.index)[None]
        memory = replace(self.memory, hidden=hidden.to(self.memory.hidden.dtype))
        return replace(self, memory=memory, changed=self.occupancy, current=True)

    def wanting(self, known: bool) -> tuple[StaticTokens, Tensor | None]:
        """Rows that are looked at whose keys and values are missing.

        Args:
            known: those of rows that did not run in the layer before are there already.

        Returns:
            The rows, and where they are among all that are looked at, filler behind them; ``None``: they are all.
        """
        others = self.others
        assert others is not None
        if not known or self.changed is None:
            return others, None
        hidden = self.left.index_select(0, self.changed.index)[None].to(others.hidden.dtype)
        places = torch.searchsorted(others.occupancy.index, self.changed.index)
        return replace(others, hidden=hidden, occupancy=self.changed), places

    def pool(self, stride: int, alone: Tensor, kind: str = "mean", pads: bool = False) -> StaticTokens:
        if pads:
            raise SkimError("Windows over pads need pads; use execution=masked, or the method without preset=paper.")
        if self.memory is not None:
            raise SkimError("Halted tokens cannot be merged; pool first.")
        rows, there = self.occupancy, self.occupancy.weights[0]
        index, bounds = rows.index, rows.bounds
        # a sequence without rows begins where the next one does, or where filler does
        first = there.new_zeros(len(index) + 1).index_fill(0, bounds[:-1].long(), True)[:-1]
        opening = openings(first, alone.view(-1), stride) & there
        opens, occupancy = rows.compacted(opening)
        ends = torch.where(occupancy.weights[0], opens, bounds[-1])
        size = torch.cat([ends, bounds[-1:]]).diff()
        hidden = pooled(self.hidden[0], opens, size.clamp_min(1), kind, stride)[None]
        window = (opening.cumsum(0) - 1).clamp_min(0)
        merged = merge(rows, index, occupancy.index[window])
        return replace(self, hidden=hidden, occupancy=replace(occupancy, merged=merged))

    def join(self, joins: Tensor, into: Tensor) -> StaticTokens:
        if self.memory is not None:
            raise SkimError("Halted tokens cannot be merged; join first.")
        rows = self.occupancy
        joins = joins & rows.weights
        states, row = shares(self.hidden[0], rows, joins, into)
        kept, occupancy = rows.compacted(~joins[0])
        hidden = torch.zeros_like(states).index_add(0, row, states).index_select(0, kept)[None]
        merged = merge(rows, rows.index, rows.index[row])
        return replace(self, hidden=hidden, occupancy=replace(occupancy, merged=merged))

    def standing(self) -> tuple[Tensor, Tensor]:
        sequences = self.sequences
        line = torch.arange(len(sequences.real), device=sequences.real.device)
        places = line * sequences.real.shape[1] + sequences.read.int().argmax(1)
        if self.memory is not None:  # it may have halted
            return self.restore().flatten(0, 1).index_select(0, places), line
        return self.hidden[0].index_select(0, self.occupancy.where(places)), line

    def restore(self) -> Tensor:
        states = self.left.index_copy(0, self.occupancy.index, self.hidden[0].to(self.left.dtype))
        return self.occupancy.shared(states[:-1].view(*self.sequences.real.shape, -1))

    def between(self, coming: int) -> StaticTokens:
        pending, known = self.heard(self.pending, coming)
        return replace(self if known is None else self.known(*known), pending=pending)

    def heard(self, pending: tuple[Pending, ...], coming: int) -> tuple[tuple[Pending, ...], list[int] | None]:
        """Send the present numbers to the host, and read the oldest of those on their way if it is its turn.

        Args:
            pending: those on their way, oldest first.
            coming: layers behind the one that was entered.

        Returns:
            Those on their way now; and the numbers read, as :meth:`known` takes them, if any.
        """
        sends = coming >= LAG  # else nobody would read them
        if sends:
            pending = (*pending, self.counted(pending[-1] if pending else None))
        if len(pending) <= (LAG if sends else 0):
            return pending, None
        return pending[1:], pending[0].read()

    def counted(self, latest: Pending | None) -> Pending:
        """The present numbers, on their way; those that were counted last if nothing has changed since."""
        rows, memory = self.occupancy, self.memory
        counted = (rows.bounds,) if memory is None else (rows.bounds, memory.occupancy.bounds)
        if latest is None or any(a is not b for a, b in zip(latest.bounds, counted, strict=False)):
            return Pending(counted)
        return latest

    def known(self, alive: int, looked_at: int | None = None) -> StaticTokens:
        """The same with the capacities for so many rows, if that is less than now."""
        cut = self.cut(alive)
        if self.memory is None or looked_at is None:
            return cut
        memory = self.memory.cut(looked_at)
        return cut if memory is self.memory else replace(cut, memory=memory)

    def cut(self, alive: int) -> StaticTokens:
        """The same with the capacity for so many rows, if that is less than now."""
        rows = capacity(alive)
        if rows >= self.occupancy.computed:
            return self
        return replace(self, hidden=self.hidden[:, :rows], occupancy=self.occupancy.cut(rows))
