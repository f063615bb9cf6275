r"""AdapLeR: a predictor before each layer tells how much each token contributes (Modarressi et al., ACL 2022).

With :math:`h` the states that enter layer :math:`i`, :math:`n` the tokens that are left and a small network
:math:`f_i`, the contribution predictor,

.. math:: \tilde S_t = \mathrm{softmax}_t\, f_i(h_t), \qquad \delta_i = \eta_i / n, \qquad
          m_t = [\tilde S_t \ge \delta_i]

in inference. In training a token is removed softly, by a number on its scores of attention that reaches further down
the steeper the slope :math:`\lambda` is, which rises while training goes on,

.. math:: \mu_t = \min\left(0,\; \lambda\,\frac{\tilde S_t - \delta_i}{\delta_i} - \frac{\beta}{\lambda},\;
          \frac{\beta}{\lambda}\,\frac{\tilde S_t - 1}{1 - \delta_i}\right)

and :math:`\exp \mu` accumulates over layers. Predictors learn from the task, from the length that is left and from the
saliency of tokens in the dense model (:func:`skim.saliency.saliency`),

.. math:: L_{CP} = \frac{\sum_i (L - i)\, D_{KL}(\hat S \,\Vert\, \tilde S_i)}{\sum_i (L - i)}, \qquad
          L_{length} = \frac1L \sum_i \frac{\sum_t \exp \mu_t}{\sum_t 1}

What is different from the published code: saliency is measured as training goes on, with the present weights, and not
stored before; it is that of the loss, which every head has; its divergence is over the tokens that are left; means take
the place of sums; the slope rises with every step and not by epoch; the length moves predictors as well, and not the
thresholds alone; no share of [CLS]'s contribution is learned; and a target may steer the length.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from skim.engine.ranks import share
from skim.engine.tokens import Occupancy, TokenBatch
from skim.engine.trace import Trace
from skim.methods.base import Method, Spec
from skim.methods.options import Count, Fraction, NotNegative, Positive, Special, Target
from skim.methods.precision import Precise
from skim.methods.steering import steered

BETA = 0.1  # of the penalty that the tokens that stay pay, as published
NEVER = -30.0  # a score of attention this much lower is none


class Predicted(NamedTuple):
    """Contributions that a layer's predictor tells, one number per row."""

    rows: Occupancy
    contribution: Tensor


def contributions(logits: Tensor, weights: Tensor) -> tuple[Tensor]:
    """Softmax over the rows of each sequence, ``(G, n)``, in which each counts by its weight; 0 where there is none."""
    lowest = torch.finfo(logits.dtype).min  # behind the rows are zeros, next to which all logits may be far below
    highest = logits.detach().masked_fill(weights <= 0, lowest).amax(1, keepdim=True)
    raised = (logits - highest).clamp_max(0.0).exp() * weights
    return (raised / raised.sum(1, keepdim=True).clamp_min(torch.finfo(raised.dtype).tiny),)


def softly(contribution: Tensor, threshold: Tensor, slope: float) -> Tensor:
    r"""Relaxed decisions :math:`\exp \mu` in (0, 1], in the shape of ``contribution``; the steeper the harder."""
    below = slope * (contribution / threshold - 1) - BETA / slope
    above = (contribution - 1) * (BETA / slope) / (1 - threshold).clamp_min(1e-3)
    return torch.minimum(below, above).clamp(NEVER, 0.0).exp()


def divergence(trace: Trace) -> Tensor:
    """Mean over sequences and layers, the first of which weigh most, of how far predictors are from saliency; a scalar.

    That is the divergence of saliency from what they tell, over the tokens that are left.
    """
    found = []
    for rows, contribution in trace.carry or ():
        alive = (rows.weights > 0.5).float()

        def compared(wanted: Tensor, told: Tensor, here: Tensor) -> tuple[Tensor]:
            tiny = torch.finfo(wanted.dtype).tiny
            wanted = wanted / wanted.sum(1, keepdim=True).clamp_min(tiny)
            told = (told / told.sum(1, keepdim=True).clamp_min(tiny)).clamp_min(1e-12)
            return (here * wanted * (wanted.clamp_min(1e-12).log() - told.log()),)

        assert trace.saliency is not None
        (terms,) = rows.by_sequence(compared, rows.rows(trace.saliency), contribution, alive)
        found.append((terms * alive).sum())
    if not found:
        return trace.lengths.new_zeros((), dtype=torch.float32)
    weights = torch.arange(len(found), 0, -1, device=found[0].device)
    return share(
        torch.stack(found) @ (weights / weights.sum()), torch.as_tensor(len(trace.lengths), device=weights.device)
    )


class AdapLeR(Precise, Method):
    """Thresholds on learned contributions; predictors are in the model's dtype, thresholds and steering float32.

    Args:
        target: relative FLOPs at which training shall end: the weight of the length is steered there; or a range of
            them for a model that takes any; ``None`` uses ``coefficient`` as it is.
        coefficient: weight of the length when there is no target (the paper's phi).
        saliency: weight of the divergence of saliency from the predictors (the paper's gamma).
        warmup: share of training over which the coefficient or the target sets in.
        threshold: the thresholds' start, a share of the mean contribution; they learn (the paper's eta).
        slope: of the soft removal at the start of training (the paper's lambda).
        slope_end: at its end, rising geometrically.
        bottleneck: width of a predictor's hidden layer.
        protect: special tokens that never retire: ``cls`` (what the head reads), ``sep``.
    """

    name = "adapler"
    trains_masked = True

    def __init__(
        self,
        target: Target | None = None,
        coefficient: NotNegative = 0.1,
        saliency: NotNegative = 0.1,
        warmup: Fraction = 0.3,
        threshold: Positive = 0.25,
        slope: Positive = 10.0,
        slope_end: Positive = 1000.0,
        bottleneck: Count = 32,
        protect: tuple[Special, ...] = ("cls",),
    ) -> None:
        super().__init__(protect)
        self.coefficient, self.saliency, self.warmup = coefficient, saliency, warmup
        self.threshold, self.slope, self.slope_end = threshold, slope, slope_end
        self.bottleneck = bottleneck
        self.shift = torch.zeros((), dtype=torch.float32)
        self.aim(target)
        self.budget = steered(target, self.table, warmup)

    def build(self, spec: Spec) -> None:
        super().build(spec)
        width = self.bottleneck
        self.predictors = nn.ModuleList(  # a softmax knows no bias
            nn.Sequential(nn.Linear(spec.width, width), nn.GELU(), nn.Linear(width, 1, bias=False))
            for _ in range(spec.layers)
        )
        for part in self.predictors.modules():
            if isinstance(part, nn.Linear):
                nn.init.normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        self.eta = nn.Parameter(torch.full((spec.layers,), self.threshold, dtype=torch.float32))

    @property
    def reads_saliency(self) -> bool:  # type: ignore[override]
        return self.saliency > 0

    def steepness(self) -> float:
        """Slope of the soft removal at this point of training."""
        return self.slope * (self.slope_end / self.slope) ** min(max(self.progress, 0.0), 1.0)

    def before_layer(self, i: int, tokens: TokenBatch) -> TokenBatch:
        rows = tokens.occupancy
        tokens = tokens.charge(2.0 * (self.spec.width + 1) * self.bottleneck)
        logits = self.predictors[i](tokens.hidden).squeeze(-1)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        (contribution,) = rows.by_sequence(contributions, logits, rows.weights.to(logits))
        threshold = rows.spread(self.eta[i].clamp_min(1e-4) / rows.counts().clamp_min(1))
        threshold = threshold * torch.exp(-self.shift)  # type: ignore[operator]  # a buffer of this class
        if not self.training:
            return tokens.retire(contribution >= threshold)
        tokens = tokens.carrying((*(tokens.carry or ()), Predicted(rows, contribution)))
        return tokens.retire(softly(contribution, threshold, self.steepness()))

    def penalties(self, trace: Trace) -> dict[str, Tensor]:
        return {"length": trace.keep_ratio().mean().float()}

    def weights(self) -> dict[str, float]:
        return {"length": self.coefficient * self.warmed(self.warmup)}

    def terms(self, trace: Trace) -> dict[str, tuple[Tensor, Tensor | float]]:
        found = super().terms(trace)  # a budget steers the length alone
        return found if trace.saliency is None else {**found, "saliency": (divergence(trace), self.saliency)}

    def readings(self) -> dict[str, Tensor | float]:
        shares = self.eta.detach() * torch.exp(-self.shift)  # type: ignore[operator]
        thresholds = {f"threshold/layer_{i}": value for i, value in enumerate(shares)}
        return {**super().readings(), "slope": self.steepness(), **thresholds}
