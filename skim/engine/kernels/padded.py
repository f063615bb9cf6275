"""Attention in a rectangle of rows, by a fused kernel, or a block at a time where sums over the queries are wanted."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from skim.engine.mask import AttentionMask, column_sums

BLOCK = {"cpu": 2**18, "cuda": 2**26}  # probabilities in existence at a time: a core's cache, a small part of a GPU


def attention_with_sums(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    scaling: float | None,
    seen: Tensor | None = None,
    weights: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor | None, Tensor]:
    """Attention in evaluation together with :func:`column_sums`, a block of queries at a time.

    No fused kernel tells what a key received, and all ``(B, H, N, N)`` probabilities at once take 2.4 to 3.4 times as
    long as one at 512 tokens on a CPU; blocks that stay in cache take 1.5 times as long.

    Args:
        query: ``(B, H, N, d)``.
        key: as ``query``.
        value: as ``query``; ``None`` for the sums alone.
        scaling: factor on the scores; ``None`` is ``d ** -0.5``.
        seen: bool, broadcastable to ``(B, 1, N, N)``; ``None``: all see all.
        weights: ``(B, N)`` how much each query counts in the sums; ``None``: all alike.
        bias: ``(B, N)`` added to the scores of each key; ``None``: nothing.

    Returns:
        The context ``(B, H, N, d)`` (``None`` without ``value``) and what each key received, ``(B, N)`` float32.
    """
    batch, heads, length, size = query.shape
    scaling = size**-0.5 if scaling is None else scaling
    key = key.transpose(2, 3)
    block = BLOCK.get(query.device.type, BLOCK["cuda"])
    rows = max(min(length, block // (heads * length)), 1)
    sequences = max(block // (heads * length * length), 1)
    contexts: list[Tensor] = []
    sums: list[Tensor] = []
    for b in range(0, batch, sequences):
        some = slice(b, b + sequences)
        here: list[Tensor] = []
        parts: list[Tensor] = []
        for a in range(0, length, rows):
            queries = slice(a, a + rows)
            scores = (query[some, :, queries] @ key[some]).mul_(scaling)
            if bias is not None:
                scores.add_(bias[some, None, None].to(scores.dtype))
            if seen is not None:
                view = seen if len(seen) == 1 else seen[some]
                view = view if view.shape[2] == 1 else view[:, :, queries]
                scores.masked_fill_(~view, torch.finfo(scores.dtype).min)
            probabilities = scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))
            parts.append(column_sums(probabilities, None if weights is None else weights[some, queries]))
            if value is not None:
                here.append(probabilities.to(value.dtype) @ value[some])
        sums.append(parts[0] if len(parts) == 1 else torch.stack(parts).sum(0))
        if value is not None:
            contexts.append(here[0] if len(here) == 1 else torch.cat(here, 2))
    received = sums[0] if len(sums) == 1 else torch.cat(sums)
    if value is None:
        return None, received
    return contexts[0] if len(contexts) == 1 else torch.cat(contexts), received


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: AttentionMask,
    scaling: float | None,
    dropout: float,
    seen: Tensor | None = None,
    weights: Tensor | None = None,
    bias: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Plain attention ``(B, H, N, d)`` by the fastest kernel, and what keys received if the mask wants it.

    In training the sums are a second pass without gradient, which a trace does not count: the fused kernel's backward
    pass is worth more than the scores that both compute.
    """
    received: Tensor | None = None
    if mask.wants_received:
        if not torch.is_grad_enabled() and dropout == 0.0:
            return attention_with_sums(query, key, value, scaling, seen, weights, bias)  # type: ignore[return-value]
        with torch.no_grad():
            _, received = attention_with_sums(query, key, None, scaling, seen, weights, bias)
    mask_ = added(seen, bias, query.dtype)
    context = F.scaled_dot_product_attention(query, key, value, attn_mask=mask_, dropout_p=dropout, scale=scaling)
    return context, received


def added(seen: Tensor | None, bias: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """Make what a kernel adds to scores: minus infinity where a key is not ``seen``, else its ``bias``, ``(B, N)``."""
    if bias is None:
        return seen
    bias = bias[:, None, None, :].to(dtype)
    return bias if seen is None else torch.where(seen, bias, -torch.inf)
