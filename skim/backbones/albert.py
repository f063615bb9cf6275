"""ALBERT: one layer (or a few) run many times."""

from __future__ import annotations

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from skim.backbones.base import Backbone, Module
from skim.engine.walk import Inputs


class Albert(Backbone):
    """A layer of skim's is one run of an ``AlbertLayer``: ``num_hidden_layers * inner_group_num`` of them."""

    model_types = ("albert",)
    feed_forward_parts = ("ffn", "ffn_output")

    def layers(self, base: Module) -> list[Module]:
        groups = base.encoder.albert_layer_groups
        runs = base.config.num_hidden_layers
        return [layer for i in range(runs) for layer in groups[i * len(groups) // runs].albert_layers]

    def embed(self, base: Module, inputs: Inputs) -> Tensor:
        return base.encoder.embedding_hidden_mapping_in(super().embed(base, inputs))

    def feed_forward(self, layer: Module, hidden: Tensor) -> Tensor:
        return layer.full_layer_layer_norm(layer.ff_chunk(hidden) + hidden)

    def finish(self, base: Module, hidden: Tensor) -> BaseModelOutputWithPooling:
        pooled = None if base.pooler is None else base.pooler_activation(base.pooler(hidden[:, 0]))
        return BaseModelOutputWithPooling(last_hidden_state=hidden, pooler_output=pooled)

    def pair_flops(self, layer: Module) -> float:
        return 4.0 * layer.attention.all_head_size
