"""The contract of a model family: where its layers are, and how to call a layer's two halves."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, TypeAlias

from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions, ModelOutput

from skim.engine.adapters import call_flops, linear_flops
from skim.engine.attention import skim_attention
from skim.engine.inputs import Inputs
from skim.engine.kernels.linear import bare, closed, expanded, fuses, linear
from skim.engine.mask import AttentionMask
from skim.engine.tokens import TokenBatch
from skim.flops import LayerCost

Module: TypeAlias = Any  # an nn.Module of transformers: what its attributes are, no type checker can know


class Backbone:
    """One model family, without state. The defaults fit BERT and its descendants; a family overrides what differs.

    Attributes:
        model_types: values of ``config.model_type`` that this family serves.
        packs: whether its attention goes through transformers' ``AttentionInterface``; if not, it runs narrowed.
        head_reads: the token that the heads read, ``first`` or ``last`` of the real ones; asked of heads that read all.
        positions_after_padding: whether position ids start at ``pad_token_id + 1``, as RoBERTa's do.
        feed_forward_parts: names of a layer's modules that make up its feed-forward half; for FLOPs.
        key_parts: names of a layer's modules that make keys and values; for FLOPs.
        embedding_parts: names of the base model's modules that make the first layer's input, and of those that all
            layers share, such as a table of relative positions; not every model has all of them.
        looks_apart: whether rows can look at other rows than themselves, by the two functions that say so.
        shortens: whether the architecture itself changes its rows on the way, in :meth:`before_layer`; it then takes no
            method that does so as well.
        exports: whether a graph can hold its forward; see :mod:`skim.export`.
        output: the class of the base model's output.
        always_pooled: whether the tuple of ``return_dict=False`` has a place for the pooler's output without a pooler.
    """

    model_types: ClassVar[tuple[str, ...]]
    packs: ClassVar[bool] = True
    head_reads: ClassVar[Literal["first", "last"]] = "first"
    positions_after_padding: ClassVar[bool] = False
    feed_forward_parts: ClassVar[tuple[str, ...]] = ("intermediate", "output")
    key_parts: ClassVar[tuple[str, ...]] = ("attention.self.key", "attention.self.value")
    embedding_parts: ClassVar[tuple[str, ...]] = ("embeddings",)
    looks_apart: ClassVar[bool] = True
    shortens: ClassVar[bool] = False
    exports: ClassVar[bool] = False
    output: ClassVar[type[ModelOutput]] = BaseModelOutputWithPoolingAndCrossAttentions
    always_pooled: ClassVar[bool] = False

    def refuses(self, config: Any) -> str | None:
        """Why a model of this family with this config cannot be compressed; ``None`` if it can."""
        return None

    def longest_input(self, config: Any) -> int | None:
        """Positions that a sequence may have; ``None`` where the family sets no limit."""
        positions = getattr(config, "max_position_embeddings", None)
        return positions - config.pad_token_id - 1 if positions and self.positions_after_padding else positions

    def layers(self, base: Module) -> list[Module]:
        """The layers in the order in which they run; a shared layer appears as often as it runs."""
        return list(base.encoder.layer)

    def keep_layers(self, base: Module, kept: Sequence[int]) -> None:
        """Take the other layers out of a plain model and its config, so that transformers builds the same from it.

        Args:
            base: the base model; changed in place.
            kept: the layers that stay, counted from 0 as in :meth:`layers`, in their order.

        Raises:
            SkimError: the architecture has no such model.
        """
        layers = self.layers(base)
        stack = next(part for part in base.modules() if isinstance(part, nn.ModuleList) and list(part) == layers)
        for i in reversed(range(len(layers))):
            if i not in kept:
                del stack[i]
        base.config.num_hidden_layers = len(kept)

    def embed(self, base: Module, inputs: Inputs) -> Tensor:
        """The input of the first layer, ``(B, N, D)``."""
        return base.embeddings(
            input_ids=inputs.input_ids,
            token_type_ids=inputs.token_type_ids,
            position_ids=inputs.position_ids,
            inputs_embeds=inputs.inputs_embeds,
        )

    def embeddings(self, base: Module) -> list[Module]:
        """The modules below the first layer, see :attr:`embedding_parts`."""
        named = dict(base.named_modules())
        return [named[name] for name in self.embedding_parts if name in named]

    def before_layer(self, base: Module, i: int, tokens: TokenBatch) -> TokenBatch:
        """Change rows before layer ``i`` as the architecture itself does, ahead of the method."""
        return tokens

    def geometry(self, base: Module, tokens: TokenBatch, inputs: Inputs) -> Any:
        """Compute all that attention needs of the places of ``tokens``' rows (rotations, relative biases).

        Called again whenever rows have moved, or look at others than before; handed to :meth:`attend`.
        """
        return None

    def window(self, layer: Module) -> int | None:
        """Input positions to either side that the layer looks at, ``None`` for all."""
        return None

    def attend(self, layer: Module, hidden: Tensor, mask: AttentionMask, geometry: Any) -> Tensor:
        """The layer's first half, residual and norm included; ``(B, N, D)``, ``(1, T, D)`` or ``(B, K, D)``."""
        attention = layer.attention
        if not (fuses(attention.self.query, hidden) and bare(attention, attention.self)):
            return attention(hidden, mask)[0]
        return self.attend_to(layer, hidden, *self.keys_and_values(layer, hidden, geometry), mask, geometry)

    def keys_and_values(self, layer: Module, hidden: Tensor, geometry: Any) -> tuple[Tensor, Tensor]:
        """Project any rows to the layer's keys and values: ``(B, N, D)`` to twice ``(B, H, N, d)``."""
        attention = layer.attention.self
        size = attention.attention_head_size
        return heads(linear(attention.key, hidden), size), heads(linear(attention.value, hidden), size)

    def attend_to(
        self, layer: Module, hidden: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, geometry: Any
    ) -> Tensor:
        """The layer's first half with rows that look at others: :meth:`attend`, but for keys and values."""
        attention = layer.attention.self
        query = heads(linear(attention.query, hidden), attention.attention_head_size)
        context = look(attention, query, key, value, mask, attention.scaling, attention.dropout.p)
        return closed(layer.attention.output, context, hidden)

    def feed_forward(self, layer: Module, hidden: Tensor) -> Tensor:
        """The layer's second half, residual and norm included."""
        return closed(layer.output, expanded(layer.intermediate, hidden), hidden)

    def finish(self, base: Module, hidden: Tensor) -> Any:
        """The base model's output from the restored last states ``(B, N, D)``, as transformers has it."""
        pooler = getattr(base, "pooler", None)
        pooled = {} if pooler is None else {"pooler_output": pooler(hidden)}
        return self.output(last_hidden_state=hidden, **pooled)

    def as_tuple(self, output: Any) -> tuple[Any, ...]:
        """The base model's output by ``return_dict=False``."""
        listed = output.to_tuple()
        missing = self.always_pooled and output.pooler_output is None
        return (listed[0], None, *listed[1:]) if missing else listed

    def hidden_states(self, base: Module, states: list[Tensor], hidden: Tensor, output: Any) -> tuple[Tensor, ...]:
        """``output_hidden_states`` as the family reports them: what entered each layer, and the model's output."""
        return (*states, output.last_hidden_state)

    def states_of_layers(self, base: Module, reported: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Choose from :meth:`hidden_states`, as reported, the embeddings and what comes out of each layer."""
        return reported

    def cost(self, layer: Module) -> LayerCost:
        """FLOPs of one layer per token and per pair."""
        whole = linear_flops(layer)
        feed_forward = sum(linear_flops(getattr(layer, name)) for name in self.feed_forward_parts)
        keys = sum(linear_flops(layer.get_submodule(name)) for name in self.key_parts) if self.looks_apart else 0.0
        fixed = call_flops(layer)
        return LayerCost(whole - feed_forward, self.pair_flops(layer), feed_forward, fixed=fixed, keys=keys)

    def charged(self, cost: LayerCost, inputs: Inputs) -> LayerCost:
        """Adapt a layer's cost to the inputs, for a family that computes less when some of them are not given."""
        return cost

    def pair_flops(self, layer: Module) -> float:
        """FLOPs per pair of tokens: the scores and the weighted sum of the values, all heads."""
        return 4.0 * layer.attention.self.all_head_size


def heads(rows: Tensor, size: int) -> Tensor:
    """Split the last dimension into heads: ``(B, N, H d)`` to ``(B, H, N, d)``."""
    return rows.unflatten(-1, (-1, size)).transpose(1, 2)


def look(
    module: Module, query: Tensor, key: Tensor, value: Tensor, mask: AttentionMask, scaling: float, dropout: float
) -> Tensor:
    """Attention as the family's own modules call it, heads side by side again: ``(B, N, H d)``."""
    dropout = dropout if module.training else 0.0
    return skim_attention(module, query, key, value, mask, scaling=scaling, dropout=dropout)[0].flatten(-2)
