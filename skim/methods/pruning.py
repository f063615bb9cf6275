"""Pruning by attention, of LTP, its baselines, top-k and length drop: tokens leave by how much attention they received.

They leave between attention and feed-forward, so a retired token's last state is the one after that attention. Nothing
but the score and the rule differs from method to method.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from skim.engine.tokens import Occupancy, TokenBatch
from skim.methods.base import Method
from skim.methods.options import Preset, Special, Target
from skim.methods.precision import Precise

PUBLISHED_LENGTH = 128  # to which LTP's published runs pad every input

ScoreNorm: TypeAlias = Literal["fixed", "length", "alive", "padded"]
SCORE_NORMS: dict[ScoreNorm, Callable[[Occupancy], Tensor | int]] = {
    "fixed": lambda occupancy: PUBLISHED_LENGTH,
    "length": lambda occupancy: occupancy.spread(occupancy.sequences.lengths).clamp_min(1),
    "alive": lambda occupancy: occupancy.spread(occupancy.counts()).clamp_min(1),
    "padded": lambda occupancy: occupancy.sequences.real.shape[1],
}


def most_attended(score: Tensor, occupancy: Occupancy, count: Tensor) -> Tensor:
    """Keep the rows of the largest scores, ``count`` ``(B,)`` of each sequence, the protected ones first; bool."""
    first = score.masked_fill(occupancy.rows(occupancy.sequences.protected), torch.inf)
    return occupancy.rank(first) < occupancy.spread(count)


class Pruner(Precise, Method):
    """Retires tokens by a rule on their scores. Scores, thresholds and the shift are float32 in a model of any dtype.

    Args:
        preset: ``default``, or ``paper`` for parity with the published code: scores divided by the padded length,
            nothing protected, retired tokens computed on without attention (and read by the head if [CLS] is one of
            them), a sequence may lose all.
        score_norm: what the attention received is divided by: ``fixed`` (128, so that the mean score is 1/128 at every
            length, as in the published runs, which pad to that), ``length`` (real tokens: the mean is 1 / length, so
            longer inputs are pruned harder), ``alive`` (tokens alive in this layer) or ``padded`` (positions of the
            batch: a score then changes with the padding); ``None`` is the preset's (default fixed, paper padded).
        target: relative FLOPs that decisions are moved to meet, before training and after, or a range of them; ``None``
            leaves them.
        protect: special tokens that never retire: ``cls`` (what the head reads), ``sep``; ``None`` is the preset's
            (default [cls], paper none).
    """

    defining: ClassVar[tuple[str, ...]] = ("preset", "score_norm", "protect")
    does = frozenset({"retires", "scores"})

    def __init__(
        self,
        preset: Preset = "default",
        score_norm: ScoreNorm | None = None,
        target: Target | None = None,
        protect: tuple[Special, ...] | None = None,
    ) -> None:
        paper = preset == "paper"
        super().__init__((() if paper else ("cls",)) if protect is None else protect)
        self.preset = preset
        published: ScoreNorm = "padded" if paper else "fixed"
        self.score_norm = published if score_norm is None else score_norm
        self.retired_run_on = paper
        self.aim(target)
        self.shift = torch.zeros((), dtype=torch.float32)

    @property
    def reads_padding(self) -> bool:  # type: ignore[override]
        return self.score_norm == "padded"

    def wants_received(self, i: int) -> bool:
        return True

    def score(self, received: Tensor, occupancy: Occupancy) -> Tensor:
        """Importance of each row, in the shape of ``received``: its mean attention over heads and queries."""
        return received / SCORE_NORMS[self.score_norm](occupancy)

    def keep(self, i: int, score: Tensor, occupancy: Occupancy) -> Tensor:
        """The rule: who stays, bool, one value per row."""
        raise NotImplementedError

    def after_attention(self, i: int, tokens: TokenBatch, received: Tensor | None) -> TokenBatch:
        if received is None:
            return tokens
        return tokens.retire(self.keep(i, self.score(received, tokens.occupancy), tokens.occupancy))
