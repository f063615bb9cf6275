"""Trainings that leave the method out: what happens to it in silence is told here.

A method learns when three things come together: its parameters have gradients, its penalties are in the loss, and
somebody moves its schedules on. Trainers that know nothing of it do none of the three, and train on all the same.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from skim.engine.hooks import Hooks
from skim.errors import SkimError

UPDATES = 3  # of the model's weights without a step of its method that make a warning


class Watch:
    """Looks at every forward of a training.

    Updates of the weights are counted, and not forwards: a loop that accumulates gradients steps its method once in
    many of them. A few updates are enough; then nothing is looked at any more.
    """

    def __init__(self) -> None:
        self.updates = 0
        self.seen: Tensor | None = None  # a weight of every parameter that trains, as of the last look

    def look(self, model: nn.Module, method: Hooks) -> None:
        """Called by a forward in training, with gradients.

        Raises:
            SkimError: the method is frozen and nobody has said that it shall be.
        """
        if torch.compiler.is_compiling():
            return
        own = next(method.parameters(), None)
        if own is not None and not own.requires_grad and not method.kept_frozen:
            _check_frozen(model, method)
        needed = method.trains_masked or method.weights() or method.target is not None
        if not method.stepped and self.updates < UPDATES and needed:
            self._count(model, method)

    def _count(self, model: nn.Module, method: Hooks) -> None:
        before, self.seen = self.seen, _sample(model)
        if before is None or self.seen is None or before.shape != self.seen.shape or torch.equal(before, self.seen):
            return
        self.updates += 1
        if self.updates == UPDATES:
            warnings.warn(
                f"This model is being trained, and nobody steps its method ({method.name}): schedules stand still, no "
                "target is steered to, and its penalties are likely in no loss.\nIn a loop of your own: "
                "method.step(progress, model.trace), and loss + method.loss(model.trace). With transformers' Trainer: "
                "callbacks=[skim.integrations.SkimCallback()].",
                stacklevel=2,
            )


@torch.no_grad()
def _sample(model: nn.Module) -> Tensor | None:
    """The last weight of each parameter that trains; an optimizer need not tell autograd that it writes."""
    training = [p for p in model.parameters() if p.requires_grad and p.numel()]
    return torch.stack([p.reshape(-1)[-1].float() for p in training]).cpu() if training else None


def _check_frozen(model: nn.Module, method: Hooks) -> None:
    """Refuse to train anything else of a model while all of its method is frozen."""
    if any(p.requires_grad for p in method.parameters()) or not any(p.requires_grad for p in model.parameters()):
        return
    raise SkimError(
        f"All parameters of the method ({method.name}) are frozen while others train: peft.get_peft_model freezes all "
        "that it finds.\nTo train it: compress the model that get_peft_model returns, or modules_to_save=['method'] in "
        "the adapter's config. To keep it as it is: model.method.requires_grad_(False) says so."
    )
