"""Nomic BERT and Jina embeddings v3: BERT with rotary positions."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from skim.backbones.base import Backbone, Module, heads, look, positions, rotated
from skim.engine.inputs import Inputs
from skim.engine.mask import AttentionMask
from skim.engine.tokens import TokenBatch


class NomicBert(Backbone):
    """Dropout, residual and norm of either half sit in the layer itself."""

    model_types = ("nomic_bert", "jina_embeddings_v3")
    feed_forward_parts = ("mlp",)
    key_parts = ("self_attn.k_proj", "self_attn.v_proj")
    output = BaseModelOutputWithPooling

    def layers(self, base: Module) -> list[Module]:
        return list(base.layers)

    def geometry(self, base: Module, tokens: TokenBatch, inputs: Inputs) -> Any:
        return base.rotary_emb(tokens.hidden, positions(tokens, inputs))

    def attend(self, layer: Module, hidden: Tensor, mask: AttentionMask, geometry: Any) -> Tensor:
        context = layer.self_attn(hidden, attention_mask=mask, position_embeddings=geometry)[0]
        return layer.post_attention_layernorm(hidden + layer.post_attention_dropout(context))

    def keys_and_values(self, layer: Module, hidden: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
        attention, states = layer.self_attn, hidden
        key, value = (
            heads(attention.k_proj(states), attention.head_dim),
            heads(attention.v_proj(states), attention.head_dim),
        )
        return rotated(key, geometry), value

    def attend_to(
        self, layer: Module, hidden: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, geometry: Any
    ) -> Tensor:
        attention = layer.self_attn
        query = rotated(heads(attention.q_proj(hidden), attention.head_dim), geometry)
        context = look(attention, query, key, value, mask, attention.scaling, attention.attention_dropout)
        return layer.post_attention_layernorm(hidden + layer.post_attention_dropout(attention.o_proj(context)))

    def feed_forward(self, layer: Module, hidden: Tensor) -> Tensor:
        return layer.post_mlp_layernorm(hidden + layer.post_mlp_dropout(layer.mlp(hidden)))

    def pair_flops(self, layer: Module) -> float:
        return 4.0 * layer.self_attn.q_proj.out_features
