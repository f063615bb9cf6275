r"""Early exit: a sequence whose answer is settled leaves all remaining layers, with every token it has.

What an inner layer would answer, the model's own head says of its states; all layers share that head. Three rules
(``halting``) tell when an answer is settled:

* ``patience`` (PABEE: Zhou et al., NeurIPS 2020): it has not changed for that many layers in a row - the predicted
  class, or a regression's number by more than ``tolerance``;
* ``entropy`` (DeeBERT: Xin et al., ACL 2020): :math:`-\sum_c q_c \ln q_c` of the predicted distribution has fallen
  below ``threshold``;
* ``pondernet`` (PonderNet: Banino et al., 2021; PALBERT: Balagansky and Gavrilov, NeurIPS 2022): a unit on each layer's
  [CLS] state gives :math:`\lambda_k = \sigma(x_k)`, with which an exit has the probability
  :math:`p_k = \lambda_k \prod_{j<k} (1 - \lambda_j)` (the last layer takes the rest), and a sequence leaves as soon as
  the probability of having left, :math:`\sum_{j \le k} p_j`, exceeds one half (Q-exit).

In training everyone runs through all layers. The loss is that of every exit: for the first two rules, as in PABEE,
:math:`\sum_k k L_k / \sum_k k`, for the third :math:`\sum_k p_k L_k + \beta\,\mathrm{KL}(p \| g)`, where
:math:`g_k \propto \rho (1 - \rho)^{k-1}` is a geometric distribution cut to the layers there are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, TypeAlias, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from skim.engine.ranks import mean
from skim.engine.tokens import TokenBatch
from skim.engine.trace import Trace
from skim.errors import SkimError
from skim.methods.base import Method, Spec
from skim.methods.options import Between, Count, NotNegative, Positive, Target
from skim.methods.precision import Precise

Halting: TypeAlias = Literal["patience", "entropy", "pondernet"]
HALTINGS = get_args(Halting)


@dataclass(frozen=True)
class Exits:
    """Answers of the layers so far to each sequence; of one that has left, later entries are void.

    Attributes:
        logits: ``(B, C)`` of each exit whose head was read.
        steady: ``(B,)`` layers in a row that have not changed their answer; ``None`` before the second.
        units: ``(B,)`` of each halting unit, :math:`x_k`; float32.
    """

    logits: tuple[Tensor, ...] = ()
    steady: Tensor | None = None
    units: tuple[Tensor, ...] = ()


def entropy(logits: Tensor) -> Tensor:
    """Entropy of the predicted distributions, in nats: ``(B, C)`` to ``(B,)`` float32."""
    log_q = logits.float().log_softmax(-1)
    return -(log_q.exp() * log_q).sum(-1)


def unchanged(logits: Tensor, before: Tensor, tolerance: float) -> Tensor:
    """Tell whether two layers answer alike, ``(B,)`` bool: the same class, or numbers less than ``tolerance`` apart."""
    if logits.shape[-1] == 1:
        return (logits - before).abs().squeeze(-1) < tolerance
    return logits.argmax(-1) == before.argmax(-1)


def log_exit_distribution(units: Tensor) -> Tensor:
    r""":math:`\ln p_k` of L exits from :math:`x_k` of the L - 1 that are decided: ``(L - 1, B)`` to ``(L, B)``."""
    stayed = F.pad(F.logsigmoid(-units).cumsum(0), (0, 0, 1, 0))  # ln of having come to each exit
    return stayed + F.pad(F.logsigmoid(units), (0, 0, 0, 1))


def truncated_geometric(rate: float, exits: int) -> Tensor:
    """Probabilities of the first ``exits`` values of a geometric distribution, made to sum up to 1."""
    weights = (1 - rate) ** torch.arange(exits, dtype=torch.float32)
    return weights / weights.sum()


def sequence_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """The task's loss of each sequence, ``(B,)``: squared error of one number, or cross-entropy of classes."""
    if logits.shape[-1] == 1:
        return (logits.squeeze(-1) - labels.view(-1)).float() ** 2
    if labels.is_floating_point():
        raise SkimError(
            f"method=early_exit takes one class for each sequence, and these labels are {labels.dtype} beside "
            f"{logits.shape[-1]} logits: several labels, or several numbers.\nUse class numbers, or another method."
        )
    return F.cross_entropy(logits.float(), labels.view(-1), reduction="none")


class EarlyExit(Precise, Method):
    """Ends a sequence at the layer whose answer is settled; the head's final answer is that layer's.

    Args:
        halting: ``patience`` (PABEE, Zhou et al., NeurIPS 2020): the answer has not changed for some layers;
            ``entropy`` (DeeBERT, Xin et al., ACL 2020): the predicted distribution is sharp; ``pondernet`` (PALBERT,
            Balagansky and Gavrilov, NeurIPS 2022): a unit on [CLS] has learned when.
        patience: ``patience``: layers in a row with the same answer.
        tolerance: ``patience`` in a regression: numbers that are closer than this, in units of the labels, are the same
            answer.
        threshold: ``entropy``: below this, in nats, a sequence leaves; ln C is the most there is with C classes.
        prior: ``pondernet``: share of those still running that leaves at each layer, if nothing is known.
        beta: ``pondernet``: weight of the distance to that.
        target: relative FLOPs on which the trained model's decisions are set, for ``entropy`` and ``pondernet``, or a
            range of them for a model that takes any; ``None`` leaves them.
    """

    name = "early_exit"
    reads_head = True
    trains_dense = True
    does = frozenset({"exits"})

    def __init__(
        self,
        halting: Halting = "patience",
        patience: Count = 3,
        tolerance: Positive = 0.1,
        threshold: Positive = 0.1,
        prior: Between = 0.1,
        beta: NotNegative = 0.5,
        target: Target | None = None,
    ) -> None:
        super().__init__()
        if target is not None and halting == "patience":
            raise self.refusal(
                "cannot be met by patience, which counts whole layers.\n"
                "Use halting=entropy or halting=pondernet, or another patience and no target.",
                target=target,
            )
        self.halting = halting
        self.patience = patience
        self.tolerance = tolerance
        self.threshold = threshold
        self.prior = prior
        self.beta = beta
        self.aim(target)
        if halting != "patience":
            self.shift = torch.zeros((), dtype=torch.float32)

    def build(self, spec: Spec) -> None:
        super().build(spec)
        self.decided = spec.layers - 1  # behind the last layer everyone leaves
        if self.halting == "entropy" and spec.outputs == 1:
            raise self.refusal(
                "needs classes, and this model's head gives one number.\nUse halting=patience or halting=pondernet.",
                halting=self.halting,
            )
        if self.halting != "pondernet":
            return
        prior = truncated_geometric(self.prior, spec.layers)
        self.units = nn.ModuleList(nn.Linear(spec.width, 1) for _ in range(self.decided))
        for k, unit in enumerate(self.units):  # it begins as the prior: of those still running, that share leaves
            nn.init.normal_(unit.weight, std=0.02)  # type: ignore[arg-type]
            nn.init.constant_(unit.bias, torch.logit(prior[k] / prior[k:].sum()).item())  # type: ignore[arg-type]

    def wants_reading(self, i: int) -> bool:
        return i < self.decided and (self.training or self.halting != "pondernet")

    def after_layer(self, i: int, before: TokenBatch, tokens: TokenBatch) -> TokenBatch:
        if self.halting != "pondernet" or i >= self.decided:
            return tokens
        exits = tokens.carry or Exits()
        exits = replace(exits, units=(*exits.units, self.unit(i, tokens)))
        tokens = tokens.charge(per_sequence=2.0 * self.spec.width).carrying(exits)
        return tokens if self.training else tokens.leave(self.left(torch.stack(exits.units)) > 0.5)

    def unit(self, i: int, tokens: TokenBatch) -> Tensor:
        """Answers of layer ``i``'s halting unit for each sequence that is there, ``(B,)`` float32; 0 for the others."""
        states, places = tokens.standing()
        x = self.units[i](states).squeeze(-1).float()
        return x.new_zeros(len(tokens.sequences.real)).index_copy(0, places, x)

    def left(self, units: Tensor) -> Tensor:
        r"""The probability of having left, ``(k, B)`` to ``(B,)``, with every :math:`\lambda` moved by ``shift``."""
        rates = torch.sigmoid(units) * torch.exp(-self.shift).clamp(max=1e30)  # type: ignore[operator]
        return 1 - (1 - rates.clamp(max=1.0)).prod(0)

    def after_reading(self, i: int, tokens: TokenBatch, logits: Tensor) -> TokenBatch:
        exits = tokens.carry or Exits()
        steady = exits.steady
        if not self.training and exits.logits:
            steady = torch.zeros(len(logits), device=logits.device) if steady is None else steady
            steady = (steady + 1) * unchanged(logits, exits.logits[-1], self.tolerance)
        tokens = tokens.carrying(replace(exits, logits=(*exits.logits, logits), steady=steady))
        if self.training:
            return tokens
        if self.halting == "entropy":
            return tokens.leave(entropy(logits) < self.threshold * torch.exp(-self.shift))  # type: ignore[operator]
        return tokens if steady is None else tokens.leave(steady >= self.patience)

    def task_loss(self, logits: Tensor, labels: Tensor, trace: Trace) -> Tensor:
        exits = trace.carry or Exits()  # of a single layer there is no other
        losses = torch.stack([sequence_losses(one, labels) for one in (*exits.logits, logits)])
        if self.halting == "pondernet":
            return (self.log_exits(trace).exp() * losses).sum(0).mean()
        weights = torch.arange(1.0, len(losses) + 1, device=losses.device)[:, None]
        return (weights * losses).sum(0).mean() / weights.sum()

    def log_exits(self, trace: Trace) -> Tensor:
        """Log-probabilities of the exits in training, ``(L, B)``."""
        units = trace.carry.units if trace.carry else ()
        none = torch.zeros(0, len(trace.lengths), device=trace.lengths.device)
        return log_exit_distribution(torch.stack(units) if units else none)

    def penalties(self, trace: Trace) -> dict[str, Tensor]:
        if self.halting != "pondernet":
            return {}
        log_p = self.log_exits(trace)
        log_g = truncated_geometric(self.prior, len(log_p)).log().to(log_p)[:, None]
        return {"prior_distance": mean((log_p.exp() * (log_p - log_g)).sum(0))}

    def weights(self) -> dict[str, float]:
        return {"prior_distance": self.beta}
