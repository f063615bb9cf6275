"""The end of a predictor with two answers in one launch: LayerNorm, GELU and the difference of its two logits."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit(do_not_specialize=["rows"])
def _difference(
    states, scale, offset, weight, bias, found, rows, width, line, epsilon, WIDTH: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Second logit less the first, ``(T,)`` float32; grid (blocks of rows,)."""
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    column = tl.arange(0, WIDTH)
    inside = column < width
    there = (row < rows)[:, None] & inside[None, :]
    x = tl.load(states + row.to(tl.int64)[:, None] * line + column[None, :], mask=there, other=0.0).to(tl.float32)
    x = tl.where(inside[None, :], x - tl.sum(x, 1)[:, None] / width, 0.0)
    x = x * tl.rsqrt(tl.sum(x * x, 1) / width + epsilon)[:, None]
    x = x * tl.load(scale + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    x = x + tl.load(offset + column, mask=inside, other=0.0).to(tl.float32)[None, :]
    x = 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    first = tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(weight + width + column, mask=inside, other=0.0).to(tl.float32)
    answer = tl.sum(x * (second - first)[None, :], 1) + tl.load(bias + 1).to(tl.float32) - tl.load(bias).to(tl.float32)
    tl.store(found + row, answer, mask=row < rows)


def difference(states: Tensor, scale: Tensor, offset: Tensor, epsilon: float, weight: Tensor, bias: Tensor) -> Tensor:
    """Second logit less the first of ``linear(gelu(layer_norm(states)))``; in float32 throughout, no host read.

    Args:
        states: ``(..., D)``.
        scale: ``(D,)`` of the LayerNorm.
        offset: ``(D,)`` likewise.
        epsilon: likewise.
        weight: ``(2, D)`` contiguous.
        bias: ``(2,)``.

    Returns:
        ``(...)`` float32.
    """
    flat = states.reshape(-1, states.shape[-1])
    rows, width = flat.shape
    found = torch.empty(rows, dtype=torch.float32, device=states.device)
    wide = triton.next_power_of_2(width)
    block = max(4096 // wide, 1)
    _difference[(triton.cdiv(rows, block),)](
        flat, scale, offset, weight, bias, found, rows, width, flat.stride(0), epsilon,
        WIDTH=wide, BLOCK=block, num_warps=4,
    )  # fmt: skip
    return found.view(states.shape[:-1])
