"""DistilBERT: BERT's layer under other names, no token types, no pooler."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from skim.backbones.base import Backbone, Module
from skim.engine.attention import AttentionMask
from skim.engine.walk import Inputs


class DistilBert(Backbone):
    """The norms sit in the layer itself, beside the two halves."""

    model_types = ("distilbert",)
    feed_forward_parts = ("ffn",)

    def layers(self, base: Module) -> list[Module]:
        return list(base.transformer.layer)

    def embed(self, base: Module, inputs: Inputs) -> Tensor:
        return base.embeddings(inputs.input_ids, inputs.inputs_embeds, inputs.position_ids)

    def attend(self, layer: Module, hidden: Tensor, mask: AttentionMask, geometry: Any) -> Tensor:
        return layer.sa_layer_norm(layer.attention(hidden, mask)[0] + hidden)

    def feed_forward(self, layer: Module, hidden: Tensor) -> Tensor:
        return layer.output_layer_norm(layer.ffn(hidden) + hidden)

    def pair_flops(self, layer: Module) -> float:
        return 4.0 * layer.attention.dim
