"""Masks of attention: the rows that may be looked at, inside the softmax, in the padded and in the packed form.

An :class:`AttentionMask` is a record. Two ways lead it into a layer. Where transformers calls attention through its
``AttentionInterface``, the record travels in the place of ``attention_mask``, which is handed on untouched, to the one
function registered as ``"skim"`` (:mod:`skim.engine.attention`). Where a family computes its attention itself,
:class:`MaskedSoftmax` replaces the softmax that it calls. Either way the record knows afterwards whether it was used:
an attention that ignores its mask attends to padding without a word.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from skim.engine.masked import MaskedOccupancy
from skim.engine.tokens import Occupancy


@dataclass
class AttentionMask:
    """Mask of the keys of one layer, in the place of transformers' mask tensor.

    Attributes:
        occupancy: the rows and who is alive among them.
        window: a key is seen when it sits at most this many *input* positions away; ``None`` for all.
        inside_softmax: True masks ``exp(s) * keep / sum(exp(s) * keep)``, which equals dropping the token. False is the
            published Transkimmer (Eq. 4), ``softmax(s) * keep``: retired tokens still weigh in the denominator.
        wants_received: whether the method asks for ``received``.
        blanks: retired queries get a context of zero, as in the published LTP; masked execution only.
        memory: the rows that are looked at, where they are not the rows that look.
        bias: added to the scores of each row that is looked at, one number per row; ``None``: nothing.
        used: set by the attention function; a layer that leaves it False has ignored its mask.
        received: the attention that each row receives, summed over the alive queries and averaged over heads, before
            dropout; float32, one value per row of the batch. Carries gradients in masked training only.
    """

    occupancy: Occupancy
    window: int | None = None
    inside_softmax: bool = True
    wants_received: bool = False
    blanks: bool = False
    memory: Occupancy | None = None
    bias: Tensor | None = None
    used: bool = field(default=False, init=False)
    received: Tensor | None = field(default=None, init=False)

    @property
    def weighs(self) -> bool:
        """True if keys carry weights that gradients flow through, or that act after the softmax."""
        kept = self.keys.kept if isinstance(self.keys, MaskedOccupancy) else None
        return kept is not None and (kept.requires_grad or not self.inside_softmax)

    @property
    def keys(self) -> Occupancy:
        """The rows that are looked at."""
        return self.occupancy if self.memory is None else self.memory

    @property
    def explicit(self) -> bool:
        """True if a padded batch must form its probabilities: no fused kernel weighs keys or differentiates sums."""
        through = self.wants_received and torch.is_grad_enabled() and isinstance(self.occupancy, MaskedOccupancy)
        return self.weighs or through or self.blanks

    def visible(self) -> Tensor:
        """Which alive keys each query sees in a padded batch, bool, broadcastable to ``(B, H, N, N)``."""
        return self.seen(self.keys.weights > 0.5)

    def seen(self, keys: Tensor) -> Tensor:
        """Which of some keys, ``(B, n)`` bool, each query sees: those in the layer's window around it."""
        keys = keys[:, None, None, :]
        if self.memory is None:
            return self.windowed(keys, self.occupancy.position)
        if self.window is None:
            return keys
        seen = keys & near(self.occupancy.position, self.window, self.memory.position)[:, None]
        return seen | ~seen.any(-1, keepdim=True)  # who sees nobody is filler: a softmax over nothing is NaN

    def windowed(self, keys: Tensor, position: Tensor) -> Tensor:
        """``keys`` (B, 1, 1, n) cut to the layer's window around each query; every row sees itself.

        Itself, because a pad or a retired row may have no other key in its window: nobody reads that row, but a softmax
        over nothing is NaN, and NaN times a weight of zero is NaN.
        """
        if self.window is None:
            return keys
        row = torch.arange(keys.shape[-1], device=keys.device)
        itself = row[:, None] == row
        return keys & near(position, self.window).unsqueeze(-3) | itself

    def softmax(self, scores: Tensor) -> Tensor:
        """Attention probabilities from the scores of a padded batch, ``(B, H, N, N)``."""
        self.used = True
        if self.bias is not None:
            scores = scores + self.bias[:, None, None, :].to(scores.dtype)
        if self.weighs:
            keys = self.keys
            assert isinstance(keys, MaskedOccupancy)
            assert keys.kept is not None
            probabilities = masked_softmax(
                scores, keys.kept[:, None, None, :], self.seen(keys.there), self.inside_softmax
            )
        else:
            probabilities = scores.masked_fill(~self.visible(), torch.finfo(scores.dtype).min).softmax(-1)
        if self.wants_received:
            through = isinstance(self.occupancy, MaskedOccupancy)  # in the other forms decisions have no gradient
            self.received = column_sums(probabilities if through else probabilities.detach(), self.occupancy.weights)
        if self.blanks:
            probabilities = probabilities * self.occupancy.weights[:, None, :, None].to(probabilities)
        return probabilities


class MaskedSoftmax(TorchFunctionMode):
    """Lets a mask into an attention that cannot be handed a function; ``with MaskedSoftmax(mask): attention(...)``.

    The one ``torch.nn.functional.softmax`` that such an attention calls, on scores ``(B, H, N, N)``, becomes the
    mask's; everything else - relative positions, dropout, projections - stays the family's own. The attention is given
    no mask of its own: should a transformers version stop calling that function, ``mask.used`` stays False and the walk
    refuses.
    """

    def __init__(self, mask: AttentionMask) -> None:
        super().__init__()
        self.mask = mask

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func is F.softmax:
            return self.mask.softmax(args[0])
        return func(*args, **(kwargs or {}))


def near(position: Tensor, window: int, other: Tensor | None = None) -> Tensor:
    """Pairs of rows at most ``window`` positions apart, bool: ``(..., n)`` and ``(..., m)`` to ``(..., n, m)``."""
    other = position if other is None else other
    return (position[..., :, None] - other[..., None, :]).abs() <= window


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
    dtype = scores.dtype
    scores = scores.to(torch.promote_types(dtype, torch.float32))  # half precision cannot hold the exponentials
    if visible is not None:
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    if not inside:
        return (scores.softmax(-1) * keep.to(scores.dtype)).to(dtype)
    # The shift cancels, so it needs no gradient. It is the maximum over the keys that weigh anything: those must not
    # underflow next to a retired one. The clamp touches retired keys only (others are <= 0), and keeps 0 * inf away.
    kept_scores = scores.detach().masked_fill(keep <= 0, torch.finfo(scores.dtype).min)
    weights = (scores - kept_scores.amax(-1, keepdim=True)).clamp(max=30).exp() * keep.to(scores.dtype)
    if visible is not None:
        weights = weights * visible
    return (weights / weights.sum(-1, keepdim=True).clamp_min(torch.finfo(scores.dtype).tiny)).to(dtype)


def column_sums(probabilities: Tensor, weights: Tensor | None = None) -> Tensor:
    """Attention that each key receives: summed over queries, averaged over heads; ``(B, H, q, N)`` to ``(B, N)``.

    A product and not a sum, so that ``torch.utils.flop_counter`` sees it: two FLOPs per head and pair.

    Args:
        probabilities: before dropout.
        weights: ``(B, q)`` how much each query counts, 0 for pads and retired ones; ``None``: all alike.
    """
    with torch.autocast(probabilities.device.type, enabled=False):  # half precision cannot hold what a threshold needs
        probabilities = probabilities.float()
        if weights is None:
            weights = probabilities.new_ones(1, probabilities.shape[2])
        return (weights.to(probabilities)[:, None, None, :] @ probabilities).mean(1).squeeze(1)
