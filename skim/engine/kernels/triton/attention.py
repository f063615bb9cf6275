r"""Attention over packed rows of several lengths, and what each key received by it, with no rectangle in memory.

Two kernels. The first is FlashAttention-2 (Dao, 2023): a program owns a block of one sequence's queries and one head,
walks over the keys with an online softmax (Milakov and Gimelshein, 2018), and leaves the context and the logarithm of
each query's denominator. The second owns a block of keys and walks over the queries: with the denominators known,
:math:`p_{qj} = \exp(s_{qj} - \mathrm{lse}_q)` needs no second softmax, and its sum over q stays in registers. So
nothing is added up atomically, and equal inputs give equal bits, whoever else is in the batch: a decision by these sums
can be repeated.

The host knows the number of sequences, the heads and a bound on the longest sequence, which together are the grid; how
long a sequence is, only the programs read. Those behind its end return at once.
"""

from __future__ import annotations

import math
import os

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@triton.jit
def _rows(start, rows, end, stride, SIZE: tl.constexpr, WIDTH: tl.constexpr):
    """A block of rows ``(BLOCK, WIDTH)`` from ``start``; zero behind the last row and behind the head's size."""
    columns = tl.arange(0, WIDTH)
    there = (rows < end)[:, None] & (columns < SIZE)[None, :]
    return tl.load(start + rows[:, None] * stride + columns[None, :], mask=there, other=0.0)


@triton.jit
def _seen(scores, there, position, other, window, WINDOWED: tl.constexpr):
    """Scores ``(n, m)`` with minus infinity where no row is, or one outside the window."""
    seen = there
    if WINDOWED:
        distance = position[:, None] - other[None, :]
        seen = seen & (distance <= window) & (distance >= -window)
    return tl.where(seen, scores, float("-inf"))


@triton.jit(do_not_specialize=["rows"])
def _context(
    query, key, value, bounds, looked_bounds, index, looked_index, context, lse, scaling, window, sequences, rows,
    query_row, query_head, key_row, key_head, value_row, value_head,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, WINDOWED: tl.constexpr,
    FACTOR: tl.constexpr,
):  # fmt: skip
    """Context ``(T, H, d)`` and log2 of the denominators ``(H, T)``; grid (blocks of the longest, H, B + 1)."""
    block, head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    heads = tl.num_programs(1)
    begin = tl.load(bounds + sequence).to(tl.int64)
    columns = tl.arange(0, WIDTH)
    inside = (columns < SIZE)[None, :]
    context += begin * heads * SIZE + head * SIZE
    lse += head.to(tl.int64) * rows + begin
    if sequence == sequences:  # no sequence, but the filler behind the last: zeros, so that no NaN lies about
        filler = rows - begin.to(tl.int32)
        for first in range(block * BLOCK, filler, tl.num_programs(0) * BLOCK):
            row = first + tl.arange(0, BLOCK)
            place = context + row[:, None] * (heads * SIZE) + columns[None, :]
            zero = tl.zeros((BLOCK, WIDTH), context.dtype.element_ty)
            tl.store(place, zero, mask=(row < filler)[:, None] & inside)
        return
    length = (tl.load(bounds + sequence + 1).to(tl.int64) - begin).to(tl.int32)
    if block * BLOCK >= length:
        return
    looked = tl.load(looked_bounds + sequence).to(tl.int64)
    keys = (tl.load(looked_bounds + sequence + 1).to(tl.int64) - looked).to(tl.int32)
    row = block * BLOCK + tl.arange(0, BLOCK)
    q = _rows(query + begin * query_row + head * query_head, row, length, query_row, SIZE, WIDTH)
    key += looked * key_row + head * key_head
    value += looked * value_row + head * value_head
    here = row
    if WINDOWED:
        here = tl.load(index + begin + row, mask=row < length, other=0)
    largest = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    mixed = tl.zeros((BLOCK, WIDTH), tl.float32)
    for first in range(0, keys, STEP):
        column = first + tl.arange(0, STEP)
        k = _rows(key, column, keys, key_row, SIZE, WIDTH)
        v = _rows(value, column, keys, value_row, SIZE, WIDTH)
        there = column
        if WINDOWED:
            there = tl.load(looked_index + looked + column, mask=column < keys, other=0)
        scores = tl.dot(q.to(FACTOR), tl.trans(k.to(FACTOR)), input_precision="tf32x3") * scaling
        scores = _seen(scores, (column < keys)[None, :], here, there, window, WINDOWED)
        above = tl.maximum(largest, tl.max(scores, 1))
        shift = tl.where(above == float("-inf"), 0.0, above)  # who has seen nobody yet: infinity less infinity is NaN
        weights = tl.exp2(scores - shift[:, None])
        fade = tl.exp2(largest - shift)
        total = total * fade + tl.sum(weights, 1)
        mixed = mixed * fade[:, None]
        mixed = tl.dot(weights.to(v.dtype).to(FACTOR), v.to(FACTOR), mixed, input_precision="tf32x3")
        largest = above
    alone = total == 0.0  # nobody was seen: filler of the caller's, whose context is zero
    total = tl.where(alone, 1.0, total)
    mixed = mixed / total[:, None]
    place = context + row[:, None] * (heads * SIZE) + columns[None, :]
    tl.store(place, mixed.to(context.dtype.element_ty), mask=(row < length)[:, None] & inside)
    tl.store(lse + row, tl.where(alone, float("inf"), largest + tl.log2(total)), mask=row < length)


@triton.jit(do_not_specialize=["rows"])
def _received(
    query, key, bounds, index, lse, received, scaling, window, sequences, rows,
    query_row, query_head, key_row, key_head,
    SIZE: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, WINDOWED: tl.constexpr,
    FACTOR: tl.constexpr,
):  # fmt: skip
    """Attention that each key received in each head, ``(H, T)`` float32; grid as :func:`_context`'s."""
    block, head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    begin = tl.load(bounds + sequence).to(tl.int64)
    received += head.to(tl.int64) * rows + begin
    if sequence == sequences:
        filler = rows - begin.to(tl.int32)
        for first in range(block * BLOCK, filler, tl.num_programs(0) * BLOCK):
            row = first + tl.arange(0, BLOCK)
            tl.store(received + row, tl.zeros((BLOCK,), tl.float32), mask=row < filler)
        return
    length = (tl.load(bounds + sequence + 1).to(tl.int64) - begin).to(tl.int32)
    if block * BLOCK >= length:
        return
    row = block * BLOCK + tl.arange(0, BLOCK)
    k = _rows(key + begin * key_row + head * key_head, row, length, key_row, SIZE, WIDTH)
    query += begin * query_row + head * query_head
    lse += head.to(tl.int64) * rows + begin
    index += begin
    here = row
    if WINDOWED:
        here = tl.load(index + row, mask=row < length, other=0)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, length, STEP):
        column = first + tl.arange(0, STEP)
        q = _rows(query, column, length, query_row, SIZE, WIDTH)
        there = column
        if WINDOWED:
            there = tl.load(index + column, mask=column < length, other=0)
        denominator = tl.load(lse + column, mask=column < length, other=float("inf"))
        scores = tl.dot(k.to(FACTOR), tl.trans(q.to(FACTOR)), input_precision="tf32x3") * scaling
        scores = _seen(scores, (column < length)[None, :], here, there, window, WINDOWED)
        total += tl.sum(tl.exp2(scores - denominator[None, :]), 1)
    tl.store(received + row, total, mask=row < length)


def blocks(longest: int, size: int, dtype: torch.dtype) -> dict[str, int]:
    """Rows that a program owns and that it walks over at a time, warps and stages: what fits in registers and cache.

    The step depends on the head's size and the dtype alone, as the order of a sum does on it.
    """
    if dtype == torch.float32:  # twice the bytes
        return {"BLOCK": 64, "STEP": 32, "num_warps": 4 if size <= 64 else 8, "num_stages": 2 if size <= 64 else 1}
    if longest <= 128:
        return {"BLOCK": 64, "STEP": 64, "num_warps": 4, "num_stages": 2}
    return {"BLOCK": 128, "STEP": 64, "num_warps": 4 if size <= 64 else 8, "num_stages": 3 if size <= 64 else 2}


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bounds: Tensor,
    longest: int,
    scaling: float,
    sums: bool = False,
    looked_bounds: Tensor | None = None,
    window: int | None = None,
    index: Tensor | None = None,
    looked_index: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Attention of each sequence to itself, or to its rows among others; in evaluation, no host read, capturable.

    Products are taken in the inputs' dtype and summed in float32; those of float32 on tensor cores, as three of TF32
    that together are as exact. Rows behind the last sequence get a context of zero, receive nothing and are seen by
    nobody.

    Args:
        query: ``(T, H, d)``, d up to 128; any strides, but each head's d numbers side by side.
        key: ``(S, H, d)``, likewise; S = T without ``looked_bounds``.
        value: as ``key``.
        bounds: ``(B + 1,)`` int where each sequence's rows begin and end.
        longest: rows of the longest sequence; more is allowed, and costs programs that return at once.
        scaling: factor on the scores.
        sums: also return what each key received; only without ``looked_bounds``.
        looked_bounds: ``(B + 1,)`` the same for the keys, where they are not the rows that look.
        window: a key is seen when its index is at most this far from the query's; ``None`` for all.
        index: ``(T,)`` int flat input position of each row, with a window.
        looked_index: ``(S,)`` int, with a window and ``looked_bounds``.

    Returns:
        The context ``(T, H, d)`` and, if asked, the attention that each key received, summed over its sequence's
        queries and averaged over heads, ``(T,)`` float32.
    """
    query, key, value = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, key, value))
    rows, heads, size = query.shape
    sequences = len(bounds) - 1
    factor = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}.get(query.dtype, tl.float32)
    if INTERPRETED and factor == tl.bfloat16:  # the interpreter knows no product of bfloat16; this one is as exact
        factor = tl.float32
    options = {
        **blocks(longest, size, query.dtype),
        "SIZE": size,
        "WIDTH": max(triton.next_power_of_2(size), 16),  # tl.dot takes no less
        "WINDOWED": window is not None,
        "FACTOR": factor,
    }
    grid = (triton.cdiv(max(longest, 1), options["BLOCK"]), heads, sequences + 1)
    context = query.new_empty(rows, heads, size)
    lse = query.new_empty(heads, rows, dtype=torch.float32)
    index = bounds if index is None else index  # never read without a window
    scale, reach = scaling * math.log2(math.e), window or 0
    _context[grid](
        query, key, value, bounds, bounds if looked_bounds is None else looked_bounds,
        index, index if looked_index is None else looked_index, context, lse, scale, reach, sequences, rows,
        query.stride(0), query.stride(1), key.stride(0), key.stride(1), value.stride(0), value.stride(1), **options,
    )  # fmt: skip
    if not sums:
        return context, None
    received = torch.empty_like(lse)
    _received[grid](
        query, key, bounds, index, lse, received, scale, reach, sequences, rows,
        query.stride(0), query.stride(1), key.stride(0), key.stride(1), **options,
    )  # fmt: skip
    return context, received.mean(0)
