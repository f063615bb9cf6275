"""Packed attention on a GPU: FlashAttention's kernel for variable lengths, or a rectangle; no host sync in either."""

from __future__ import annotations

import torch
from torch import Tensor

from skim.engine.kernels.padded import attention
from skim.engine.mask import AttentionMask, near
from skim.engine.packed import PackedOccupancy

try:  # torch >= 2.10; FlashAttention on CUDA, no kernel for the CPU
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # pragma: no cover - depends on the installed torch
    varlen_attn = None  # type: ignore[assignment]


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, scaling: float | None, dropout: float
) -> tuple[Tensor, Tensor | None]:
    """Attention of each sequence to itself only; arguments and results are those of the CPU's.

    Half precision goes to FlashAttention's kernel for variable lengths, and the rest through a rectangle.
    """
    occupancy = mask.occupancy
    assert isinstance(occupancy, PackedOccupancy)
    memory = occupancy if mask.memory is None else mask.memory
    assert isinstance(memory, PackedOccupancy)
    half = query.dtype in (torch.float16, torch.bfloat16)
    plain = dropout == 0.0 and mask.window is None and not mask.wants_received
    if half and plain and varlen_attn is not None:
        longest = occupancy.sequences.real.shape[1]  # an upper bound is enough, and costs no sync
        bounds = occupancy.bounds.int(), memory.bounds.int()
        q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
        return varlen_attn(q, k, v, *bounds, longest, longest, scale=scaling).transpose(0, 1)[None], None
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
    )
    context = context.transpose(1, 2).reshape(taken.numel(), heads, size)[slots].transpose(0, 1)[None]
    return context, None if received is None else received.flatten()[slots][None]
