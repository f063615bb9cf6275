"""Packed attention on a GPU: a kernel for variable lengths, or a rectangle; no host sync in either."""

from __future__ import annotations

import torch
from torch import Tensor

from skim.engine.kernels.fused import fused
from skim.engine.kernels.padded import attention
from skim.engine.mask import AttentionMask, near
from skim.engine.packed import PackedOccupancy

WIDEST = 128  # d up to which the blocks of Triton's kernel fit in registers and shared memory


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    index: Tensor,
    bounds: Tensor,
    looked_index: Tensor | None,
    looked_bounds: Tensor | None,
    longest: int,
    window: int | None,
    scaling: float | None,
    sums: bool,
) -> tuple[Tensor, Tensor | None] | None:
    """Attention of each sequence to itself by one kernel, or by two if asked for sums; no host read, capturable.

    FlashAttention's kernel takes half precision where no sums are wanted and all see all; it is differentiable. The
    :mod:`skim.engine.kernels.triton.attention` takes sums and windows, in evaluation.

    To FlashAttention ``longest`` is the grid and nothing else (torch 2.11 to 2.13: ``mha_varlen_fwd`` reads lengths on
    the device, syncs with nothing and splits no keys without a page table): a bound above the longest sequence costs
    blocks that return at once, so the input's length will do. Rows behind ``bounds[-1]`` are not read, and their
    context is left as the memory was, which may be NaN; Triton's kernel writes zeros there.

    Args:
        query: ``(1, H, T, d)``.
        key: ``(1, H, S, d)``, of the rows that are looked at.
        value: as ``key``.
        index: ``(T,)`` flat input position of each row.
        bounds: ``(B + 1,)`` int32 where each sequence's rows begin and end.
        looked_index: ``(S,)`` of the rows that are looked at; ``None``: they are the rows that look.
        looked_bounds: ``(B + 1,)`` int32, likewise.
        longest: rows of the longest sequence, or more.
        window: input positions to either side that are looked at; ``None`` for all.
        scaling: factor on the scores; ``None`` is ``d ** -0.5``.
        sums: tell what each row received.

    Returns:
        The context ``(1, H, T, d)`` and what each row received, ``(1, T)`` float32, if asked; ``None`` where no kernel
        serves.
    """
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    received: Tensor | None = None
    if sums or window is not None:
        if torch.is_grad_enabled() or q.shape[2] > WIDEST:
            return None
        scale = q.shape[2] ** -0.5 if scaling is None else scaling
        found = fused("attention", q, k, v, bounds, longest, scale, sums, looked_bounds, window, index, looked_index)
        if found is None:
            return None
        context, received = found
    else:
        if query.dtype not in (torch.float16, torch.bfloat16):
            return None
        looked_bounds = bounds if looked_bounds is None else looked_bounds
        context = fused("varlen_attn", q, k, v, bounds, looked_bounds, longest, longest, scale=scaling)
        if context is None:
            return None
    return context.transpose(0, 1)[None], None if received is None else received[None]


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, scaling: float | None, dropout: float
) -> tuple[Tensor, Tensor | None]:
    """Attention of each sequence to itself only; arguments and results are those of the CPU's.

    By :func:`fused_attention` where that serves, and the rest through a rectangle.
    """
    occupancy = mask.occupancy
    assert isinstance(occupancy, PackedOccupancy)
    memory = mask.memory
    assert memory is None or isinstance(memory, PackedOccupancy)
    if dropout == 0.0 and mask.bias is None:
        longest = occupancy.sequences.real.shape[1]  # an upper bound is enough, and costs no sync
        looked_index, looked_bounds = (None, None) if memory is None else (memory.index, memory.cumulative)
        rows = occupancy.index, occupancy.cumulative, looked_index, looked_bounds
        found = fused_attention(query, key, value, *rows, longest, mask.window, scaling, mask.wants_received)
        if found is not None:
            return found
    return rectangle_attention(query, key, value, mask, scaling, dropout)


def rectangle_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, scaling: float | None, dropout: float
) -> tuple[Tensor, Tensor | None]:
    """Packed attention by way of a rectangle ``(B, H, N, d)`` that lives for the attention only; no host sync."""
    occupancy = mask.occupancy
    assert isinstance(occupancy, PackedOccupancy)
    memory = occupancy if mask.memory is None else mask.memory
    assert isinstance(memory, PackedOccupancy)
    slots, taken = occupancy.rectangle
    heads, size = query.shape[1], query.shape[3]

    def spread(rows: Tensor, of: PackedOccupancy) -> Tensor:
        slots, taken = of.rectangle
        places = rows.new_zeros(taken.numel(), heads, size).index_copy(0, slots, rows[0].transpose(0, 1))
        return places.view(*taken.shape, heads, size).transpose(1, 2)

    def positions(of: PackedOccupancy) -> Tensor:
        slots, taken = of.rectangle
        places = torch.zeros_like(taken, dtype=torch.long).view(-1).index_copy(0, slots, of.position[0])
        return places.view_as(taken)

    def biases(of: PackedOccupancy, bias: Tensor) -> Tensor:
        slots, taken = of.rectangle
        return bias.new_zeros(taken.numel()).index_copy(0, slots, bias[0]).view_as(taken)

    keys = memory.rectangle[1][:, None, None, :]
    if mask.memory is None:
        seen = mask.windowed(keys, positions(occupancy))
    elif mask.window is None:
        seen = keys
    else:
        seen = keys & near(positions(occupancy), mask.window, positions(memory))[:, None]
    if mask.memory is not None:  # who sees nobody is filler: a softmax over nothing is NaN
        seen = seen | ~seen.any(-1, keepdim=True)
    context, received = attention(
        spread(query, occupancy),
        spread(key, memory),
        spread(value, memory),
        mask,
        scaling,
        dropout,
        seen,
        taken.float(),
        None if mask.bias is None else biases(memory, mask.bias),
    )
    context = context.transpose(1, 2).reshape(taken.numel(), heads, size)[slots].transpose(0, 1)[None]
    return context, None if received is None else received.flatten()[slots][None]
