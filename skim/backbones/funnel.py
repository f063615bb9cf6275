r"""Funnel-Transformer as published (Dai et al., NeurIPS 2020, arXiv 2006.03236): a backbone that pools by itself.

Between blocks of layers two rows become one; in the first layer of a block only the queries are pooled
(``pool_q_only``). Heads on ``FunnelBaseModel`` (classification, multiple choice) read the pooled row of [CLS]; those on
``FunnelModel`` (tokens, answers, masked LM, pretraining) read a decoder: two layers at full length over each row's
state repeated across its window, plus the first block's output. As in transformers, ``last_hidden_state`` of
``FunnelBaseModel`` has one state per *row* and not per token.

What is not as in transformers, unless ``config.hf_compat`` asks for it back: a pooled row counts as real if any of its
tokens is (the published code; transformers counts it as a pad if any is one), and without token types [CLS] gets its
own one. Every length works: transformers' table of distances ends too early for four positions or fewer.

As published, windows are laid over pads as well and average them in, and ``truncate_seq`` drops the batch's last
position, so an output depends on the padding. ``config.pool_pads=False`` pools what is real, and only that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from skim.backbones.base import Backbone, Module, heads
from skim.engine.adapters import call_flops, linear_flops
from skim.engine.inputs import Inputs
from skim.engine.kernels.padded import BLOCK
from skim.engine.mask import AttentionMask
from skim.engine.narrowed import NarrowedTokens
from skim.engine.tokens import TokenBatch
from skim.errors import SkimError
from skim.flops import LayerCost, precise

CLS_TYPE = 2  # the token type of [CLS], which is of the same segment as everybody
QUERIES = 64  # at a time, see relative_attention
EXTRA = 4  # columns behind a head's own: three token types and whether a key is a pad


@dataclass(frozen=True)
class Rows(NarrowedTokens):
    """Rows of a rectangle, pads among them; what is restored is one state per row.

    Attributes:
        stride: input positions from one row to the next.
        first: the rows as they left the first block; ``None`` before.
    """

    stride: int = 1
    first: Rows | None = None

    def restore(self) -> Tensor:
        return self.hidden


@dataclass(frozen=True)
class Geometry:
    """Places of the rows of a block, for all its layers.

    Attributes:
        base: the base model.
        rows: who looks.
        seen: who is looked at.
        row_types: token types of the one, ``(B, Q)``.
        seen_types: of the other, ``(B, K)``.
    """

    base: Module
    rows: Rows
    seen: Rows
    row_types: Tensor
    seen_types: Tensor

    @property
    def step(self) -> int:
        """Rows that are looked at per row that looks: 2 where only queries are pooled, else 1."""
        return self.rows.stride // self.seen.stride

    @cached_property
    def table(self) -> Tensor:
        """Sines and cosines ``(step (Q - 1) + K, D)`` of all distances from a query to a key, the largest first."""
        config, structure = self.base.config, self.base.encoder.attention_structure
        device = self.rows.hidden.device
        largest = self.step * (self.rows.hidden.shape[1] - 1)
        # behind a [CLS] of their own, both kinds of rows begin at position 1
        begin = (self.step - 1) * config.separate_cls
        falling = largest - begin - torch.arange(largest + self.seen.hidden.shape[1], device=device)
        half = config.d_model // 2
        frequency = 10000 ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
        angle = (self.seen.stride * falling)[:, None] * frequency
        sines = structure.sin_dropout(angle.sin()), structure.cos_dropout(angle.cos())
        return torch.cat(sines, -1).to(self.rows.hidden.dtype)

    @cached_property
    def same(self) -> Tensor:
        """Mask of the rows that are of the same segment as keys of each type, ``(B, Q, 3)`` bool."""
        types = torch.arange(3, device=self.row_types.device)
        own = self.row_types[..., None]
        return (own == types) | (own == CLS_TYPE) | (types == CLS_TYPE)

    @cached_property
    def keys(self) -> Tensor:
        """Extra features of each key, ``(B, K, EXTRA)``: its type, and a large negative number if it is a pad."""
        dtype = self.rows.hidden.dtype
        types = (self.seen_types[..., None] == torch.arange(3, device=self.seen_types.device)).to(dtype)
        if self.base.config.separate_cls:
            types[:, 0] = 0
        pad = (self.seen.occupancy.weights[..., None] == 0).to(dtype) * -min(1e6, torch.finfo(dtype).max / 4)
        return torch.cat([types, pad], -1)


@dataclass(frozen=True)
class RelativeCost(LayerCost):
    """A layer whose queries also meet distances, a few more than there are keys.

    Attributes:
        distance: per query and distance that its chunk of queries meets.
        sines: per distance from any query to any key, once per layer.
    """

    distance: float = 0.0
    sines: float = 0.0

    def __call__(
        self,
        attending: Tensor,
        feeding: Tensor,
        entered: Tensor,
        looked_at: Tensor | None = None,
        projected: Tensor | None = None,
    ) -> Tensor:
        step = 1 if looked_at is None else 2
        queries = precise(attending)
        keys = queries if looked_at is None else precise(looked_at)
        left = queries % QUERIES
        whole = (queries - left) * (keys + step * (QUERIES - 1)) + left * (keys + step * (left - 1))
        table = (keys + step * (queries - 1)).clamp(min=0)
        flops = super().__call__(attending, feeding, entered, looked_at, projected)
        return flops + self.distance * whole + self.sines * table


class Funnel(Backbone):
    """Runs in rectangles with their pads, as the published pooling needs them; takes no method but ``dense``."""

    model_types = ("funnel",)
    packs = False
    shortens = True
    output = BaseModelOutput

    def refuses(self, config: Any) -> str | None:
        if compatible(config) and not pools_pads(config):
            return "hf_compat=true is about pads in windows, and pool_pads=false leaves none there"
        return None

    def layers(self, base: Module) -> list[Module]:
        blocks = zip(base.encoder.blocks, base.config.block_repeats, strict=True)
        encoder = [layer for block, times in blocks for layer in block for _ in range(times)]
        if not hasattr(base, "decoder"):
            return encoder
        if not len(base.decoder.layers):
            raise SkimError("This Funnel's decoder has no layers (num_decoder_layers=0); use 1 or more.")
        return encoder + list(base.decoder.layers)

    def embed(self, base: Module, inputs: Inputs) -> Tensor:
        mask, types = inputs.attention_mask, inputs.token_type_ids
        if not pools_pads(base.config) and mask is not None and bool((mask[:, 1:] > mask[:, :-1]).any()):
            raise SkimError(
                "backbone.overrides.pool_pads=false needs the padding behind the tokens, and this batch has a pad "
                "before one.\nPad on the right: tokenizer.padding_side = 'right'."
            )
        if types is not None and bool((types > CLS_TYPE).any()):
            raise SkimError(f"Funnel takes token types 0 and 1, and {CLS_TYPE} for [CLS]; this batch has larger ones.")
        return base.embeddings(inputs.input_ids, inputs.inputs_embeds)

    def before_layer(self, base: Module, i: int, tokens: TokenBatch) -> TokenBatch:
        config = base.config
        if i == 0:
            return Rows.start(tokens.hidden, tokens.sequences)
        rows = tokens.looking_at(None)
        assert isinstance(rows, Rows)
        ends = block_ends(config)
        if i == ends[0]:
            rows = replace(rows, first=rows)
        if i == ends[-1] and rows.first is not None:
            return replace(rows.first, hidden=widened(rows.hidden, rows.first.hidden, config))
        return pooled(rows, config) if i in ends else rows

    def geometry(self, base: Module, tokens: Any, inputs: Inputs) -> Geometry:
        types = token_types(base.config, tokens.sequences.real, inputs)
        seen = tokens if tokens.source is None else tokens.source
        return Geometry(base, tokens, seen, tokens.occupancy.rows(types), seen.occupancy.rows(types))

    def attend(self, layer: Module, hidden: Tensor, mask: AttentionMask, geometry: Geometry) -> Tensor:
        return self.attend_to(layer, hidden, *self.keys_and_values(layer, hidden, geometry), mask, geometry)

    def keys_and_values(self, layer: Module, hidden: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
        attention = layer.attention
        size = attention.config.d_head
        return heads(attention.k_head(hidden), size), heads(attention.v_head(hidden), size)

    def attend_to(
        self, layer: Module, hidden: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, geometry: Geometry
    ) -> Tensor:
        attention = layer.attention
        separate, count, size = attention.config.separate_cls, attention.config.n_head, attention.config.d_head
        mask.used = True  # the pads are in geometry.keys
        query = heads(attention.q_head(hidden), size).transpose(0, 1)  # (H, B, Q, d): what heads share is not copied
        scale = attention.scale
        content, position = (
            torch.add(scale * bias[:, None, None], query, alpha=scale)
            for bias in (attention.r_w_bias, attention.r_r_bias)
        )
        # one score for keys of another segment and one for those of the same, chosen by a product with the key's type
        segment = scale * attention.seg_embed.permute(1, 2, 0)  # (H, d, 2)
        anyway = (attention.r_s_bias[..., None] * segment).sum(1)[:, None, None]
        scores = (query.flatten(1, 2) @ segment).view(*query.shape[:3], 2) + anyway
        other, same = scores.chunk(2, -1)
        segments = torch.where(geometry.same, same, other)
        if separate:  # [CLS] looks at contents only
            apart = torch.arange(query.shape[2], device=query.device)[:, None] > 0
            position, segments = position * apart, segments * apart
        query = torch.cat([content, segments, torch.ones_like(segments[..., :1])], -1)
        key = torch.cat([key.transpose(0, 1), geometry.keys.expand(count, -1, -1, -1)], -1)
        distances = (geometry.table @ attention.r_kernel.flatten(1)).view(-1, count, size).permute(1, 2, 0)
        dropout = attention.attention_dropout.p if attention.training else 0.0
        context = relative_attention(
            query, position, key, value.transpose(0, 1), distances, geometry.step, separate, dropout
        )
        out = attention.hidden_dropout(attention.post_proj(context))
        return attention.layer_norm(hidden + out)

    def feed_forward(self, layer: Module, hidden: Tensor) -> Tensor:
        ffn = layer.ffn
        if layer.attention.config.hidden_act != "gelu_new":
            return ffn(hidden)
        wide = F.gelu(ffn.linear_1(hidden), approximate="tanh")  # the same function, in one pass instead of eight
        return ffn.layer_norm(hidden + ffn.dropout(ffn.linear_2(ffn.activation_dropout(wide))))

    def hidden_states(self, base: Module, states: list[Tensor], hidden: Tensor, output: Any) -> tuple[Tensor, ...]:
        if not hasattr(base, "decoder"):
            return (*states, hidden)
        first, last = block_ends(base.config)[0], block_ends(base.config)[-1]  # the decoder reports its input as well
        return (*states[: last + 1], widened(states[last], states[first], base.config), *states[last + 1 :], hidden)

    def states_of_layers(self, base: Module, reported: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        if not hasattr(base, "decoder"):
            return reported
        widened = block_ends(base.config)[-1] + 1
        return reported[:widened] + reported[widened + 1 :]

    def cost(self, layer: Module) -> LayerCost:
        attention, config = layer.attention, layer.attention.config
        width = float(config.n_head * config.d_head)
        feed_forward = linear_flops(layer.ffn)
        return RelativeCost(
            attention=linear_flops(layer) - feed_forward + 4 * width,  # the scores of two segments
            pair=4 * width + 2 * EXTRA * config.n_head,
            feed_forward=feed_forward,
            fixed=call_flops(layer),
            keys=linear_flops(attention.k_head) + linear_flops(attention.v_head),
            distance=2 * width,
            sines=2 * config.d_model * width,
        )


def compatible(config: Any) -> bool:
    """Tell whether transformers' own numbers are asked for."""
    return getattr(config, "hf_compat", False)


def pools_pads(config: Any) -> bool:
    """Tell whether windows are laid over pads, as published."""
    return getattr(config, "pool_pads", True)


def token_types(config: Any, real: Tensor, inputs: Inputs) -> Tensor:
    """``(B, N)``: as given; else, as Funnel's tokenizer would give them if asked, 0, 1 behind [SEP], 2 on [CLS].

    It is not asked by default. Without the separator's id (``config.sep_token_id``) all is one segment; transformers
    takes zeros throughout.
    """
    if inputs.token_type_ids is not None:
        return inputs.token_type_ids
    types = torch.zeros_like(real, dtype=torch.long)
    if compatible(config):
        return types
    separator = getattr(config, "sep_token_id", None)
    if separator is not None and inputs.input_ids is not None:
        ends = (inputs.input_ids == separator) & real
        types = ((ends.cumsum(1) > ends.long()) & real).long()
    return types.index_fill(1, types.new_zeros(1), CLS_TYPE)


def block_ends(config: Any) -> list[int]:
    """How many layers have run at the end of each block."""
    return list(accumulate(size * times for size, times in zip(config.block_sizes, config.block_repeats, strict=True)))


def pooled(rows: Rows, config: Any) -> Rows:
    """The rows of the next block; those before are looked at for one layer if ``pool_q_only``."""
    if rows.hidden.shape[1] <= 1 + config.separate_cls:
        return rows
    pads, all_rows = pools_pads(config), rows
    if pads and config.separate_cls and config.truncate_seq:
        occupancy = rows.occupancy
        occupancy = replace(occupancy, position=occupancy.position[:, :-1], there=occupancy.there[:, :-1])
        rows = replace(rows, hidden=rows.hidden[:, :-1], occupancy=occupancy)
    alone = torch.zeros_like(rows.occupancy.weights)
    alone[:, 0] = config.separate_cls
    merged: Any = rows.pool(2, alone, config.pooling_type, pads)
    merged = replace(merged, stride=2 * rows.stride)
    if compatible(config):
        pad = rows.with_hidden((~rows.occupancy.weights)[..., None].float())
        real = pad.pool(2, alone, "max", pads).hidden[..., 0] == 0
        merged = replace(merged, occupancy=replace(merged.occupancy, there=real))
    return merged.looking_at(all_rows if config.pool_q_only else None)


def widened(hidden: Tensor, first: Tensor, config: Any) -> Tensor:
    """The decoder's input: each token's row of ``hidden`` (zeros if it has none) plus what left the first block."""
    apart, stride = int(config.separate_cls), 2 ** (len(config.block_sizes) - 1)
    place = torch.arange(first.shape[1], device=first.device)
    row = (place - apart).div(stride, rounding_mode="floor") + apart
    return F.pad(hidden, (0, 0, 0, 1))[:, row.clamp(max=hidden.shape[1])] + first


def relative_attention(
    query: Tensor,
    position: Tensor,
    key: Tensor,
    value: Tensor,
    distances: Tensor,
    step: int,
    separate: bool,
    dropout: float,
) -> Tensor:
    """Attention whose scores are a product with the key plus one with the distance to it, ``(B, Q, H d)``.

    Each query meets every distance once. In the product of a chunk of queries with the distances that any of them has
    to a key, a query's distances to all keys lie side by side, ``step`` places further back than those of the query
    before: a view with a shorter stride is the scores, and the product with the keys is added onto it. Nothing is
    padded, shifted or gathered, and a chunk stays in a core's cache.

    Args:
        query: ``(H, B, Q, e)``, scaled, with the columns of ``key``.
        position: ``(H, B, Q, d)`` what meets the distances, scaled.
        key: ``(H, B, K, e)``.
        value: ``(H, B, K, d)``.
        distances: ``(H, d, step (Q - 1) + K)``, projected, the largest first.
        step: places that distances fall by from one query to the next.
        separate: the first key is at no distance from anybody.
        dropout: of the probabilities.
    """
    count, batch, queries, _ = query.shape
    each = min(queries, QUERIES) * (key.shape[2] + step * QUERIES)  # scores of one chunk, head and sequence
    block = BLOCK.get(query.device.type, BLOCK["cuda"])
    heads_at_once, sequences_at_once = max(block // (each * batch), 1), max(block // each, 1)
    contexts = []
    for h in range(0, count, heads_at_once):
        some = slice(h, h + heads_at_once)
        parts = zip(*(x[some].split(sequences_at_once, 1) for x in (query, position, key, value)), strict=True)
        groups = [chunked(q, p, k, v, distances[some], step, separate, dropout) for q, p, k, v in parts]
        contexts.append(torch.cat(groups, 1).permute(1, 2, 0, 3).flatten(2))
    return torch.cat(contexts, -1)


def chunked(
    query: Tensor,
    position: Tensor,
    key: Tensor,
    value: Tensor,
    distances: Tensor,
    step: int,
    separate: bool,
    dropout: float,
) -> Tensor:
    """:func:`relative_attention` for as many heads and sequences as fit in the cache, chunk by chunk of queries."""
    shape, keys = query.shape[:2], key.shape[2]
    key, value = key.flatten(0, 1).transpose(1, 2), value.flatten(0, 1)
    contexts = []
    for begin in range(0, query.shape[2], QUERIES):
        asking, placed = query[:, :, begin : begin + QUERIES], position[:, :, begin : begin + QUERIES]
        rows = asking.shape[2]
        nearest, width = step * (query.shape[2] - begin - rows), step * (rows - 1) + keys
        met = placed.flatten(1, 2) @ distances[..., nearest : nearest + width]
        scores = met.as_strided((len(key), rows, keys), (rows * width, width - step, 1), step * (rows - 1))
        if separate:
            scores[..., 0] = 0
        scores = torch.baddbmm(scores, asking.flatten(0, 1), key)
        probabilities = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
        contexts.append(F.dropout(probabilities, dropout) @ value)
    return torch.cat(contexts, 1).unflatten(0, shape)
