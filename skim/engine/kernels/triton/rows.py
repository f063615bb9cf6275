"""Rows leave, and the others close up: a decision becomes new rows in two launches, whatever it says.

The first kernel counts who stays in each sequence. The second has one program per sequence and slice of the states: it
adds up the counts of the sequences before its own, numbers its rows by a running sum, and puts each at its new place,
its state included; who leaves goes to the buffer of last states, and what is left behind the rows becomes filler.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _staying(keep, stay, index, row, end, STAY: tl.constexpr):
    """Decisions on a block of rows: those that stay, by ``keep`` or in any case."""
    there = row < end
    stays = tl.load(keep + row, mask=there, other=0).to(tl.float32) > 0.5
    if STAY:
        place = tl.load(index + row, mask=there, other=0)
        stays = stays | (tl.load(stay + place, mask=there, other=0) != 0)
    return stays & there


@triton.jit
def _count(keep, stay, index, bounds, counts, STAY: tl.constexpr, BLOCK: tl.constexpr):
    """Rows of each sequence that stay, ``(B,)`` int32; grid (B,)."""
    sequence = tl.program_id(0)
    begin = tl.load(bounds + sequence).to(tl.int32)
    end = tl.load(bounds + sequence + 1).to(tl.int32)
    total = tl.zeros((BLOCK,), tl.int32)
    for first in range(begin, end, BLOCK):
        total += _staying(keep, stay, index, first + tl.arange(0, BLOCK), end, STAY).to(tl.int32)
    tl.store(counts + sequence, tl.sum(total))


@triton.jit(do_not_specialize=["rows", "trash"])
def _move(
    hidden, keep, stay, index, bounds, counts, left, moved, here, ends, source, rows, trash, sequences, width, line,
    STAY: tl.constexpr, RESCUE: tl.constexpr, LEFT: tl.constexpr, BATCH: tl.constexpr, BLOCK: tl.constexpr,
    SLICE: tl.constexpr,
):  # fmt: skip
    """States ``(C, D)``, index ``(C,)``, bounds ``(B + 1,)`` and source ``(C,)`` of the new rows; grid (B, slices)."""
    sequence, part = tl.program_id(0), tl.program_id(1)
    begin = tl.load(bounds + sequence).to(tl.int32)
    end = tl.load(bounds + sequence + 1).to(tl.int32)
    every = tl.arange(0, BATCH)
    kept = tl.load(counts + every, mask=every < sequences, other=0)
    if RESCUE:  # a sequence that would lose all its rows keeps the first
        first_ones = tl.load(bounds + every, mask=every < sequences, other=0)
        last_ones = tl.load(bounds + every + 1, mask=every < sequences, other=0)
        kept = tl.where((kept == 0) & (last_ones > first_ones), 1, kept)
        saved = tl.where(tl.load(counts + sequence) == 0, begin, -1)
    alive = tl.sum(kept)
    place = tl.sum(tl.where(every < sequence, kept, 0))
    own = tl.sum(tl.where(every == sequence, kept, 0))
    if part == 0:
        tl.store(ends + sequence + 1, (place + own).to(ends.dtype.element_ty))
        if sequence == 0:
            tl.store(ends, tl.zeros((), ends.dtype.element_ty))
    column = part * SLICE + tl.arange(0, SLICE)
    inside = (column < width)[None, :]
    for first in range(begin, end, BLOCK):
        row = first + tl.arange(0, BLOCK)
        stays = _staying(keep, stay, index, row, end, STAY)
        if RESCUE:
            stays = stays | ((row == saved) & (row < end))
        to = place + tl.cumsum(stays.to(tl.int32), 0) - 1
        position = tl.load(index + row, mask=row < end, other=0)
        state = tl.load(hidden + row.to(tl.int64)[:, None] * line + column, mask=(row < end)[:, None] & inside)
        tl.store(moved + to.to(tl.int64)[:, None] * width + column, state, mask=stays[:, None] & inside)
        if LEFT:
            leaves = (row < end) & ~stays
            spot = left + position.to(tl.int64)[:, None] * width + column
            tl.store(spot, state.to(left.dtype.element_ty), mask=leaves[:, None] & inside)
        if part == 0:
            tl.store(here + to, position, mask=stays)
            tl.store(source + to, row.to(source.dtype.element_ty), mask=stays)
        place += tl.sum(stays.to(tl.int32))
    spare = tl.load(hidden + column, mask=column < width)  # filler takes the first row's state: any that is a number
    for first in range(alive + sequence * BLOCK, rows, sequences * BLOCK):
        row = first + tl.arange(0, BLOCK)
        there = row < rows
        state = tl.broadcast_to(spare[None, :], (BLOCK, SLICE))
        tl.store(moved + row.to(tl.int64)[:, None] * width + column, state, mask=there[:, None] & inside)
        if part == 0:
            tl.store(here + row, tl.zeros((BLOCK,), here.dtype.element_ty) + trash, mask=there)
            tl.store(source + row, tl.zeros((BLOCK,), source.dtype.element_ty), mask=there)


def retire(
    hidden: Tensor,
    keep: Tensor,
    stay: Tensor | None,
    index: Tensor,
    bounds: Tensor,
    left: Tensor | None,
    trash: int,
    covered: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Let rows leave, and the others close up, in their order; no host read, capturable.

    Args:
        hidden: ``(1, C, D)``.
        keep: ``(1, C)`` bool, or numbers of which those above one half stay; anything on filler.
        stay: ``(B * N + 1,)`` bool at input positions, who stays in any case; ``None``: nobody does, and a sequence may
            lose all its rows.
        index: ``(C,)`` int64 flat input position of each row, ``trash`` on filler.
        bounds: ``(B + 1,)`` int where each sequence's rows begin and end.
        left: ``(B * N + 1, D)`` contiguous, into which the states of those who leave are written; ``None``: they are
            not.
        trash: the index of filler.
        covered: no sequence can lose its last row; if not, its first one stays, where ``stay`` is given.

    Returns:
        New states ``(1, C, D)``, index, bounds, and from where each row came ``(C,)``; filler repeats the first row.
    """
    states = hidden[0] if hidden.stride(-1) == 1 else hidden[0].contiguous()
    rows, width = states.shape
    sequences = len(bounds) - 1
    keep = keep.contiguous().view(torch.uint8) if keep.dtype == torch.bool else keep.contiguous()
    given = states if stay is None else stay.view(torch.uint8)
    counts = torch.empty(sequences, dtype=torch.int32, device=hidden.device)
    moved, here, ends = hidden.new_empty(1, rows, width), torch.empty_like(index), torch.empty_like(bounds)
    source = torch.empty_like(index)
    _count[(sequences,)](keep, given, index, bounds, counts, STAY=stay is not None, BLOCK=128, num_warps=4)
    _move[(sequences, triton.cdiv(width, 128))](
        states, keep, given, index, bounds, counts, states if left is None else left, moved, here, ends, source,
        rows, trash, sequences, width, states.stride(0),
        STAY=stay is not None, RESCUE=stay is not None and not covered, LEFT=left is not None,
        BATCH=triton.next_power_of_2(sequences), BLOCK=32, SLICE=min(triton.next_power_of_2(width), 128), num_warps=4,
    )  # fmt: skip
    return moved, here, ends, source
