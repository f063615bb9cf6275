"""LTP's baselines: thresholds that nobody learns. Hard from the first step, so they train packed."""

from __future__ import annotations

from torch import Tensor

from skim.engine.tokens import Occupancy
from skim.methods.base import Spec
from skim.methods.ltp import LOWEST, hard_keep, ramp
from skim.methods.options import Preset, Special, Target, Threshold
from skim.methods.pruning import Pruner, ScoreNorm


class Manual(Pruner):
    r"""Thresholds on a ramp, :math:`\theta_i = \theta\, i / L` for i from 0: LTP without its soft stage.

    Args:
        preset: see :class:`~skim.methods.pruning.Pruner`.
        final_token_threshold: end of the ramp of thresholds, which the last layer misses by one step; in units of the
            score, whose mean is 1/128.
        score_norm: see :class:`~skim.methods.pruning.Pruner`.
        target: relative FLOPs that the thresholds are scaled to meet, before training and after, or a range of them for
            a model that takes any; ``None`` leaves them.
        protect: see :class:`~skim.methods.pruning.Pruner`.
    """

    name = "ltp_manual"
    base: Tensor

    def __init__(
        self,
        preset: Preset = "default",
        final_token_threshold: Threshold = 0.01,
        score_norm: ScoreNorm | None = None,
        target: Target | None = None,
        protect: tuple[Special, ...] | None = None,
    ) -> None:
        super().__init__(preset, score_norm, target, protect)
        self.final_token_threshold = final_token_threshold

    def build(self, spec: Spec) -> None:
        super().build(spec)
        self.register_buffer("base", ramp(self.final_token_threshold, spec.layers))

    def wants_received(self, i: int) -> bool:
        return i > 0 and self.final_token_threshold > 0

    def keep(self, i: int, score: Tensor, occupancy: Occupancy) -> Tensor:
        return hard_keep(score, self.base[i], self.shift)  # type: ignore[arg-type]


class Relative(Pruner):
    r"""Prunes what receives less than a share of the most attended token: :math:`s_j < \theta \max_k s_k`.

    Args:
        preset: ``default``, or ``paper`` for parity with the published code: nothing protected, retired tokens computed
            on without attention, a sequence may lose all.
        token_threshold: share of the largest score, the same in every layer.
        target: relative FLOPs that the share is scaled to meet, before training and after, or a range of them for a
            model that takes any; ``None`` leaves it.
        protect: see :class:`~skim.methods.pruning.Pruner`.
    """

    name = "ltp_relative"

    def __init__(
        self,
        preset: Preset = "default",
        token_threshold: Threshold = 0.2,
        target: Target | None = None,
        protect: tuple[Special, ...] | None = None,
    ) -> None:
        super().__init__(preset, "padded", target, protect)  # a common divisor cancels
        self.token_threshold = token_threshold

    def threshold(self, i: int) -> float:
        """The share of the largest score that layer ``i`` asks for."""
        return self.token_threshold

    def wants_received(self, i: int) -> bool:
        return self.threshold(i) > 0

    def keep(self, i: int, score: Tensor, occupancy: Occupancy) -> Tensor:
        largest = occupancy.spread(occupancy.largest(score))
        scale = (-self.shift).exp().clamp_max(1e30)  # type: ignore[operator]  # infinity times a threshold of 0 is NaN
        return score / largest.clamp_min(LOWEST) >= self.threshold(i) * scale


class Rising(Relative):
    r"""As :class:`Relative`, with a share that rises with the layer: :math:`\theta_i = \theta\, i / L` for i from 0.

    Args:
        preset: see :class:`Relative`.
        final_token_threshold: end of the ramp of shares, which the last layer misses by one step.
        target: see :class:`Relative`.
        protect: see :class:`~skim.methods.pruning.Pruner`.
    """

    name = "ltp_rising"

    def __init__(
        self,
        preset: Preset = "default",
        final_token_threshold: Threshold = 0.3,
        target: Target | None = None,
        protect: tuple[Special, ...] | None = None,
    ) -> None:
        super().__init__(preset, final_token_threshold, target, protect)
        self.final_token_threshold = final_token_threshold

    def threshold(self, i: int) -> float:
        return self.final_token_threshold * i / self.spec.layers
