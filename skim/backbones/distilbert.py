"""DistilBERT: BERT's layer under other names, no token types, no pooler."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from skim.backbones.base import Backbone, Module, heads, look
from skim.engine.inputs import Inputs
from skim.engine.mask import AttentionMask


class DistilBert(Backbone):
    """The norms sit in the layer itself, beside the two halves."""

    model_types = ("distilbert",)
    exports = True
    feed_forward_parts = ("ffn",)
    key_parts = ("attention.k_lin", "attention.v_lin")
    output = BaseModelOutput

    def layers(self, base: Module) -> list[Module]:
        return list(base.transformer.layer)

    def embed(self, base: Module, inputs: Inputs) -> Tensor:
        return base.embeddings(inputs.input_ids, inputs.inputs_embeds, inputs.position_ids)

    def attend(self, layer: Module, hidden: Tensor, mask: AttentionMask, geometry: Any) -> Tensor:
        return layer.sa_layer_norm(layer.attention(hidden, mask)[0] + hidden)

    def keys_and_values(self, layer: Module, hidden: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
        attention = layer.attention
        size = attention.attention_head_size
        return heads(attention.k_lin(hidden), size), heads(attention.v_lin(hidden), size)

    def attend_to(
        self, layer: Module, hidden: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, geometry: Any
    ) -> Tensor:
        attention = layer.attention
        query = heads(attention.q_lin(hidden), attention.attention_head_size)
        context = look(attention, query, key, value, mask, attention.scaling, attention.dropout.p)
        return layer.sa_layer_norm(attention.out_lin(context) + hidden)

    def feed_forward(self, layer: Module, hidden: Tensor) -> Tensor:
        return layer.output_layer_norm(layer.ffn(hidden) + hidden)

    def pair_flops(self, layer: Module) -> float:
        return 4.0 * layer.attention.dim
