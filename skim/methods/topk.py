r"""Top-k: each layer keeps the tokens that receive the most attention, by a schedule (after SpAtten, HPCA 2021).

The first :math:`n_0 = \max(3, \lceil 0.15 L \rceil)` layers are whole; then the share of the input's tokens that stays
falls linearly to the keep rate :math:`r`:

.. math:: r_i = \max\left(0.01,\; 1 + \frac{r - 1}{L - n_0} (i - n_0 + 1)\right), \qquad k_i = \mathrm{round}(r_i\, n)

This is the baseline of the LTP paper and its code: scores of the present layer alone, and heads stay, where SpAtten
adds scores up over layers and prunes heads as well.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field
from torch import Tensor

from skim.engine.tokens import Occupancy
from skim.flops import precise
from skim.methods.base import Spec
from skim.methods.options import Layer, Preset, Special, Target
from skim.methods.pruning import Pruner, most_attended

LEAST = 0.01  # no layer's share falls below this


class TopK(Pruner):
    """A fixed number of tokens per layer and length; nothing is learned, so it trains packed from the first step.

    Args:
        preset: ``default``, or ``paper`` for parity with the published code: nothing protected, retired tokens computed
            on without attention, a sequence may lose all.
        token_keep_rate: share of the input's tokens that leaves the last layer; below 0 the schedule falls faster and
            ends at 0.01.
        min_tokens: tokens of each input that every layer leaves, however low the rate: an input that has no more is not
            pruned at all, so a short one stays whole while long ones pay; 0 is as published.
        start: first layer that prunes, from 0; ``None`` is max(3, ceil(0.15 L)), as published.
        target: relative FLOPs that the rate is moved to meet, before training and after, or a range of them for a model
            that takes any; ``None`` leaves it.
        protect: special tokens that never retire, counted among the k: ``cls`` (what the head reads), ``sep``; ``None``
            is the preset's (default [cls], paper none).
    """

    name = "topk"
    reads_padding = False  # a common divisor changes no order

    def __init__(
        self,
        preset: Preset = "default",
        token_keep_rate: Annotated[float, Field(ge=-1, le=1)] = 0.3,
        min_tokens: Annotated[int, Field(ge=0)] = 0,
        start: Layer | None = None,
        target: Target | None = None,
        protect: tuple[Special, ...] | None = None,
    ) -> None:
        super().__init__(preset, "padded", target, protect)  # a common divisor changes no order
        self.token_keep_rate = token_keep_rate
        self.min_tokens = min_tokens
        self.start = start

    def build(self, spec: Spec) -> None:
        super().build(spec)
        self.first = max(3, math.ceil(0.15 * spec.layers)) if self.start is None else self.start
        if self.first >= spec.layers and self.preset != "paper":
            raise self.refusal(
                f"leaves the first {self.first} layers whole, and this backbone has {spec.layers}.\n"
                f"Use start={max(spec.layers - 2, 0)}, or a deeper backbone.",
                start=self.start,
            )

    def wants_received(self, i: int) -> bool:
        return i >= self.first

    def rate(self, i: int) -> Tensor:
        """Share of the input's tokens that leaves layer ``i``, a float64 scalar."""
        steps, done = self.spec.layers - self.first, i - self.first + 1
        published = 1 + (self.token_keep_rate - 1) / steps * done
        return (precise(self.shift) * (done / steps) + published).clamp(LEAST, 1)  # type: ignore[arg-type]  # a buffer

    def keep(self, i: int, score: Tensor, occupancy: Occupancy) -> Tensor:
        count = occupancy.share(self.rate(i)).clamp_min(self.min_tokens)  # halves to even, as published
        return most_attended(score, occupancy, count)
