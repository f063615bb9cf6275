"""MPNet: BERT with a learned bias for the distance of two tokens, shared by all layers."""

from __future__ import annotations

from typing import Any

from transformers.modeling_outputs import BaseModelOutputWithPooling

from skim.backbones.base import Module, Narrowed, distances
from skim.engine.inputs import Inputs
from skim.engine.tokens import TokenBatch


class MPNet(Narrowed):
    """The bias is looked up by input positions, once for every set of rows."""

    model_types = ("mpnet",)
    embedding_parts = ("embeddings", "encoder.relative_attention_bias")
    positions_after_padding = True
    output = BaseModelOutputWithPooling
    always_pooled = True

    def geometry(self, base: Module, tokens: TokenBatch, inputs: Inputs) -> Any:
        encoder = base.encoder
        bias = encoder.relative_attention_bias(encoder.relative_position_bucket(distances(tokens)))
        return {"position_bias": bias.permute(0, 3, 1, 2)}

    def pair_flops(self, layer: Module) -> float:
        return 4.0 * layer.attention.attn.all_head_size
