"""The budget in training: the user sets relative FLOPs, training adjusts the weight of the FLOPs penalty.

A coefficient says nothing about the result: the same one skims 30 % on one task and 90 % on another, and with the wrong
schedule it skims everything before the model has learned (reference: the published Transkimmer recipe collapses). With
:class:`Budget` the user states relative FLOPs, and the coefficient follows as the multiplier of that constraint.
"""

from __future__ import annotations

import torch
from torch import Tensor

from skim.methods.options import Fraction, Share, checked
from skim.methods.precision import Precise

# A slow integral and a stiff answer. With 150 and 4 the multiplier wound up while the goal fell: Transkimmer on SST-2
# spent half of its training at 0.37 where 0.5 was asked for. Much stiffer, short trainings swing.
GAIN = 30.0  # multiplier gained per unit of error and per whole training: 0.1 too much for a fifth of it adds 0.6
STIFFNESS = 15.0  # the part of the coefficient that answers this step's error at once
REACH = 0.1  # a larger error counts as this much: while predictors are on their way, the multiplier must not wind up


class Budget(Precise):
    r"""A proportional-integral controller, the stochastic form of an augmented Lagrangian.

    With :math:`r` the relative FLOPs of a step and :math:`g(p)` the goal at progress :math:`p`, falling from 1 to the
    target over the warm-up,

    .. math:: \lambda \leftarrow \lambda + G\,\mathrm{clip}(r - g)\,\Delta p, \qquad c = \lambda + S\,(r - g)

    and :math:`c \cdot r` joins the loss. A negative coefficient pulls a run back that has skimmed too much. The state
    is saved with the method; under DDP all ranks steer by their mean.

    Args:
        target: relative FLOPs at which training shall end, in (0, 1].
        warmup: share of training over which the goal falls from 1 to the target.
    """

    multiplier: Tensor
    coefficient: Tensor
    last: Tensor

    @checked
    def __init__(self, target: Share, warmup: Fraction) -> None:
        super().__init__()
        self.target = target
        self.warmup = warmup
        for name in ("multiplier", "coefficient", "last"):
            self.register_buffer(name, torch.zeros((), dtype=torch.float32))

    def goal(self, progress: float) -> float:
        """The relative FLOPs to aim for at this point of training."""
        done = min(progress / self.warmup, 1.0) if self.warmup > 0 else 1.0
        return 1.0 - (1.0 - self.target) * done

    def choose(self, budget: float) -> None:
        """Steer towards another budget from now on."""
        self.target = budget

    def agreed(self, relative_flops: Tensor) -> Tensor:
        """Mean of what the ranks have spent, detached."""
        relative_flops = relative_flops.detach().to(self.multiplier)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            relative_flops = relative_flops.clone()
            torch.distributed.all_reduce(relative_flops)
            relative_flops /= torch.distributed.get_world_size()
        return relative_flops

    @torch.no_grad()
    def step(self, progress: float, relative_flops: Tensor) -> None:
        """Move the coefficient; ``relative_flops`` is this step's, a scalar."""
        error = self.agreed(relative_flops) - self.goal(progress)
        # on the device: nobody waits for a step's number
        self.multiplier += GAIN * error.clamp(-REACH, REACH) * (progress - self.last).clamp_min(0.0)
        self.coefficient.copy_(self.multiplier + STIFFNESS * error)
        self.last.fill_(progress)
