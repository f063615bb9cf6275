"""Attention over whoever is alive: inside the softmax, in the padded and in the packed form.

transformers hands every attention function the layer's ``attention_mask`` untouched. skim passes an
:class:`AttentionMask` there - a record of who may be looked at - and registers one function, ``"skim"``, that reads it.
A function that is handed anything else refuses to run: an attention that ignores its mask attends to padding without
a word.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from skim.engine.tokens import MaskedOccupancy, Occupancy, PackedOccupancy
from skim.errors import SkimError

try:  # torch >= 2.10; FlashAttention on CUDA, no kernel for the CPU
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # pragma: no cover - depends on the installed torch
    varlen_attn = None


@dataclass
class AttentionMask:
    """Who may be looked at in one layer, in the place of transformers' mask tensor.

    Attributes:
        occupancy: the rows and who is alive among them.
        window: a key is seen when it sits at most this many *input* positions away; ``None`` for all.
        inside_softmax: True masks ``exp(s) * keep / sum(exp(s) * keep)``, which equals dropping the token. False is the
            published Transkimmer (Eq. 4), ``softmax(s) * keep``: retired tokens still weigh in the denominator.
        used: set by the attention function; a layer that leaves it False has ignored its mask.
    """

    occupancy: Occupancy
    window: int | None = None
    inside_softmax: bool = True
    used: bool = field(default=False, init=False)

    @property
    def differentiable(self) -> bool:
        """Whether keys carry weights that gradients flow through, or that act after the softmax."""
        kept = self.occupancy.kept if isinstance(self.occupancy, MaskedOccupancy) else None
        return kept is not None and (kept.requires_grad or not self.inside_softmax)

    def visible(self) -> Tensor:
        """Which keys each query sees in a padded batch, bool, broadcastable to ``(B, H, N, N)``."""
        return self.windowed((self.occupancy.weights > 0.5)[:, None, None, :], self.occupancy.position)

    def windowed(self, keys: Tensor, position: Tensor) -> Tensor:
        """``keys`` (B, 1, 1, n) cut to the layer's window around each query; every row sees itself.

        Itself, because a pad or a retired row may have no other key in its window: nobody reads that row, but a softmax
        over nothing is NaN, and NaN times a weight of zero is NaN.
        """
        if self.window is None:
            return keys
        itself = torch.eye(keys.shape[-1], dtype=torch.bool, device=keys.device)
        return keys & near(position, self.window).unsqueeze(-3) | itself


def near(position: Tensor, window: int) -> Tensor:
    """Pairs of rows at most ``window`` input positions apart: ``(..., n)`` to ``(..., n, n)`` bool."""
    return (position[..., :, None] - position[..., None, :]).abs() <= window


def masked_softmax(scores: Tensor, keep: Tensor, visible: Tensor | None = None, inside: bool = True) -> Tensor:
    r"""Softmax over keys that may be missing, differentiable in ``keep`` even where a key is gone.

    .. math:: p_{qj} = \frac{k_j e^{s_{qj}}}{\sum_l k_l e^{s_{ql}}}

    with the keys outside ``visible`` left out altogether. The gradient in :math:`k_j` is what a token would contribute
    if it came back, which is how a mask learns to bring a token back; an additive ``log k`` has none there.

    Args:
        scores: ``(..., q, j)``.
        keep: key weights in [0, 1], broadcastable to ``scores``.
        visible: bool, broadcastable to ``scores``; False for padding. ``None``: all.
        inside: False multiplies ``keep`` after the softmax instead (Transkimmer Eq. 4 as published).
    """
    if visible is not None:
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    if not inside:
        return scores.softmax(-1) * keep.to(scores.dtype)
    # The shift cancels, so it needs no gradient. It is the maximum over the *kept* keys: those must not underflow next to
    # a retired one. The clamp touches retired keys only (kept ones are <= 0) and keeps 0 * inf out of the product.
    kept_scores = scores.detach().masked_fill(keep <= 0.5, torch.finfo(scores.dtype).min)
    weights = (scores - kept_scores.amax(-1, keepdim=True)).clamp(max=30).exp() * keep.to(scores.dtype)
    if visible is not None:
        weights = weights * visible
    return weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)


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
        query, key, value: ``(B, H, N, d)`` padded, ``(1, H, T, d)`` packed.
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
    if isinstance(attention_mask.occupancy, PackedOccupancy):
        context = packed_attention(query, key, value, attention_mask, scaling, dropout)
    elif attention_mask.differentiable:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        kept, real = attention_mask.occupancy.kept, attention_mask.occupancy.sequences.real
        visible = attention_mask.windowed(real[:, None, None, :], attention_mask.occupancy.position)
        scores = query @ key.transpose(2, 3) * scale
        weights = masked_softmax(scores, kept[:, None, None, :], visible, attention_mask.inside_softmax)
        context = F.dropout(weights, dropout) @ value
    else:
        context = F.scaled_dot_product_attention(
            query, key, value, attn_mask=attention_mask.visible(), dropout_p=dropout, scale=scaling
        )
    return context.transpose(1, 2), None


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, scaling: float | None, dropout: float
) -> Tensor:
    """Each sequence attends to itself only, ``(1, H, T, d)`` to ``(1, H, T, d)``.

    On the CPU a loop over sequences beats every batched form (measured; nested tensors and flex attention lose). On CUDA
    half precision goes to FlashAttention's variable-length kernel; the rest is padded for the attention alone.
    """
    occupancy = mask.occupancy
    assert isinstance(occupancy, PackedOccupancy)
    if query.is_cuda:
        half = query.dtype in (torch.float16, torch.bfloat16)
        if half and dropout == 0.0 and mask.window is None and varlen_attn is not None:
            longest = occupancy.sequences.real.shape[1]  # an upper bound is enough, and costs no sync
            bounds = occupancy.bounds.int()
            rows = [x[0].transpose(0, 1) for x in (query, key, value)]
            context = varlen_attn(*rows, bounds, bounds, longest, longest, scale=scaling)
            return context.transpose(0, 1)[None]
        return repadded_attention(query, key, value, mask, scaling, dropout)
    if len(occupancy.lengths) == 1 and mask.window is None:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, scale=scaling)
    lengths = occupancy.lengths
    positions = occupancy.position.split(lengths, dim=1) if mask.window is not None else [None] * len(lengths)
    spans = zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), positions, strict=True)
    contexts = []
    for q, k, v, position in spans:
        seen = None if position is None else near(position, mask.window)[:, None]
        contexts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout, scale=scaling))
    return torch.cat(contexts, dim=2)


def repadded_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, scaling: float | None, dropout: float
) -> Tensor:
    """Packed attention by way of a rectangle ``(B, H, N, d)`` that lives for the attention only; no host sync."""
    occupancy = mask.occupancy
    real = occupancy.sequences.real
    shape = (real.numel(), *query.shape[1::2])
    rectangle = [x.new_zeros(shape).index_copy(0, occupancy.index, x[0].transpose(0, 1)) for x in (query, key, value)]
    q, k, v = (x.view(*real.shape, *query.shape[1::2]).transpose(1, 2) for x in rectangle)
    seen = mask.windowed(occupancy.alive()[:, None, None, :], torch.arange(real.shape[1], device=real.device))
    context = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, dropout_p=dropout, scale=scaling)
    rows = context.transpose(1, 2).reshape(real.numel(), *query.shape[1::2])
    return rows[occupancy.index].transpose(0, 1)[None]


AttentionInterface.register("skim", skim_attention)
