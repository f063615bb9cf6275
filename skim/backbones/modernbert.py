"""ModernBERT: rotary positions, norms before the halves, and layers that see a window only."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from skim.backbones.base import Backbone, Module, positions
from skim.engine.attention import AttentionMask
from skim.engine.tokens import TokenBatch
from skim.engine.walk import Inputs


class ModernBert(Backbone):
    """Rotations and windows go by where a token came in: a gap that others left behind stays a distance."""

    model_types = ("modernbert",)
    feed_forward_parts = ("mlp",)

    def layers(self, base: Module) -> list[Module]:
        return list(base.layers)

    def embed(self, base: Module, inputs: Inputs) -> Tensor:
        return base.embeddings(input_ids=inputs.input_ids, inputs_embeds=inputs.inputs_embeds)

    def geometry(self, base: Module, tokens: TokenBatch, inputs: Inputs) -> Any:
        """Cosines and sines, one pair for each kind of layer: local and global ones turn at different speeds."""
        position = positions(tokens, inputs)
        return {kind: base.rotary_emb(tokens.hidden, position, kind) for kind in set(base.config.layer_types)}

    def window(self, layer: Module) -> int | None:
        return layer.config.sliding_window if layer.attention_type == "sliding_attention" else None

    def attend(self, layer: Module, hidden: Tensor, mask: AttentionMask, geometry: Any) -> Tensor:
        rotation = geometry[layer.attention_type]
        return hidden + layer.attn(layer.attn_norm(hidden), position_embeddings=rotation, attention_mask=mask)[0]

    def feed_forward(self, layer: Module, hidden: Tensor) -> Tensor:
        return hidden + layer.mlp(layer.mlp_norm(hidden))

    def finish(self, base: Module, hidden: Tensor) -> BaseModelOutputWithPooling:
        return super().finish(base, base.final_norm(hidden))

    def pair_flops(self, layer: Module) -> float:
        return 4.0 * layer.config.hidden_size
