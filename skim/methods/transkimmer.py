r"""Transkimmer: a small predictor before each layer decides which tokens go on (Guan et al., ACL 2022).

Before layer :math:`i`, with :math:`h` the states entering it:

.. math:: \pi = W_2\,\mathrm{GELU}(\mathrm{LN}(W_1\,\mathrm{LN}(h))) \in R^2, \qquad
          m_i = m_{i-1} \cdot \mathrm{onehot}(\arg\max(\pi + g))_{keep}

with Gumbel noise :math:`g` in training and none in evaluation, and the gradient of the relaxed decision passed straight
through. A skimmed token keeps its state and goes to the head with it.

In the soft stage predictors and weights learn together; in the hard stage predictors are frozen, decisions are set to
the target, tokens are really gone and weights adapt to that. What is different from the published code, unless
``preset="paper"`` asks for it back: there is a hard stage, the mask acts inside the softmax (the paper's Eq. 4
multiplies after it, and the accuracy leaks through the denominator), evaluation is deterministic, pads are not decided
on, the penalty is warmed up or steered to a budget, and the noise fades out before the soft stage ends.

For a range of budgets the keep margin of layer :math:`i` is :math:`\pi_{keep} - \pi_{skim} + \ell_i(b)`, with a learned
:math:`\ell_i` that is a straight line between the anchors of the method's table: each layer learns how far it goes down
with the budget, and ranks its tokens alike at all budgets. In the soft stage the spending of each anchor is steered
(:class:`skim.methods.steering.Steering`); in the hard stage the table's shifts are added.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from skim.engine.kernels.predictor import difference
from skim.engine.noise import exponential
from skim.engine.tokens import Occupancy, TokenBatch
from skim.engine.trace import Trace
from skim.errors import SkimError
from skim.methods.base import Method, Spec
from skim.methods.options import Count, Fraction, Layer, NotNegative, Positive, Preset, Special, Target
from skim.methods.precision import Precise
from skim.methods.steering import steered
from skim.published.transkimmer import from_published as from_published

LIFT = 20.0  # logits that a unit of a lift is worth: from budget to budget they are far apart, and Adam's steps small


def gate(logits: Tensor, noise: Tensor | None = None, temperature: float = 1.0) -> Tensor:
    """Hard keep decisions with the gradient of the relaxed ones (straight-through Gumbel-softmax).

    Args:
        logits: ``(..., 2)``; index 1 keeps, index 0 skims.
        noise: Gumbel noise to add, ``(..., 2)``; ``None`` decides by argmax.
        temperature: of the relaxation; below 1 sharper, and with smaller gradients away from the border.

    Returns:
        ``(...)`` float32, exactly 0 or 1.
    """
    logits = logits.float() if noise is None else logits.float() + noise
    soft = (logits / temperature).softmax(-1)[..., 1]
    hard = (logits[..., 1] > logits[..., 0]).float()
    return hard + (soft - soft.detach())


def lifted(logits: Tensor, lift: Tensor | float) -> Tensor:
    """The logits ``(..., 2)`` with something added to the one that keeps."""
    return logits if isinstance(lift, float) else logits + torch.stack([torch.zeros_like(lift), lift])


def gumbel(occupancy: Occupancy, layer: int) -> Tensor:
    """Standard Gumbel noise for both logits of each row, ``(..., 2)`` float32."""
    return -exponential(occupancy, layer, 2).log()


def skim_loss(trace: Trace) -> Tensor:
    """Mean over layers of the share of real tokens kept; a scalar."""
    return trace.keep_ratio().mean()


def padded_skim_loss(trace: Trace) -> Tensor:
    """The published loss: mean over layers of kept positions / padded length, pads decided on and counted; a scalar."""
    kept = [layer.kept() for layer in trace.layers]
    if any(mask is None for mask in kept):
        raise SkimError("The published skim loss counts decisions on pads, which only masked execution takes.")
    return torch.stack([mask.sum(1).mean() / mask.shape[1] for mask in kept if mask is not None]).mean()


def predictor(width: int, bottleneck: int, margin: float) -> nn.Sequential:
    """One skim predictor, ``(..., D)`` to ``(..., 2)``; indices as in the published state dict.

    Args:
        width: D.
        bottleneck: width of the hidden layer (published: D, which adds 8 % to BERT-base; D/4 adds 2 %).
        margin: keep minus skim logit at the start.
    """
    hidden, decide = nn.Linear(width, bottleneck), nn.Linear(bottleneck, 2)
    for linear in (hidden, decide):
        nn.init.normal_(linear.weight, std=0.02)
        nn.init.zeros_(linear.bias)
    nn.init.normal_(decide.bias, std=0.02)
    decide.bias.data += torch.tensor([-margin / 2, margin / 2])
    return nn.Sequential(nn.LayerNorm(width), hidden, nn.LayerNorm(bottleneck), nn.GELU(), decide)


class Transkimmer(Precise, Method):
    """Learned skimming, one predictor per layer, in the model's dtype; what steers them is float32.

    Args:
        preset: ``default``, or ``paper`` for parity with the published code: mask after the softmax, pads decided on
            and counted in the loss, noise in evaluation too, no hard stage; it cannot run packed.
        target: relative FLOPs at which training shall end: the soft stage's coefficient is steered there, and the
            frozen decisions are held there in the hard stage; a range of them for a model that takes any; ``None`` uses
            ``coefficient`` as it is.
        coefficient: weight of the skim loss in the soft stage when there is no target.
        warmup: share of the soft stage over which the coefficient or the target sets in; ``None`` is the preset's
            (default 0.3, paper 0).
        noise_until: share of the soft stage after which decisions carry no noise, fading from half of it on; ``None``
            is the preset's (default 0.7, paper 1: full noise to the end).
        eval_noise: draw noise in evaluation too; ``None`` is the preset's (default False, paper True).
        margin: keep minus skim logit at the start; ``None`` is the preset's (default 5, paper 10).
        temperature: temperature of the relaxed decision; lower is sharper.
        bottleneck: width of the predictor's hidden layer; ``None`` is the backbone's, as published; a quarter of it
            costs 2 % of the dense FLOPs instead of 8 %.
        layers: layers with a predictor, from 0; ``None`` is all.
        protect: special tokens that never retire: ``cls`` (what the head reads), ``sep``.
    """

    name = "transkimmer"
    by_budget = ("lifts",)
    stages = ("soft", "hard")
    learning_rates = {"": 1e-3, "hard": 0.0}

    def __init__(
        self,
        preset: Preset = "default",
        target: Target | None = None,
        coefficient: NotNegative = 0.5,
        warmup: Fraction | None = None,
        noise_until: Fraction | None = None,
        eval_noise: bool | None = None,
        margin: float | None = None,
        temperature: Positive = 1.0,
        bottleneck: Count | None = None,
        layers: tuple[Layer, ...] | None = None,
        protect: tuple[Special, ...] = ("cls",),
    ) -> None:
        super().__init__(protect)
        paper = preset == "paper"
        self.preset = preset
        if paper:
            self.stages = ("soft",)  # type: ignore[misc, assignment]  # the published code has no other
        else:
            self.stage_shares = {"soft": 0.67, "hard": 0.33}
        self.inside_softmax = not paper
        self.coefficient = coefficient
        self.warmup = (0.0 if paper else 0.3) if warmup is None else warmup
        self.noise_until = (1.0 if paper else 0.7) if noise_until is None else noise_until
        self.eval_noise = paper if eval_noise is None else eval_noise
        self.margin = (10.0 if paper else 5.0) if margin is None else margin
        self.temperature = temperature
        self.bottleneck = bottleneck
        self.layers = layers
        self.aim(target)
        self.budget = steered(target, self.table, self.warmup, apart=True)
        self.shift = torch.zeros((), dtype=torch.float32)

    def build(self, spec: Spec) -> None:
        super().build(spec)
        layers = tuple(range(spec.layers)) if self.layers is None else self.layers
        if not set(layers) <= set(range(spec.layers)):
            raise self.refusal(f"names layers outside 0 to {spec.layers - 1} of this backbone.", layers=layers)
        self.hidden = spec.width if self.bottleneck is None else self.bottleneck
        self.predictors = nn.ModuleDict({str(i): predictor(spec.width, self.hidden, self.margin) for i in layers})
        if self.table is not None:
            self.lifts = nn.Parameter(torch.zeros(spec.layers, len(self.table.anchors), dtype=torch.float32))

    @property
    def trains_masked(self) -> bool:  # type: ignore[override]
        return self.stage == "soft"

    @property
    def relaxes(self) -> bool:
        """True if decisions are relaxed at present, so that predictors learn."""
        return self.training and self.stage == "soft"

    @property
    def conditioned(self) -> bool:  # type: ignore[override]
        return self.table is not None

    def lift(self, i: int) -> Tensor | float:
        """The addition of the budget that is set to the keep margin of layer ``i``, a scalar: 0 without a range."""
        # a copy, for the next forward of a step sets another budget before gradients flow back
        return 0.0 if self.table is None else LIFT * (self.lifts[i] @ self.table.weights.clone())

    def before_layer(self, i: int, tokens: TokenBatch) -> TokenBatch:
        if str(i) not in self.predictors:
            return tokens
        predictor = self.predictors[str(i)]
        tokens = tokens.charge(2.0 * self.spec.width * self.hidden + 2.0 * 2 * self.hidden)
        noise = self.noise(i, tokens.occupancy)
        if self.relaxes:
            return tokens.retire(gate(lifted(predictor(tokens.hidden), self.lift(i)), noise, self.temperature))
        with torch.no_grad():
            if noise is None:
                margin = difference(predictor, tokens.hidden)  # type: ignore[arg-type]
            else:
                logits = predictor(tokens.hidden).float() + noise
                margin = logits[..., 1] - logits[..., 0]
        return tokens.retire(margin > -(self.shift + self.lift(i)))  # type: ignore[operator]

    def noise(self, i: int, occupancy: Occupancy) -> Tensor | None:
        """The noise of the rows' decisions before layer ``i``, ``(..., 2)``, or ``None``.

        It fades out in the soft stage; hard decisions are without, as in evaluation.
        """
        if not self.relaxes:
            return gumbel(occupancy, i) if self.eval_noise else None
        scale = 1.0
        if self.noise_until < 1.0:
            scale = (
                min(2.0 * (self.noise_until - self.progress) / self.noise_until, 1.0) if self.noise_until > 0 else 0.0
            )
        return gumbel(occupancy, i) * scale if scale > 0 else None

    def penalties(self, trace: Trace) -> dict[str, Tensor]:
        if self.stage != "soft":
            return {}
        return {"skim_loss": padded_skim_loss(trace) if self.preset == "paper" else skim_loss(trace)}

    def weights(self) -> dict[str, float]:
        return {"skim_loss": self.coefficient * self.warmed(self.warmup)} if self.stage == "soft" else {}

    @property
    def steers(self) -> bool:
        return self.budget is not None and self.stage == "soft"
