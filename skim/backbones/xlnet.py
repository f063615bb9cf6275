"""XLNet as an encoder: sequence first, padded on the left, attention by distance and by segment."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from skim.backbones.base import Module, Narrowed, distances
from skim.engine.adapters import call_flops, linear_flops
from skim.engine.inputs import Inputs
from skim.engine.mask import AttentionMask, MaskedSoftmax
from skim.engine.tokens import TokenBatch
from skim.flops import LayerCost, precise


class Geometry(NamedTuple):
    """Places of the rows.

    Attributes:
        table: ``(2 N, 1 or B, D)`` embeddings of the distances N, N - 1, ... 1 - N from query to key.
        row: ``(1 or B, 1, K, K)`` which row of the table each pair looks at.
        other_segment: ``(K, K, B, 2)`` one-hot, whether a pair spans two segments; ``None`` without token types.
    """

    table: Tensor
    row: Tensor
    other_segment: Tensor | None


@dataclass(frozen=True)
class SegmentCost(LayerCost):
    """A layer that looks at segments, if it is told of any.

    Attributes:
        segments: per token, the scores of the two segment embeddings.
        choice: per pair, which of the two it gets.
        context: the part of ``pair`` that is the weighted sum of the values; of a single key, that is no product.
    """

    segments: float = 0.0
    choice: float = 0.0
    context: float = 0.0

    def __call__(self, attending: Tensor, *others: Tensor | None) -> Tensor:
        rows = precise(attending)
        own = self.segments * rows + self.choice * rows**2 - self.context * precise(attending == 1)
        return super().__call__(attending, *others) + own  # type: ignore[arg-type]


class XLNet(Narrowed):
    """No memory, no permutation: what the task heads use. The segment products of its tokenizer's input are counted."""

    model_types = ("xlnet",)
    embedding_parts = ("word_embedding",)
    head_reads = "last"
    feed_forward_parts = ("ff",)

    def refuses(self, config: Any) -> str | None:
        if config.attn_type != "bi" or config.bi_data:
            return "it is configured for pretraining (attn_type='uni' or bi_data=True)"
        return None

    def longest_input(self, config: Any) -> int | None:
        return None  # distances have no end; transformers says -1 positions

    def layers(self, base: Module) -> list[Module]:
        return list(base.layer)

    def embed(self, base: Module, inputs: Inputs) -> Tensor:
        words = base.word_embedding(inputs.input_ids) if inputs.inputs_embeds is None else inputs.inputs_embeds
        return base.dropout(words)

    def geometry(self, base: Module, tokens: TokenBatch, inputs: Inputs) -> Any:
        batch, positions = tokens.sequences.real.shape
        alike = not (base.training and base.config.dropout > 0)  # one table for all, unless each drops its own part
        table = base.relative_positional_encoding(
            positions, positions, bsz=None if alike else batch, device=tokens.hidden.device
        )
        row = (positions + distances(tokens)).clamp(max=2 * positions - 1)[:, None]  # filler rows sit at N
        segments = None
        if inputs.token_type_ids is not None:
            types = tokens.occupancy.rows(inputs.token_type_ids).T
            segments = F.one_hot((types[:, None] != types[None, :]).long(), num_classes=2).to(base.dtype)
        return Geometry(base.dropout(table), row, segments)

    def attend(self, layer: Module, hidden: Tensor, mask: AttentionMask, geometry: Geometry) -> Tensor:
        def look_up(by_distance: Tensor, klen: int) -> Tensor:
            return by_distance.gather(3, geometry.row.expand(*by_distance.shape[:3], -1))

        # The shift from distances to pairs of rows is written for rows without gaps; in this call, on a shallow copy of
        # the module that other forwards may be using, it goes by position.
        attention = copy.copy(layer.rel_attn)
        vars(attention)["rel_shift_bnij"] = look_up
        with MaskedSoftmax(mask):
            out = attention(hidden.transpose(0, 1), None, None, None, geometry.table, geometry.other_segment)[0]
        return out.transpose(0, 1)

    def feed_forward(self, layer: Module, hidden: Tensor) -> Tensor:
        return layer.ff(hidden)

    def finish(self, base: Module, hidden: Tensor) -> Any:
        from transformers.models.xlnet.modeling_xlnet import XLNetModelOutput

        return XLNetModelOutput(last_hidden_state=base.dropout(hidden))

    def hidden_states(self, base: Module, states: list[Tensor], hidden: Tensor, output: Any) -> tuple[Tensor, ...]:
        return (*states, hidden)  # as they are before the last dropout

    def charged(self, cost: LayerCost, inputs: Inputs) -> LayerCost:
        assert isinstance(cost, SegmentCost)
        return cost if inputs.token_type_ids is not None else replace(cost, segments=0.0, choice=0.0)

    def cost(self, layer: Module) -> LayerCost:
        """The table has two rows for every input position, whoever is still there, and every query meets all of it."""
        attention = layer.rel_attn
        heads = attention.n_head * attention.d_head
        projection = 2.0 * attention.d_model * heads
        return SegmentCost(
            attention=4 * projection,  # q, k, v, o
            pair=4.0 * heads,  # content and context
            feed_forward=linear_flops(layer.ff),
            fixed=call_flops(layer),
            table=2 * projection,
            lookup=2 * 2.0 * heads,
            segments=2.0 * 2 * heads,
            choice=2.0 * 2 * attention.n_head,
            context=2.0 * heads,
        )
