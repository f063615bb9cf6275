"""ESM-2 and ESM-1b: protein encoders, norms before the halves, learned or rotary positions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from skim.backbones.base import Backbone, Module, heads, look, positions, rotated
from skim.engine.inputs import Inputs
from skim.engine.mask import AttentionMask
from skim.engine.tokens import TokenBatch


class Esm(Backbone):
    """The embeddings read the attention mask: they make up for masked tokens and blank the pads."""

    model_types = ("esm",)
    positions_after_padding = True

    def keep_layers(self, base: Module, kept: Sequence[int]) -> None:
        """The head for contacts reads the attention of every layer: it keeps the weights of those that stay."""
        super().keep_layers(base, kept)
        contacts = base.contact_head.regression
        of_each = contacts.weight.unflatten(1, (-1, base.config.num_attention_heads))
        contacts.weight = nn.Parameter(of_each[:, list(kept)].flatten(1).detach().clone())
        contacts.in_features = contacts.weight.shape[1]

    def embed(self, base: Module, inputs: Inputs) -> Tensor:
        if inputs.inputs_embeds is not None:  # taken as they are, without positions: so does transformers
            return inputs.inputs_embeds
        mask = inputs.attention_mask
        if mask is not None:  # the share of masked tokens among none at all is not a number, and neither its gradient
            mask = mask.masked_fill(~mask.bool().any(1, keepdim=True), 1)
        return base.embeddings(input_ids=inputs.input_ids, attention_mask=mask, position_ids=inputs.position_ids)

    def geometry(self, base: Module, tokens: TokenBatch, inputs: Inputs) -> Any:
        if base.rotary_embeddings is None:
            return None
        return base.rotary_embeddings(tokens.hidden, positions(tokens, inputs))

    def attend(self, layer: Module, hidden: Tensor, mask: AttentionMask, geometry: Any) -> Tensor:
        return layer.attention(hidden, attention_mask=mask, position_embeddings=geometry)

    def keys_and_values(self, layer: Module, hidden: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
        attention = layer.attention.self
        key, value = super().keys_and_values(layer, layer.attention.LayerNorm(hidden), geometry)
        return rotated(key, geometry) if attention.position_embedding_type == "rotary" else key, value

    def attend_to(
        self, layer: Module, hidden: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, geometry: Any
    ) -> Tensor:
        attention = layer.attention.self
        size = attention.attention_head_size
        query = heads(attention.query(layer.attention.LayerNorm(hidden)), size) * size**-0.5
        if attention.position_embedding_type == "rotary":
            query = rotated(query, geometry)
        context = look(attention, query, key, value, mask, attention.scaling, attention.dropout)
        return layer.attention.output(context, hidden)

    def feed_forward(self, layer: Module, hidden: Tensor) -> Tensor:
        return layer.feed_forward_chunk(hidden)

    def finish(self, base: Module, hidden: Tensor) -> Any:
        return super().finish(base, base.encoder.emb_layer_norm_after(hidden))
