"""ALBERT: one layer (or a few) run many times."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from skim.backbones.base import Backbone, Module, heads, look
from skim.engine.inputs import Inputs
from skim.engine.mask import AttentionMask


class Albert(Backbone):
    """A layer of skim's is one run of an ``AlbertLayer``: ``num_hidden_layers * inner_group_num`` of them."""

    model_types = ("albert",)
    feed_forward_parts = ("ffn", "ffn_output")
    key_parts = ("attention.key", "attention.value")
    output = BaseModelOutputWithPooling

    def layers(self, base: Module) -> list[Module]:
        groups = base.encoder.albert_layer_groups
        runs = base.config.num_hidden_layers
        return [layer for i in range(runs) for layer in groups[i * len(groups) // runs].albert_layers]

    def embed(self, base: Module, inputs: Inputs) -> Tensor:
        return base.encoder.embedding_hidden_mapping_in(super().embed(base, inputs))

    def keys_and_values(self, layer: Module, hidden: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
        attention = layer.attention
        size = attention.attention_head_size
        return heads(attention.key(hidden), size), heads(attention.value(hidden), size)

    def attend_to(
        self, layer: Module, hidden: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, geometry: Any
    ) -> Tensor:
        attention = layer.attention
        query = heads(attention.query(hidden), attention.attention_head_size)
        context = look(attention, query, key, value, mask, attention.scaling, attention.attention_dropout.p)
        return attention.LayerNorm(hidden + attention.output_dropout(attention.dense(context)))

    def feed_forward(self, layer: Module, hidden: Tensor) -> Tensor:
        return layer.full_layer_layer_norm(layer.ff_chunk(hidden) + hidden)

    def finish(self, base: Module, hidden: Tensor) -> Any:
        pooled = None if base.pooler is None else base.pooler_activation(base.pooler(hidden[:, 0]))
        return self.output(last_hidden_state=hidden, pooler_output=pooled)

    def pair_flops(self, layer: Module) -> float:
        return 4.0 * layer.attention.all_head_size
