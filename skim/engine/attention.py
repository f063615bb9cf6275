"""The attention function behind transformers' ``AttentionInterface``: it reads a mask and chooses a kernel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from skim.engine.kernels import cpu, cuda, static
from skim.engine.kernels.padded import attention
from skim.engine.mask import AttentionMask
from skim.engine.packed import PackedOccupancy
from skim.engine.static import StaticOccupancy
from skim.errors import SkimError


def skim_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: AttentionMask,
    scaling: float | None = None,
    dropout: float = 0.0,
    **_: object,
) -> tuple[Tensor, None]:
    """The function behind transformers' ``AttentionInterface``; shapes are its own.

    Args:
        module: the calling attention module (unused; part of the interface).
        query: ``(B, H, N, d)`` padded, ``(1, H, T, d)`` packed.
        key: as ``query``; may have fewer heads.
        value: as ``key``.
        attention_mask: the record that skim's walk put there.
        scaling: factor on the scores; ``None`` is ``d ** -0.5``.
        dropout: attention dropout; 0 in evaluation.

    Returns:
        The context, ``(B, N, H, d)`` or ``(1, T, H, d)``, and no attention probabilities.
    """
    if not isinstance(attention_mask, AttentionMask):
        raise SkimError(
            "This model's attention belongs to skim, but a layer was called outside skim's forward.\n"
            "Call the whole model, or skim.decompress(model) first."
        )
    attention_mask.used = True
    if key.shape[1] != query.shape[1]:  # grouped queries: EuroBERT
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    occupancy = attention_mask.occupancy
    if occupancy.attention is not None:
        context, received = occupancy.attention(query, key, value, attention_mask, scaling, dropout)
    elif isinstance(occupancy, StaticOccupancy):
        context, received = static.packed_attention(query, key, value, attention_mask, scaling, dropout)
    elif isinstance(occupancy, PackedOccupancy):
        kernels = cuda if query.is_cuda else cpu
        context, received = kernels.packed_attention(query, key, value, attention_mask, scaling, dropout)
    elif attention_mask.explicit:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        weights = attention_mask.softmax(query @ key.transpose(2, 3) * scale)
        context, received = F.dropout(weights, dropout) @ value, attention_mask.received
    else:
        alive: Tensor = occupancy.weights  # type: ignore[attr-defined]  # of the padded and the narrowed form
        seen, bias = attention_mask.visible(), attention_mask.bias
        context, received = attention(query, key, value, attention_mask, scaling, dropout, seen, alive, bias)
    attention_mask.received = received
    return context.transpose(1, 2), None


AttentionInterface.register("skim", skim_attention)
