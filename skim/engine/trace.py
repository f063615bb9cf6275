"""Trace of one forward: tokens entering attention and feed-forward, per sequence and layer.

FLOPs, keep ratios and every picture of what was retired where come from a trace and from nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from skim.engine.adapters import whole_of
from skim.engine.masked import MaskedOccupancy
from skim.engine.ranks import share
from skim.engine.tokens import Charge, Nobody, Occupancy, Sequences, TokenBatch
from skim.flops import LayerCost, precise


@dataclass(frozen=True)
class LayerTrace:
    """The rows of one layer and what ran over them; counts are taken when asked for, so a forward pays nothing.

    Attributes:
        attending: rows entering the attention half.
        feeding: rows entering the feed-forward half.
        cost: the backbone's FLOPs in this layer.
        sums_cost: FLOPs per pair of tokens for telling the method how much attention each one received.
        looked_at: rows that attention looks at; ``None``: those that attend.
        projected: rows whose keys and values this layer computed; ``None``: all looked at.
        charges: FLOPs of the method's own modules, each on the rows that they ran over.
        shortened: the architecture itself, and nothing else, has chosen these rows.
    """

    attending: Occupancy
    feeding: Occupancy
    cost: LayerCost
    sums_cost: float = 0.0
    looked_at: Occupancy | None = None
    projected: Occupancy | None = None
    charges: tuple[Charge, ...] = ()
    shortened: bool = False

    @property
    def ran(self) -> bool:
        """True if the layer ran at all."""
        return not isinstance(self.attending, Nobody)

    def flops(self, formula: LayerCost | None = None) -> Tensor:
        """FLOPs per sequence, ``(B,)`` float64; differentiable in masked training.

        Args:
            formula: count by this one instead of truly, see :data:`skim.flops.FORMULAS`; the method's own are left out.
        """
        cost = self.cost if formula is None else formula
        looked_at = None if self.looked_at is None else self.looked_at.counts()
        made = self.looked_at if self.projected is None else self.projected
        # where nobody of a sequence runs, nobody looks: no keys and values are made
        projected = None if made is None else made.counts() * (self.attending.counts() > 0)
        lengths = self.attending.sequences.lengths
        run = cost(self.attending.counts(), self.feeding.counts(), lengths, looked_at, projected)
        if formula is not None:
            return run
        for charge in self.charges:
            run = run + charge.flops()
        return run + self.sums_cost * precise(self.attending.counts()) ** 2

    def filler_flops(self) -> Tensor:
        """FLOPs of this layer on rows that are nobody's, a float64 scalar: filler, pads, and who is only masked.

        Of what a layer does for each row; attention between pairs of them is not counted.
        """
        cost = self.cost

        def idle(rows: Occupancy) -> Tensor:
            return rows.computed - precise(rows.counts().detach()).sum()

        made = self.projected or self.looked_at or self.attending
        attending, keys = idle(self.attending), idle(made)
        flops = cost.attention * attending + cost.keys * (keys - attending) + cost.feed_forward * idle(self.feeding)
        return flops + sum(charge.per_row * idle(charge.occupancy) for charge in self.charges)

    def dense_flops(self) -> Tensor:
        """FLOPs of this layer of the dense backbone on the same real tokens per sequence, ``(B,)`` float64."""
        if self.shortened and self.ran:
            return self.flops()
        lengths = self.attending.sequences.lengths
        return self.cost(lengths, lengths, lengths)

    def kept(self) -> Tensor | None:
        """The running product of decisions with gradients, ``(B, N)`` (pads included), in masked execution."""
        return self.attending.kept if isinstance(self.attending, MaskedOccupancy) else None


@dataclass
class Trace:
    """One forward, layer by layer.

    Attributes:
        sequences: what entered.
        layers: one entry per layer; one that did not run has no tokens.
        carry: what the method handed from layer to layer, at the end.
        execution: ``"masked"``, ``"packed"`` or ``"narrowed"``.
        states: the rows behind each layer, where somebody has asked for them; see
            :func:`skim.compression.keeping_states`.
        saliency: ``(B, N)`` of the tokens in the dense model, where somebody has measured it for the method, see
            :func:`skim.saliency.saliency`.
    """

    sequences: Sequences
    execution: str
    layers: list[LayerTrace] = field(default_factory=list)
    carry: Any = None
    states: list[TokenBatch] = field(default_factory=list)
    saliency: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """Real tokens per sequence, ``(B,)``."""
        return self.sequences.lengths

    def counts(self) -> Tensor:
        """Tokens entering the attention of each layer, ``(L, B)``; differentiable in masked training."""
        return torch.stack([layer.attending.counts() for layer in self.layers])

    def keep_ratio(self) -> Tensor:
        """Alive real tokens / real tokens, entering the attention of each layer, ``(L,)``; pads are in neither.

        1 if there is no real token at all.
        """
        return share(self.counts().sum(1), self.lengths.sum())

    def flops(self, formula: LayerCost | None = None) -> Tensor:
        """FLOPs of this forward per sequence, ``(B,)`` float64; differentiable in masked training."""
        return torch.stack([layer.flops(formula) for layer in self.layers]).sum(0)

    def dense(self, formula: LayerCost) -> Tensor:
        """FLOPs of the dense backbone on the same real tokens per sequence by a formula, ``(B,)`` float64."""
        return len(self.layers) * formula(self.lengths, self.lengths, self.lengths)

    @cached_property
    def dense_flops(self) -> Tensor:
        """FLOPs of the dense backbone on the same real tokens per sequence, ``(B,)`` float64."""
        return torch.stack([layer.dense_flops() for layer in self.layers]).sum(0)

    def filler_flops(self) -> Tensor:
        """FLOPs of this forward on rows that are nobody's, a float64 scalar; see :meth:`LayerTrace.filler_flops`.

        They are in no other number: what else a trace tells is of the tokens alone, the same in every execution.
        """
        return torch.stack([layer.filler_flops() for layer in self.layers]).sum()

    def relative_flops(self, formula: LayerCost | None = None) -> Tensor:
        """FLOPs of this forward / FLOPs of the dense backbone on the same real tokens; a scalar.

        1 if there is no real token at all.
        """
        dense = self.dense_flops if formula is None else self.dense(formula)
        return share(self.flops(formula).sum(), dense.sum())

    def alive(self) -> Tensor:
        """Mask the tokens that entered each layer's feed-forward, at input positions, ``(L, B, N)`` bool."""
        return torch.stack([layer.feeding.alive() for layer in self.layers])

    def layers_survived(self) -> Tensor:
        """Layers each token took part in, ``(B, N)``: 0 retired before the first, L alive to the end; 0 on pads."""
        return self.alive().sum(0)


class LastTrace:
    """``model.trace`` of a compressed model; set on its class, where it looks for the walk of the model inside."""

    def __get__(self, model: Any, owner: type | None = None) -> Any:
        if model is None:
            return self
        walk = vars(whole_of(model)).get("skim_walk")
        if walk is None:  # another instance of that class: as if nothing stood here
            raise AttributeError(f"'{type(model).__name__}' object has no attribute 'trace'")
        return walk.trace
