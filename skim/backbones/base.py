"""What skim needs to know about a model family: where the layers are and how to call a layer's two halves."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, TypeAlias

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from skim.engine.attention import AttentionMask, MaskedSoftmax
from skim.engine.tokens import TokenBatch
from skim.engine.walk import Inputs
from skim.flops import LayerCost, linear_flops

Module: TypeAlias = Any  # an nn.Module of transformers: what its attributes are, no type checker can know


class Backbone:
    """One model family, without state. The defaults fit BERT and its descendants; a family overrides what differs.

    Attributes:
        model_types: values of ``config.model_type`` that this family serves.
        packs: whether its attention goes through transformers' ``AttentionInterface``; if not, it runs narrowed.
        head_reads: the token that the heads read, ``first`` or ``last`` of the real ones.
        positions_after_padding: whether position ids start at ``pad_token_id + 1``, as RoBERTa's do.
        feed_forward_parts: names of a layer's modules that make up its feed-forward half; for FLOPs.
    """

    model_types: ClassVar[tuple[str, ...]]
    packs: ClassVar[bool] = True
    head_reads: ClassVar[Literal["first", "last"]] = "first"
    positions_after_padding: ClassVar[bool] = False
    feed_forward_parts: ClassVar[tuple[str, ...]] = ("intermediate", "output")

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

    def embed(self, base: Module, inputs: Inputs) -> Tensor:
        """The input of the first layer, ``(B, N, D)``."""
        return base.embeddings(
            input_ids=inputs.input_ids,
            token_type_ids=inputs.token_type_ids,
            position_ids=inputs.position_ids,
            inputs_embeds=inputs.inputs_embeds,
        )

    def geometry(self, base: Module, tokens: TokenBatch, inputs: Inputs) -> Any:
        """What attention needs to know about where the rows of ``tokens`` sit (rotations, relative biases).

        Called again whenever rows have moved; handed to :meth:`attend`.
        """
        return None

    def window(self, layer: Module) -> int | None:
        """Input positions to either side that the layer looks at, ``None`` for all."""
        return None

    def attend(self, layer: Module, hidden: Tensor, mask: AttentionMask, geometry: Any) -> Tensor:
        """The layer's first half, residual and norm included; ``(B, N, D)``, ``(1, T, D)`` or ``(B, K, D)``."""
        return layer.attention(hidden, mask)[0]

    def feed_forward(self, layer: Module, hidden: Tensor) -> Tensor:
        """The layer's second half, residual and norm included."""
        return layer.output(layer.intermediate(hidden), hidden)

    def finish(self, base: Module, hidden: Tensor) -> BaseModelOutputWithPooling:
        """The base model's output from the restored last states ``(B, N, D)``."""
        pooler = getattr(base, "pooler", None)
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden, pooler_output=None if pooler is None else pooler(hidden)
        )

    def hidden_states(self, states: list[Tensor], hidden: Tensor, output: Any) -> tuple[Tensor, ...]:
        """``output_hidden_states`` as the family reports them: what entered each layer, and the model's output."""
        return (*states, output.last_hidden_state)

    def cost(self, layer: Module) -> LayerCost:
        """FLOPs of one layer per token and per pair."""
        whole = linear_flops(layer)
        feed_forward = sum(linear_flops(getattr(layer, name)) for name in self.feed_forward_parts)
        return LayerCost(whole - feed_forward, self.pair_flops(layer), feed_forward)

    def pair_flops(self, layer: Module) -> float:
        """FLOPs per pair of tokens: the scores and the weighted sum of the values, all heads."""
        return 4.0 * layer.attention.self.all_head_size


class Narrowed(Backbone):
    """A family that computes its attention itself: it needs a rectangle, and is let in on the mask at its softmax."""

    packs = False

    def attend(self, layer: Module, hidden: Tensor, mask: AttentionMask, geometry: Any) -> Tensor:
        with MaskedSoftmax(mask):
            return layer.attention(hidden, **(geometry or {}))[0]


def positions(tokens: TokenBatch, inputs: Inputs) -> Tensor:
    """The position by which each row is rotated: the caller's ``position_ids``, or where it came in; as ``(B, N)``."""
    if inputs.position_ids is None:
        return tokens.occupancy.position
    return tokens.occupancy.rows(inputs.position_ids.expand_as(tokens.sequences.real))


def distances(tokens: TokenBatch) -> Tensor:
    """Input positions from each row to each other, key minus query: ``(B, K, K)``, or ``(1, N, N)`` for all alike."""
    position = tokens.occupancy.position
    if position is tokens.sequences.position:
        position = position[:1]
    return position[:, None, :] - position[:, :, None]
