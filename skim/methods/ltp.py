r"""Learned Token Pruning: a threshold per layer on the attention a token receives (Kim et al., KDD 2022).

With :math:`s_j` the mean attention that token :math:`j` receives over heads and alive queries, layer :math:`i` keeps

.. math:: m_j = \sigma\left(\frac{s_j - \theta_i}{T}\right) \text{ (soft stage)}, \qquad
          m_j = [s_j \ge \theta_i] \text{ (hard stage, and always in evaluation)}

In the soft stage weights and thresholds learn together; in the hard stage thresholds are frozen, tokens are really gone
and weights adapt to that. What is different from the published code, unless ``preset="paper"`` asks for it back: scores
do not depend on the padding, a soft mask weighs the token *inside* the softmax of later layers (published: it scales
the layer's output and the token goes on being attended to, which is not what the hard stage does), :math:`T` falls
during the stage, pads are in no loss, the first layer learns, [CLS] stays, a layer whose threshold is not above zero
retires nobody and pays for no scores, and the penalty can be steered to a budget.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skim.engine.masked import MaskedOccupancy, MaskedTokens
from skim.engine.ranks import share
from skim.engine.threads import PerThread
from skim.engine.tokens import Occupancy, TokenBatch
from skim.engine.trace import Trace
from skim.methods.base import Spec
from skim.methods.options import Fraction, NotNegative, Positive, Preset, Special, Target, Threshold
from skim.methods.pruning import Pruner, ScoreNorm
from skim.methods.steering import steered
from skim.published.ltp import from_published as from_published

LOWEST = 1e-5  # a hard threshold is at least this: what receives no attention at all leaves


def ramp(final: float, layers: int) -> Tensor:
    r"""Thresholds that rise with the layer, :math:`\theta_i = \theta\, i / L` for i from 0; ``(L,)`` float32."""
    return final * torch.arange(layers, dtype=torch.float32) / layers


def soft_keep(score: Tensor, threshold: Tensor, temperature: float, shift: Tensor) -> Tensor:
    """Relaxed decisions in (0, 1), in the shape of ``score``; the threshold is multiplied by ``exp(-shift)``."""
    return torch.sigmoid((score - threshold * torch.exp(-shift)) / temperature)


def hard_keep(score: Tensor, threshold: Tensor, shift: Tensor) -> Tensor:
    """Decisions, bool: the threshold, at least 1e-5, is multiplied by ``exp(-shift)``."""
    return score >= threshold.clamp_min(LOWEST) * torch.exp(-shift)


def kept_share(trace: Trace) -> Tensor:
    """Mean over layers of the share of real tokens that enter the feed-forward; a scalar."""
    kept = torch.stack([layer.feeding.counts().sum() for layer in trace.layers])
    return share(kept, trace.lengths.sum()).mean()


def padded_mask_sum(trace: Trace) -> Tensor:
    """The published regulariser: the sum over layers of the soft mask's mean over all positions, pads included."""
    masks = []
    for layer in trace.layers:
        here = layer.feeding.faded if isinstance(layer.feeding, MaskedOccupancy) else None
        if here is not None and layer.feeding is not layer.attending:
            masks.append(here.mean())
    return torch.stack(masks).sum() if masks else trace.lengths.new_zeros((), dtype=torch.float32)


class LTP(Pruner):
    """Thresholds learned in a soft stage, then frozen while the weights get used to hard decisions.

    Args:
        preset: ``default``, or ``paper`` for parity with the published code: scores divided by the padded length,
            nothing protected, soft masks on the output with their regulariser and temperature, no annealing.
        target: relative FLOPs at which training shall end: the ramp is scaled to it before training, the soft stage's
            coefficient is steered to stay there, and so are the frozen thresholds in the hard stage; a range of them
            for a model that takes any; ``None`` uses ``coefficient`` as it is.
        coefficient: weight of the kept share in the soft stage when there is no target (the paper's lambda; it searched
            0.01 to 0.2).
        warmup: share of the soft stage over which the coefficient sets in, if there is no target; ``None`` is the
            preset's (default 0.3, paper 0).
        final_token_threshold: thresholds start on a ramp from 0 to this, less one step; in units of the score, whose
            mean is 1/128.
        temperature: temperature of the relaxed decisions at the end of the soft stage, in units of the score; ``None``
            is the preset's (default 5e-4, paper 1e-3).
        temperature_start: temperature at its beginning, falling geometrically; ``None`` is the preset's (default four
            times ``temperature``, paper the same).
        score_norm: see :class:`~skim.methods.pruning.Pruner`.
        protect: see :class:`~skim.methods.pruning.Pruner`.
    """

    name = "ltp"
    stages = ("soft", "hard")
    learning_rates = {"soft": 1e-5, "hard": 0.0}
    starts_at_target = True  # a ramp prunes a little everywhere and teaches each layer; from dense, one takes it all
    base: Tensor

    def __init__(
        self,
        preset: Preset = "default",
        target: Target | None = None,
        coefficient: NotNegative = 0.1,
        warmup: Fraction | None = None,
        final_token_threshold: Threshold = 0.01,
        temperature: Positive | None = None,
        temperature_start: Positive | None = None,
        score_norm: ScoreNorm | None = None,
        protect: tuple[Special, ...] | None = None,
    ) -> None:
        super().__init__(preset, score_norm, target, protect)
        paper = preset == "paper"
        if paper and target is not None:
            raise self.refusal(
                "steers the FLOPs of the relaxed decisions, and the published soft stage has none.\n"
                "Use preset=default, or a coefficient without a target.",
                target=target,
            )
        temperature = (1e-3 if paper else 5e-4) if temperature is None else temperature
        start = temperature * (1 if paper else 4) if temperature_start is None else temperature_start
        if paper and final_token_threshold == 0:
            raise self.refusal(
                "trains nothing, for by preset=paper a threshold of zero never learns.\nUse 0.01, as published.",
                final_token_threshold=final_token_threshold,
            )
        self.coefficient = coefficient
        self.warmup = (0.0 if paper else 0.3) if warmup is None else warmup
        self.final_token_threshold = final_token_threshold
        self.temperature = temperature
        self.temperature_start = start
        self.budget = steered(target, self.table, warmup=0.0)
        self._deciding = PerThread()  # by layer: whether its hard decisions retire anyone, in this forward

    def build(self, spec: Spec) -> None:
        super().build(spec)
        self.register_buffer("base", ramp(self.final_token_threshold, spec.layers))
        # on top, so that weight decay pulls towards the ramp, as published
        self.delta = nn.Parameter(torch.zeros(spec.layers, dtype=torch.float32))

    @property
    def trains_masked(self) -> bool:  # type: ignore[override]
        return self.stage == "soft"

    def thresholds(self) -> Tensor:
        """One per layer, ``(L,)``, before scaling by ``shift``."""
        return self.base + self.delta

    def asks(self) -> Tensor | None:
        # in the soft stage every layer decides, and a step of training has nothing to wait for
        soft = self.preset != "paper" and self.training and self.stage == "soft"
        return None if soft else self.thresholds().detach()

    def answered(self, numbers: list[float]) -> None:
        # published: a layer whose threshold is zero has no decision, no mask and no gradient
        self._deciding.value = [number != 0 if self.preset == "paper" else number > 0 for number in numbers]

    def wants_received(self, i: int) -> bool:
        if self.preset != "paper" and self.training and self.stage == "soft":
            return True
        if self._deciding.value is None:  # asked outside of a forward
            self.answered(self.thresholds().tolist())
        return self._deciding.value[i]

    def keep(self, i: int, score: Tensor, occupancy: Occupancy) -> Tensor:
        threshold = self.thresholds()[i]
        if not (self.training and self.stage == "soft"):
            return hard_keep(score, threshold.detach(), self.shift)  # type: ignore[arg-type]
        return soft_keep(score, threshold, self.cooled(), self.shift)  # type: ignore[arg-type]

    def cooled(self) -> float:
        """Temperature of the relaxed decisions at this point of the soft stage."""
        done = min(max(self.progress, 0.0), 1.0)
        return self.temperature_start * (self.temperature / self.temperature_start) ** done

    def after_attention(self, i: int, tokens: TokenBatch, received: Tensor | None) -> TokenBatch:
        fades = self.preset == "paper" and self.training and self.stage == "soft"
        if received is None or not fades or not isinstance(tokens, MaskedTokens):
            return super().after_attention(i, tokens, received)
        return tokens.fade(self.keep(i, self.score(received, tokens.occupancy), tokens.occupancy))

    def after_layer(self, i: int, before: TokenBatch, tokens: TokenBatch) -> TokenBatch:
        if not isinstance(tokens, MaskedTokens) or tokens.occupancy.faded is None:
            return tokens
        faded = tokens.occupancy.faded[..., None].to(tokens.hidden.dtype)
        return tokens.with_hidden(tokens.hidden * faded).fade(None)

    def penalties(self, trace: Trace) -> dict[str, Tensor]:
        if self.stage != "soft":
            return {}
        return {"kept": padded_mask_sum(trace) if self.preset == "paper" else kept_share(trace)}

    def weights(self) -> dict[str, float]:
        return {"kept": self.coefficient * self.warmed(self.warmup)} if self.stage == "soft" else {}

    @property
    def steers(self) -> bool:
        return self.budget is not None and self.stage == "soft"

    def readings(self) -> dict[str, Tensor | float]:
        scale = torch.exp(-self.shift)  # type: ignore[operator]  # a buffer of this class
        schedule = {"temperature": self.cooled()} if self.stage == "soft" else {}
        thresholds = {f"threshold/layer_{i}": value for i, value in enumerate(self.thresholds().detach() * scale)}
        return {**super().readings(), **schedule, **thresholds}
