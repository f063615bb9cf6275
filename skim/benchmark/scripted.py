"""Methods whose decisions are scripted: they cost what they cost, without anything learned."""

from __future__ import annotations

import math

from torch import Tensor

from skim.engine.tokens import TokenBatch
from skim.errors import SkimError
from skim.methods import Method, Spec


class KeepShare(Method):
    """Retires a fixed share of the tokens, deciding by position: the cost of a method without what it knows.

    The share falls from layer to layer as in learned methods, :math:`s_i = (1 - (i + 1/2) / L)^{1/keep - 1}`, with
    ``keep`` as its mean; so rows are removed in every layer and not once. A token stays while the fractional part of
    position times golden ratio is below the share: spread evenly over the text, alike at any length and in any layout.

    Args:
        keep: mean keep ratio over the layers, in (0, 1].
        protect: special tokens that never retire.
    """

    name = "keep_share"

    def __init__(self, keep: float = 0.5, protect: tuple[str, ...] = ("cls",)) -> None:
        super().__init__(protect)
        if not 0 < keep <= 1:
            raise SkimError(f"keep={keep} must be above 0 and at most 1.")
        self.keep = keep

    def build(self, spec: Spec) -> None:
        super().build(spec)
        power = 1 / self.keep - 1
        self.shares = [(1 - (i + 0.5) / spec.layers) ** power for i in range(spec.layers)]

    def stays(self, i: int, tokens: TokenBatch) -> Tensor:
        """Rows that are still there in layer ``i``, bool, one per row."""
        return tokens.occupancy.position * ((math.sqrt(5) - 1) / 2) % 1 < self.shares[i]

    def before_layer(self, i: int, tokens: TokenBatch) -> TokenBatch:
        return tokens.retire(self.stays(i, tokens))


class HaltShare(Method):
    """Halts tokens by position as :class:`KeepShare` retires them: they are computed no further, but looked at.

    Args:
        keep: mean share of tokens that run, over the layers, in (0, 1]; mean updates over layers.
        masked: compute halted tokens all the same, as published: what halting costs without removing anything.
    """

    name = "halt_share"

    def __init__(self, keep: float = 0.5, masked: bool = False) -> None:
        super().__init__(())
        if not 0 < keep <= 1:
            raise SkimError(f"halt={keep} must be above 0 and at most 1: the share of tokens that has not halted.")
        self.keep, self.needs_pads = keep, masked

    def build(self, spec: Spec) -> None:
        super().build(spec)
        self.rule = KeepShare(self.keep)
        self.rule.build(spec)

    def after_layer(self, i: int, before: TokenBatch, tokens: TokenBatch) -> TokenBatch:
        if i + 1 == self.spec.layers:
            return tokens
        return tokens.halt(self.rule.stays(i + 1, tokens) & (tokens.occupancy.weights > 0.5))
