"""ALBERT: one layer (or a few) run many times."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from skim.backbones.base import Backbone, Module, heads, look
from skim.engine.inputs import Inputs
from skim.engine.mask import AttentionMask


class Albert(Backbone):
    """A layer of skim's is one run of an ``AlbertLayer``: ``num_hidden_layers * inner_group_num`` of them."""

    model_types = ("albert",)
    embedding_parts = ("embeddings", "encoder.embedding_hidden_mapping_in")
    exports = True
    feed_forward_parts = ("ffn", "ffn_output")
    key_parts = ("attention.key", "attention.value")
    output = BaseModelOutputWithPooling

    def layers(self, base: Module) -> list[Module]:
        groups = base.encoder.albert_layer_groups
        runs = base.config.num_hidden_layers
        return [layer for i in range(runs) for layer in groups[i * len(groups) // runs].albert_layers]

    def keep_layers(self, base: Module, kept: Sequence[int]) -> None:
        """Find the smallest groups that run the same layers: layers that are shared stay so where ALBERT's rule can.

        Where it cannot, all that run stand in one group, a shared one as often as it runs.
        """
        config, layers = base.config, self.layers(base)
        running = [layers[i] for i in kept]
        ways = [way for size in range(1, len(running) + 1) if (way := groups_of(running, size)) is not None]
        groups = min(ways, key=lambda way: sum(map(len, way)))
        config.inner_group_num, config.num_hidden_groups = len(groups[0]), len(groups)
        config.num_hidden_layers = len(running) // len(groups[0])
        kind, stored = type(base.encoder.albert_layer_groups[0]), set()
        base.encoder.albert_layer_groups = nn.ModuleList(kind(config) for _ in groups)
        for made, group in zip(base.encoder.albert_layer_groups, groups, strict=True):
            for place, layer in enumerate(group):
                made.albert_layers[place] = copy.deepcopy(layer) if layer in stored else layer
                stored.add(layer)

    def embed(self, base: Module, inputs: Inputs) -> Tensor:
        return base.encoder.embedding_hidden_mapping_in(super().embed(base, inputs))

    def keys_and_values(self, layer: Module, hidden: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
        attention = layer.attention
        size = attention.attention_head_size
        return heads(attention.key(hidden), size), heads(attention.value(hidden), size)

    def attend(self, layer: Module, hidden: Tensor, mask: AttentionMask, geometry: Any) -> Tensor:
        return layer.attention(hidden, mask)[0]

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


def groups_of(running: Sequence[Module], size: int) -> list[tuple[Module, ...]] | None:
    """Groups of ``size`` layers that ALBERT's rule runs as these layers, one after the other; ``None``: there are none.

    By that rule each group runs as often as every other, give or take one, before the next begins.
    """
    if len(running) % size:
        return None
    runs = [tuple(running[i : i + size]) for i in range(0, len(running), size)]
    groups = list(dict.fromkeys(runs))
    return groups if runs == [groups[i * len(groups) // len(runs)] for i in range(len(runs))] else None
