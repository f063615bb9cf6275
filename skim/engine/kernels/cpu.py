"""Packed attention on a CPU: one call for each length that occurs, or for each sequence that looks at other rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from skim.engine.kernels.padded import attention
from skim.engine.mask import AttentionMask, near
from skim.engine.packed import PackedOccupancy


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, scaling: float | None, dropout: float
) -> tuple[Tensor, Tensor | None]:
    """Attention of each sequence to itself only.

    One call per *length* is exact in FLOPs, and with tokens gone most sequences share a few short lengths.

    Args:
        query: ``(1, H, T, d)``.
        key: as ``query``; of the rows that are looked at.
        value: as ``key``.
        mask: of this layer.
        scaling: factor on the scores; ``None`` is ``d ** -0.5``.
        dropout: attention dropout; 0 in evaluation.

    Returns:
        The context ``(1, H, T, d)`` and, if the mask wants it, what each row received, ``(1, T)`` float32.
    """
    occupancy = mask.occupancy
    assert isinstance(occupancy, PackedOccupancy)
    if mask.memory is not None:
        return memory_attention(query, key, value, mask, scaling, dropout), None
    window = mask.window
    if len(occupancy.bounds) == 2:  # one sequence: nothing to sort, and at batch size 1 sorting is a tenth of the time
        seen = None if window is None else near(occupancy.position, window)[:, None]
        return attention(query, key, value, mask, scaling, dropout, seen)
    rows, back, groups = occupancy.by_length
    # (T, H, d): a row's heads lie side by side in memory, so that moving rows copies them whole
    parts = [x[0].transpose(0, 1) for x in (query, key, value)]
    if len(groups) > 1:
        parts = [x.index_select(0, rows) for x in parts]
    sizes = [size * length for size, length in groups]
    positions = [None] * len(groups) if window is None else occupancy.position[:, rows].split(sizes, 1)
    contexts, sums = [], []
    for group, q, k, v, position in zip(groups, *(x.split(sizes) for x in parts), positions, strict=True):
        q, k, v = (x.unflatten(0, group).transpose(1, 2) for x in (q, k, v))  # (sequences, H, length, d)
        seen = None if window is None else near(position.view(group), window)[:, None]
        context, received = attention(q, k, v, mask, scaling, dropout, seen)
        contexts.append(context.transpose(1, 2).flatten(0, 1))
        if received is not None:
            sums.append(received.flatten())
    if len(groups) == 1:
        return contexts[0].transpose(0, 1)[None], sums[0][None] if sums else None
    context = torch.cat(contexts).index_select(0, back).transpose(0, 1)[None]
    return context, torch.cat(sums).index_select(0, back)[None] if sums else None


def memory_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, scaling: float | None, dropout: float
) -> Tensor:
    """Packed attention to other rows than those that look, ``(1, H, T, d)``; one call per sequence, on the CPU."""
    occupancy, memory = mask.occupancy, mask.memory
    assert isinstance(occupancy, PackedOccupancy)
    assert isinstance(memory, PackedOccupancy)
    contexts = []
    ends = zip(occupancy.bounds.tolist(), memory.bounds.tolist(), strict=True)
    begin, first = next(ends)
    for end, last in ends:
        if end > begin:
            rows, looked = slice(begin, end), slice(first, last)
            seen = None
            if mask.window is not None:
                seen = near(occupancy.position[0, rows], mask.window, memory.position[0, looked])
            q, k, v = query[:, :, rows], key[:, :, looked], value[:, :, looked]
            contexts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout, scale=scaling))
        begin, first = end, last
    if not contexts:  # no rows, but a gradient of zero for everyone: DDP waits for it
        return query + (key.sum() + value.sum())
    return torch.cat(contexts, 2)
