"""DeBERTa-v2 and v3: attention from content to distance and back, through a table of distance embeddings."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from skim.backbones.base import Module, Narrowed, distances
from skim.engine.adapters import call_flops, linear_flops
from skim.engine.inputs import Inputs
from skim.engine.tokens import TokenBatch
from skim.flops import LayerCost


class DebertaV2(Narrowed):
    """Every layer projects the distance table anew: work that does not shrink when tokens leave."""

    model_types = ("deberta-v2",)
    embedding_parts = ("embeddings", "encoder.rel_embeddings", "encoder.LayerNorm")
    output = BaseModelOutput

    def refuses(self, config: Any) -> str | None:
        if getattr(config, "conv_kernel_size", 0) > 0:
            return "it convolves over neighbours after the first layer (conv_kernel_size > 0), so a token cannot leave"
        return None

    def embed(self, base: Module, inputs: Inputs) -> Tensor:
        return base.embeddings(
            input_ids=inputs.input_ids,
            token_type_ids=inputs.token_type_ids,
            position_ids=inputs.position_ids,
            mask=inputs.attention_mask,
            inputs_embeds=inputs.inputs_embeds,
        )

    def geometry(self, base: Module, tokens: TokenBatch, inputs: Inputs) -> Any:
        from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

        everyone = tokens.hidden.new_ones(1, 1, 1, 1)  # a mask must be given; the real one acts at the softmax
        encoder = base.encoder
        if not encoder.relative_attention:
            return {"attention_mask": everyone}
        relative = -distances(tokens)
        if encoder.position_buckets > 0 and encoder.max_relative_positions > 0:
            relative = make_log_bucket_position(relative, encoder.position_buckets, encoder.max_relative_positions)
        relative = relative.long()
        if len(relative) > 1:  # one table of distances per sequence: (1, B * H, K, K) is the form that broadcasts
            relative = relative.repeat_interleave(base.config.num_attention_heads, 0)[None]
        return {
            "attention_mask": everyone,
            "relative_pos": relative,
            "rel_embeddings": encoder.get_rel_embedding(),
        }

    def cost(self, layer: Module) -> LayerCost:
        """Content-distance products cost per token, the projections of the distance table per sequence."""
        attention = layer.attention.self
        cost = super().cost(layer)
        if not attention.relative_attention:
            return cost
        terms = [kind for kind in ("c2p", "p2c") if kind in attention.pos_att_type]
        table = 2.0 * attention.pos_ebd_size  # rows
        projection, calls = 0.0, cost.fixed
        for kind in terms:
            own, shared = {"c2p": ("pos_key_proj", "key_proj"), "p2c": ("pos_query_proj", "query_proj")}[kind]
            seen = getattr(attention, shared if attention.share_att_key else own)
            projection += linear_flops(seen)
            calls += call_flops(seen) if attention.share_att_key else 0.0  # once more than for the tokens
        per_token = cost.attention + 2.0 * len(terms) * table * attention.all_head_size
        if not attention.share_att_key:
            per_token -= projection  # these linear maps see the table, not the tokens
        return LayerCost(per_token, cost.pair, cost.feed_forward, fixed=calls + table * projection)
