"""EuroBERT: a Llama layer that looks both ways."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from skim.backbones.base import Backbone, Module, heads, look, positions, rotated
from skim.engine.inputs import Inputs
from skim.engine.mask import AttentionMask
from skim.engine.tokens import TokenBatch


class EuroBert(Backbone):
    """Norms before the halves, rotary positions, grouped queries."""

    model_types = ("eurobert",)
    embedding_parts = ("embed_tokens",)
    feed_forward_parts = ("mlp",)
    key_parts = ("self_attn.k_proj", "self_attn.v_proj")
    output = BaseModelOutput

    def layers(self, base: Module) -> list[Module]:
        return list(base.layers)

    def embed(self, base: Module, inputs: Inputs) -> Tensor:
        return base.embed_tokens(inputs.input_ids) if inputs.inputs_embeds is None else inputs.inputs_embeds

    def geometry(self, base: Module, tokens: TokenBatch, inputs: Inputs) -> Any:
        return base.rotary_emb(tokens.hidden, positions(tokens, inputs))

    def attend(self, layer: Module, hidden: Tensor, mask: AttentionMask, geometry: Any) -> Tensor:
        normed = layer.input_layernorm(hidden)
        return hidden + layer.self_attn(normed, attention_mask=mask, position_embeddings=geometry)[0]

    def keys_and_values(self, layer: Module, hidden: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
        attention, states = layer.self_attn, layer.input_layernorm(hidden)
        key, value = (
            heads(attention.k_proj(states), attention.head_dim),
            heads(attention.v_proj(states), attention.head_dim),
        )
        return rotated(key, geometry), value

    def attend_to(
        self, layer: Module, hidden: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, geometry: Any
    ) -> Tensor:
        attention = layer.self_attn
        query = rotated(heads(attention.q_proj(layer.input_layernorm(hidden)), attention.head_dim), geometry)
        context = look(attention, query, key, value, mask, attention.scaling, attention.attention_dropout)
        return hidden + attention.o_proj(context)

    def feed_forward(self, layer: Module, hidden: Tensor) -> Tensor:
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))

    def finish(self, base: Module, hidden: Tensor) -> Any:
        return super().finish(base, base.norm(hidden))

    def pair_flops(self, layer: Module) -> float:
        return 4.0 * layer.self_attn.q_proj.out_features
