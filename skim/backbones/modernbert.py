"""ModernBERT: rotary positions, norms before the halves, and layers that see a window only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutput

from skim.backbones.base import Backbone, Module, heads, look, positions, rotated
from skim.engine.inputs import Inputs
from skim.engine.mask import AttentionMask
from skim.engine.tokens import TokenBatch
from skim.errors import SkimError
from skim.flops import LayerCost


class ModernBert(Backbone):
    """Rotations and windows go by where a token came in: a gap that others left behind stays a distance."""

    model_types = ("modernbert",)
    exports = True
    feed_forward_parts = ("mlp",)
    key_parts = ("attn.Wqkv",)
    output = BaseModelOutput

    def layers(self, base: Module) -> list[Module]:
        return list(base.layers)

    def keep_layers(self, base: Module, kept: Sequence[int]) -> None:
        if 0 not in kept:
            raise SkimError(
                "A plain ModernBERT without its first layer does not exist: that one has no norm before its attention, "
                "as every other has, and transformers leaves it out of whichever comes first.\nKeep layer 0, or save "
                "without merged=True."
            )
        super().keep_layers(base, kept)
        base.config.layer_types = [base.config.layer_types[i] for i in kept]
        vars(base.config).pop("global_attn_every_n_layers", None)  # the pattern that the list takes the place of

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

    def keys_and_values(self, layer: Module, hidden: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
        _, *weights = part_of(layer.attn.Wqkv)
        key, value = (heads(F.linear(layer.attn_norm(hidden), *part), layer.attn.head_dim) for part in weights)
        return rotated(key, geometry[layer.attention_type]), value

    def attend_to(
        self, layer: Module, hidden: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, geometry: Any
    ) -> Tensor:
        attention = layer.attn
        query = heads(F.linear(layer.attn_norm(hidden), *part_of(attention.Wqkv)[0]), attention.head_dim)
        query = rotated(query, geometry[layer.attention_type])
        context = look(attention, query, key, value, mask, attention.head_dim**-0.5, attention.attention_dropout)
        return hidden + attention.out_drop(attention.Wo(context))

    def feed_forward(self, layer: Module, hidden: Tensor) -> Tensor:
        return hidden + layer.mlp(layer.mlp_norm(hidden))

    def finish(self, base: Module, hidden: Tensor) -> Any:
        return super().finish(base, base.final_norm(hidden))

    def cost(self, layer: Module) -> LayerCost:
        cost = super().cost(layer)
        return replace(cost, keys=cost.keys * 2 / 3)  # queries are made by the same matrix

    def pair_flops(self, layer: Module) -> float:
        return 4.0 * layer.config.hidden_size


def part_of(linear: Module) -> list[tuple[Tensor, Tensor | None]]:
    """Weight and bias of the three linear maps, to queries, keys and values, that one module holds."""
    if not isinstance(linear, nn.Linear):
        raise SkimError(
            "An adapter on ModernBERT's Wqkv makes queries, keys and values at once, and this method "
            "needs them apart.\nPut adapters on Wo and Wi, or merge them first."
        )
    biases = [None] * 3 if linear.bias is None else linear.bias.chunk(3)
    return list(zip(linear.weight.chunk(3), biases, strict=True))
