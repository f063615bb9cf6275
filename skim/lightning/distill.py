"""Distillation: the loss of a student that imitates a teacher's logits beside the labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from skim.compression import uncompressed
from skim.engine.inputs import inputs_of
from skim.engine.ranks import weighed
from tasks.base import Task


class Distiller:
    """Mix the distance to a teacher's logits into a loss.

    Args:
        weight: of the distance, in (0, 1]; the task's loss weighs the rest.
        temperature: softens both distributions, above 0.
        teacher: the dense model to learn from; ``None``: the student's own weights, run uncompressed.
    """

    def __init__(self, weight: float, temperature: float = 2.0, teacher: nn.Module | None = None) -> None:
        self.weight, self.temperature = weight, temperature
        self.teacher = teacher

    def to(self, device: torch.device) -> None:
        """Move the teacher, which Lightning neither moves nor saves nor trains."""
        if self.teacher is not None:
            self.teacher.to(device)

    @torch.no_grad()
    def teach(self, student: nn.Module, batch: dict[str, Tensor], begun: bool) -> Any:
        """Run the teacher in evaluation mode, before the student, whose trace is the one to be kept.

        Args:
            student: the compressed model.
            batch: as the student will see it.
            begun: False while the student runs uncompressed too, when its own self has nothing to teach it.

        Returns:
            The teacher's output; ``None`` if there is nothing to learn.
        """
        inputs = inputs_of(batch)
        if self.teacher is not None:
            return self.teacher(**inputs)
        if not begun:
            return None
        student.eval()
        try:
            with uncompressed(student):
                return student(**inputs)
        finally:
            student.train()
            torch.clear_autocast_cache()  # torch < 2.11 would hand the student weights without a gradient

    def mix(self, loss: Tensor, task: Task, output: Any, taught: Any, batch: dict[str, Tensor]) -> Tensor:
        """The weighted mean of the task's loss and the distance to the teacher.

        Args:
            loss: the task's, a scalar.
            task: knows the distance of two outputs.
            output: the student's.
            taught: the teacher's.
            batch: that both have seen.
        """
        distance = task.distance(output, taught, batch, self.temperature)
        return (1 - self.weight) * loss + self.weight * weighed(distance, lambda: task.labelled(batch))
