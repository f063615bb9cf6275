"""A learning rate of their own for some parameters, under an optimizer and a scheduler that somebody else has made."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from skim.errors import SkimError


class OwnRate:
    """Stretches the steps that an optimizer takes with some parameters.

    AdamW, SGD and most others move a parameter by its learning rate times something that does not depend on it. So a
    step at another rate is that step, as many times as long; groups, schedules and saved states stay as they are.

    Args:
        parameters: whose steps are stretched.
        optimizer: made, with its groups.
        base: peak learning rate of the optimizer, for one whose groups do not remember theirs.

    Attributes:
        has_group: whether the optimizer has groups of these parameters alone: then whoever made it has thought of them.

    Raises:
        SkimError: the optimizer does not have all of those that train.
    """

    def __init__(self, parameters: list[nn.Parameter], optimizer: Any, base: float) -> None:
        learning = [p for p in parameters if p.requires_grad]
        own = {id(p) for p in learning}
        self.peaks: list[tuple[nn.Parameter, float]] = []
        shared = False
        for group in optimizer.param_groups:
            here = [p for p in group["params"] if id(p) in own]
            shared |= 0 < len(here) < len(group["params"])
            self.peaks += [(p, float(group.get("initial_lr", base))) for p in here]
        if len(self.peaks) < len(learning):
            raise SkimError(
                f"The optimizer has {len(self.peaks)} of the method's {len(learning)} parameters, so it would train "
                "without the others.\nPut model.parameters() into it, after skim.compress."
            )
        self.has_group = bool(self.peaks) and not shared
        self.before: list[torch.Tensor] = []

    @torch.no_grad()
    def before_step(self) -> None:
        """Remember where the parameters are."""
        self.before = [p.detach().clone() for p, _ in self.peaks]

    @torch.no_grad()
    def after_step(self, peak: float | None) -> None:
        """Make the step that was taken as long as it is at this peak rate; ``None`` leaves it.

        Raises:
            SkimError: the optimizer's rate is 0, so that it takes no step that could be stretched.
        """
        for (parameter, base), before in zip(self.peaks, self.before, strict=True):
            if peak == 0:
                parameter.copy_(before)
            elif peak is not None and peak != base:
                if base == 0:
                    raise SkimError(
                        f"The optimizer's learning rate is 0, so the method's own ({peak:g}) has no step to stretch.\n"
                        "Give it a group of its own in the optimizer, or use a tiny learning rate for the others."
                    )
                parameter.copy_(before + (parameter - before) * (peak / base))
        self.before = []
