"""Places of rows in their sequence by falling value: each is compared with all, which at such lengths beats a sort."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["rows"])
def _rank(values, bounds, places, sequences, rows, BLOCK: tl.constexpr, STEP: tl.constexpr):
    """Rows with a larger value, or an equal one before, ``(C,)`` int64; grid (blocks of the longest, B + 1)."""
    block, sequence = tl.program_id(0), tl.program_id(1)
    begin = tl.load(bounds + sequence).to(tl.int32)
    if sequence == sequences:  # the filler behind the last
        for first in range(begin + block * BLOCK, rows, tl.num_programs(0) * BLOCK):
            row = first + tl.arange(0, BLOCK)
            tl.store(places + row, tl.zeros((BLOCK,), tl.int64), mask=row < rows)
        return
    end = tl.load(bounds + sequence + 1).to(tl.int32)
    row = begin + block * BLOCK + tl.arange(0, BLOCK)
    own = tl.load(values + row, mask=row < end, other=0)[:, None]
    place = tl.zeros((BLOCK,), tl.int32)
    for first in range(begin, end, STEP):
        column = first + tl.arange(0, STEP)
        other = tl.load(values + column, mask=column < end, other=0)[None, :]
        before = (other > own) | ((other == own) & (column[None, :] < row[:, None]))
        place += tl.sum((before & (column < end)[None, :]).to(tl.int32), 1)
    tl.store(places + row, place.to(tl.int64), mask=row < end)


def rank(values: Tensor, bounds: Tensor, longest: int) -> Tensor:
    """Each row's place in its sequence by falling value, ties by position; no host read, capturable.

    Args:
        values: ``(1, C)``, numbers except on filler.
        bounds: ``(B + 1,)`` int where each sequence's rows begin and end.
        longest: rows of the longest sequence, or more.

    Returns:
        ``(1, C)`` int64, 0 for the largest, and for filler.
    """
    values = values.contiguous()
    places = torch.empty(values.shape, dtype=torch.int64, device=values.device)
    sequences = len(bounds) - 1
    grid = (triton.cdiv(max(longest, 1), 64), sequences + 1)
    _rank[grid](values, bounds, places, sequences, values.shape[1], BLOCK=64, STEP=64, num_warps=4)
    return places
