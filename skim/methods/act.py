r"""Adaptive computation time: each token is updated as often as it needs (Simoulin and Crabbe, ACL-SRW 2021).

After layer :math:`k` a halting unit reads the new state :math:`y` of a token that still runs,
:math:`p_k = \sigma(w \cdot y + b)`, and the token halts as soon as :math:`\sum_{j \le k} p_j > 1 - \epsilon`. With the
remainder :math:`R = 1 - \sum_{j < k} p_j` at the halting step,

.. math:: x_k = u_k\, y_k + (1 - u_k)\, x_{k-1}, \qquad u_k = p_k \text{ while it runs, } R \text{ where it halts},

and updates plus remainders, the ponder cost, join the loss. A halted token's state is frozen, and the others go on
looking at it: only running tokens are computed, and where the layers share their weights (ALBERT) keys and values of
halted ones are kept as well, with the same outputs.

That is ``mix="act"``. A backbone that was not pretrained so would begin with a blend of its layers;
``mix="gate"``, the default, takes :math:`x_k = y_k` while a token runs and therefore begins as the pretrained model.
Its decision is hard, with the gradient of :math:`\sigma((1 - \epsilon - \sum_j p_j) / T)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skim.engine.ranks import mean, share
from skim.engine.tokens import TokenBatch
from skim.engine.trace import Trace
from skim.methods.base import Method, Spec
from skim.methods.options import Between, Fraction, NotNegative, Positive, Target
from skim.methods.precision import Precise
from skim.methods.steering import steered
from skim.published.act import from_published as from_published

# updates that the published models take at most, and the weight of their ponder cost
PUBLISHED = {"tiny": (6, 1e-3), "small": (12, 5e-4), "base": (24, 2.5e-4)}


@dataclass(frozen=True)
class Halting:
    """How far each token has come; all ``(B, N)`` float32 at input positions, 0 on pads.

    Attributes:
        probability: halting probability summed up so far; 1 once a token has halted by its remainder.
        updates: layers that have updated it; carries gradients through relaxed decisions.
        remainders: what was missing to 1 before the step at which it halted; 0 while it runs, and with ``mix="gate"``.
    """

    probability: Tensor
    updates: Tensor
    remainders: Tensor

    @classmethod
    def start(cls, real: Tensor) -> Halting:
        """Nobody has been updated yet."""
        return cls(*(torch.zeros(real.shape, device=real.device) for _ in range(3)))

    def ponder(self) -> Tensor:
        """Updates plus remainder of each token, ``(B, N)``."""
        return self.updates + self.remainders


class Step(NamedTuple):
    """One halting step of some tokens; all of the shape of their probabilities."""

    weight: Tensor  # of the new state in the mix
    probability: Tensor  # summed up, 1 where a token halts
    remainder: Tensor  # 0 where it does not
    halts: Tensor  # bool


def halting_step(p: Tensor, before: Tensor, epsilon: float, last: bool = False) -> Step:
    """Graves' rule for tokens that still run.

    Args:
        p: halting probabilities of this step.
        before: probability summed up before it.
        epsilon: a token halts when the sum exceeds 1 less this.
        last: everyone halts now, which gives the last step a gradient; the published code never does.
    """
    total = before + p
    halts = torch.ones_like(total, dtype=torch.bool) if last else total > 1 - epsilon
    remainder = torch.where(halts, 1 - before, 0.0)
    return Step(torch.where(halts, remainder, p), torch.where(halts, 1.0, total), remainder, halts)


def runs_on(total: Tensor, epsilon: float, temperature: float) -> Tensor:
    """Decide whether tokens go on, exactly 0 or 1, with the gradient of the relaxed decision (straight-through)."""
    soft = torch.sigmoid((1 - epsilon - total) / temperature)
    return (total <= 1 - epsilon).float() + (soft - soft.detach())


class ACT(Precise, Method):
    """Halting per token, over layers or over the runs of a shared one.

    Args:
        preset: ``default``, or ``tiny``, ``small``, ``base``: the published models of 6, 12 and 24 updates (backbone
            albert_act_tiny, ...).
        target: relative FLOPs at which training shall end: the weight of the ponder cost is steered there; a range of
            them for a model that takes any; ``None`` uses ``tau`` as it is.
        tau: weight of the ponder cost, which is updates plus remainder per token, when there is no target; ``None`` is
            the preset's (default 1e-2; tiny 1e-3, small 5e-4, base 2.5e-4).
        warmup: share of training over which tau (or, with ``gate``, the target) sets in; ``None`` is the preset's
            (default 0.3, published 0).
        mix: ``gate``: a token's state is the layer's output until it halts, so training starts at the pretrained model;
            ``act``: the published convex mix with the state before; ``None`` is the preset's (default gate, published
            act).
        epsilon: a token halts when its probabilities sum up to more than 1 less this.
        temperature: temperature of the relaxed decision of ``gate`` in training, in units of probability.
        ponder_reduction: reduction of the ponder cost over a sequence's tokens: ``sum`` (longer inputs press harder) or
            ``mean`` over all real tokens; ``None`` is the preset's (default mean, published sum).
        final_remainder: ``act`` only: a token that still runs after the last layer gets the remainder there, and with
            it a gradient; ``None`` is the preset's (default True, published False).
        bias_init: bias of the halting units at the start; ``None`` is the preset's (default: half of the probability is
            spent over all layers; published 0, which halts most tokens after the third update).
        share_head: one halting unit for all layers; False is one for each.
    """

    name = "act"
    straight = True
    defining = ("preset", "mix", "epsilon")
    does = frozenset({"halts"})

    def __init__(
        self,
        preset: Literal["default", "tiny", "small", "base"] = "default",
        target: Target | None = None,
        tau: NotNegative | None = None,
        warmup: Fraction | None = None,
        mix: Literal["act", "gate"] | None = None,
        epsilon: Between = 0.01,
        temperature: Positive = 0.2,
        ponder_reduction: Literal["sum", "mean"] | None = None,
        final_remainder: bool | None = None,
        bias_init: float | None = None,
        share_head: bool = True,
    ) -> None:
        super().__init__(())
        published = PUBLISHED.get(preset)
        self.preset = preset
        self.tau = (published[1] if published else 1e-2) if tau is None else tau
        self.warmup = (0.0 if published else 0.3) if warmup is None else warmup
        self.mix = ("act" if published else "gate") if mix is None else mix
        self.epsilon = epsilon
        self.temperature = temperature
        self.ponder_reduction = ("sum" if published else "mean") if ponder_reduction is None else ponder_reduction
        self.final_remainder = (published is None) if final_remainder is None else final_remainder
        self.bias_init = 0.0 if bias_init is None and published else bias_init
        self.share_head = share_head
        self.aim(target)
        # act trains with hard decisions, which are held at the target from the start: a goal that is still on its way
        # there would reward pondering
        self.budget = steered(target, self.table, self.warmup if self.mix == "gate" else 0.0)
        self.shift = torch.zeros((), dtype=torch.float32)

    def build(self, spec: Spec) -> None:
        super().build(spec)
        if not spec.looks_apart:
            raise self.refusal(
                "it leaves halted tokens to be looked at, and this backbone's attention cannot look at tokens that it "
                "does not compute.\nUse BERT, RoBERTa, ALBERT or ModernBERT, or a method such as transkimmer."
            )
        if self.preset in PUBLISHED and spec.layers != PUBLISHED[self.preset][0]:
            raise self.refusal(
                f"takes {PUBLISHED[self.preset][0]} updates, and this backbone has {spec.layers} layers.\n"
                f"Use backbone=albert_act_{self.preset} (in Python: a config with "
                f"num_hidden_layers={PUBLISHED[self.preset][0]}), or preset=default.",
                preset=self.preset,
            )
        # after the last layer nobody is asked: gate has nothing left to decide, and a remainder follows from the others
        ends = self.mix == "gate" or self.final_remainder
        self.asked = spec.layers - 1 if ends else spec.layers
        self.units = nn.ModuleList(
            nn.Linear(spec.width, 1) for _ in range(min(self.asked, 1 if self.share_head else self.asked))
        )
        bias = self.bias_init
        if bias is None:
            spent = 0.5 / spec.layers
            bias = math.log(spent / (1 - spent))
        for unit in self.units:
            # gate: zero, so that nothing halts however large a state is, and training starts at the pretrained model
            nn.init.normal_(unit.weight, std=0.02 if self.mix == "act" else 0.0)  # type: ignore[arg-type]
            nn.init.constant_(unit.bias, bias)  # type: ignore[arg-type]

    @property
    def trains_masked(self) -> bool:  # type: ignore[override]
        return self.mix == "gate"  # act has no relaxed decision: what has halted has no gradient to learn from

    def probability(self, i: int, hidden: Tensor) -> Tensor:
        """Halting probabilities after layer ``i``, one per row, float32, moved by ``shift``."""
        unit = self.units[0 if self.share_head else i]
        # the logarithm of p exp(-shift): a factor of its own would cost three operations more
        moved = F.logsigmoid(unit(hidden).squeeze(-1).float()) - self.shift
        return moved.clamp(max=0.0).exp()

    def after_layer(self, i: int, before: TokenBatch, tokens: TokenBatch) -> TokenBatch:
        occupancy = tokens.occupancy
        running = occupancy.weights.float()
        state = tokens.carry or Halting.start(tokens.sequences.real)
        last = i == self.spec.layers - 1
        updates, remainders = occupancy.add(state.updates, running), state.remainders
        summed = occupancy.rows(state.probability)
        asked = i < self.asked
        p = self.probability(i, tokens.hidden) if asked else torch.zeros_like(summed)
        tokens = tokens.charge(2.0 * self.spec.width) if asked else tokens
        if self.mix == "act":
            step = halting_step(p, summed, self.epsilon, last=not asked)
            weight, total = step.weight * running, step.probability
            remainders = occupancy.add(remainders, step.remainder * running)
            goes_on: Tensor = ~step.halts
        else:
            weight, total = running, summed + p
            goes_on = runs_on(total, self.epsilon, self.temperature) if self.training else total <= 1 - self.epsilon
        # a row that has halted, or a pad, keeps what it had: masked execution computes it all the same
        total = torch.where(running > 0.5, total, summed)
        state = Halting(occupancy.put(total, state.probability), updates, remainders)
        # autocast may leave the first layer's input in half precision and its output not
        was, now = before.occupancy.follow(before.hidden, occupancy).to(tokens.hidden.dtype), tokens.hidden
        hidden = torch.lerp(was, now, weight[..., None].to(now.dtype))
        tokens = tokens.with_hidden(hidden).carrying(state)
        return tokens if last else tokens.halt(goes_on)

    def penalties(self, trace: Trace) -> dict[str, Tensor]:
        ponder = trace.carry.ponder()
        if self.ponder_reduction == "sum":
            return {"ponder": mean(ponder.sum(1))}
        return {"ponder": share(ponder.sum(), trace.lengths.sum())}

    def price(self, trace: Trace) -> dict[str, Tensor]:
        if self.mix == "gate":
            return super().price(trace)
        # hard decisions have no gradient in the FLOPs; the ponder cost per token and layer has one, and is as large
        ponder = trace.carry.ponder()
        return {"ponder": share(ponder.sum(), trace.lengths.sum()) / self.spec.layers}

    def weights(self) -> dict[str, float]:
        return {"ponder": self.tau * self.warmed(self.warmup)}
