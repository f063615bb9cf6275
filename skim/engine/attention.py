"""Attention over whoever is alive: inside the softmax, in the padded and in the packed form.

An :class:`AttentionMask` is a record of who may be looked at. Two ways lead it into a layer. Where transformers calls
attention through its ``AttentionInterface``, the record travels in the place of ``attention_mask``, which is handed on
untouched, to the one function registered as ``"skim"``. Where a family computes its attention itself,
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
from transformers import AttentionInterface

from skim.engine.masked import MaskedOccupancy
from skim.engine.packed import PackedOccupancy
from skim.engine.tokens import Occupancy
from skim.errors import SkimError

try:  # torch >= 2.10; FlashAttention on CUDA, no kernel for the CPU
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # pragma: no cover - depends on the installed torch
    varlen_attn = None  # type: ignore[assignment]


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
        itself = torch.eye(keys.shape[-1], dtype=torch.bool, device=keys.device)
        return keys & near(position, self.window).unsqueeze(-3) | itself

    def softmax(self, scores: Tensor) -> Tensor:
        """Attention probabilities from the scores of a padded batch, ``(B, H, N, N)``."""
        self.used = True
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


BLOCK = {"cpu": 2**18, "cuda": 2**26}  # probabilities in existence at a time: a core's cache, a small part of a GPU


def attention_with_sums(
    query: Tensor,
    key: Tensor,
    value: Tensor | None,
    scaling: float | None,
    seen: Tensor | None = None,
    weights: Tensor | None = None,
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
) -> tuple[Tensor, Tensor | None]:
    """Plain attention ``(B, H, N, d)`` by the fastest kernel, and what keys received if the mask wants it.

    In training the sums are a second pass without gradient, which a trace does not count: the fused kernel's backward
    pass is worth more than the scores that both compute.
    """
    received: Tensor | None = None
    if mask.wants_received:
        if not torch.is_grad_enabled() and dropout == 0.0:
            return attention_with_sums(query, key, value, scaling, seen, weights)  # type: ignore[return-value]
        with torch.no_grad():
            _, received = attention_with_sums(query, key, None, scaling, seen, weights)
    context = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, dropout_p=dropout, scale=scaling)
    return context, received


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
    if isinstance(occupancy, PackedOccupancy):
        context, received = packed_attention(query, key, value, attention_mask, scaling, dropout)
    elif attention_mask.explicit:
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        weights = attention_mask.softmax(query @ key.transpose(2, 3) * scale)
        context, received = F.dropout(weights, dropout) @ value, attention_mask.received
    else:
        alive: Tensor = occupancy.weights  # type: ignore[attr-defined]  # of the padded and the narrowed form
        context, received = attention(
            query, key, value, attention_mask, scaling, dropout, attention_mask.visible(), alive
        )
    attention_mask.received = received
    return context.transpose(1, 2), None


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, scaling: float | None, dropout: float
) -> tuple[Tensor, Tensor | None]:
    """Each sequence attends to itself only, ``(1, H, T, d)`` to ``(1, H, T, d)`` and, if wanted, received ``(1, T)``.

    On the CPU one call per *length*: exact in FLOPs, and with tokens gone most sequences share a few short lengths. On
    CUDA half precision goes to FlashAttention's variable-length kernel and the rest through a rectangle.
    """
    occupancy = mask.occupancy
    assert isinstance(occupancy, PackedOccupancy)
    memory = occupancy if mask.memory is None else mask.memory
    assert isinstance(memory, PackedOccupancy)
    if query.is_cuda:
        half = query.dtype in (torch.float16, torch.bfloat16)
        plain = dropout == 0.0 and mask.window is None and not mask.wants_received
        if half and plain and varlen_attn is not None:
            longest = occupancy.sequences.real.shape[1]  # an upper bound is enough, and costs no sync
            bounds = occupancy.bounds.int(), memory.bounds.int()
            q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
            return varlen_attn(q, k, v, *bounds, longest, longest, scale=scaling).transpose(0, 1)[None], None
        return rectangle_attention(query, key, value, mask, scaling, dropout)
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


AttentionInterface.register("skim", skim_attention)
