"""Packed attention on a CPU: one call for sequences of about one length, or for each that looks at other rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from skim.engine.kernels.padded import added, attention
from skim.engine.mask import AttentionMask, near
from skim.engine.packed import PackedOccupancy

LANES = 16  # of a vector of 32 bits: the fused kernel's softmax takes what is left over one by one
FEW = 3  # left over, it is faster than a mask
SHORT = 64  # rows of a lone sequence that are not worth moving


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, scaling: float | None, dropout: float
) -> tuple[Tensor, Tensor | None]:
    """Attention of each sequence to itself only.

    One call for all sequences of about one length. The fused kernel handles whole vectors of keys, and each key that is
    left over takes as long as a vector: 127 keys twice as long as 128. So lengths are rounded up for it, and only for
    it: the places left over are seen by nobody and read by nobody.

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
    window, lengths = mask.window, occupancy.lengths
    fused = dropout == 0.0 and torch.backends.cuda.flash_sdp_enabled()
    multiple = LANES if fused and (len(lengths) > 1 or lengths[0] > SHORT) else 1
    if len(set(lengths)) == 1 and lengths[0] % multiple <= FEW:  # side by side as they are: nothing to move
        shape = len(lengths), lengths[0]
        seen = None if window is None else near(occupancy.position.view(shape), window)[:, None]
        bias = None if mask.bias is None else mask.bias.view(shape)
        if len(lengths) == 1:
            return attention(query, key, value, mask, scaling, dropout, seen, bias=bias)
        q, k, v = (x[0].unflatten(1, shape).transpose(0, 1) for x in (query, key, value))
        context, received = attention(q, k, v, mask, scaling, dropout, seen, bias=bias)
        context = context.transpose(1, 2).flatten(0, 1).transpose(0, 1)[None]
        return context, None if received is None else received.view(1, -1)
    rows, back, taken, groups = occupancy.blocks(multiple)
    # (P, H, d): a row's heads lie side by side in memory, so that moving rows copies them whole
    parts = [x[0].transpose(0, 1).index_select(0, rows) for x in (query, key, value)]
    positions = None if window is None else occupancy.position[0, rows]
    biases = None if mask.bias is None else mask.bias[0, rows]
    contexts, sums, end = [], [], 0
    for many, length, full in groups:
        begin, end = end, end + many * length
        q, k, v = (x[begin:end].unflatten(0, (many, length)).transpose(1, 2) for x in parts)  # (many, H, length, d)
        there = None if full else taken[begin:end].view(many, length)
        seen = None if there is None else there[:, None, None, :]
        if window is not None and positions is not None:
            close = near(positions[begin:end].view(many, length), window)[:, None]
            seen = close if seen is None else close & seen
        bias = None if biases is None else biases[begin:end].view(many, length)
        context, received = attention(q, k, v, mask, scaling, dropout, seen, there, bias)
        contexts.append(context.transpose(1, 2).flatten(0, 1))
        if received is not None:
            sums.append(received.flatten())
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
            seen = added(seen, None if mask.bias is None else mask.bias[:, looked], query.dtype)
            q, k, v = query[:, :, rows], key[:, :, looked], value[:, :, looked]
            contexts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout, scale=scaling))
        begin, first = end, last
    if not contexts:  # no rows, but a gradient of zero for everyone: DDP waits for it
        return query + (key.sum() + value.sum())
    return torch.cat(contexts, 2)
