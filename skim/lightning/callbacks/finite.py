"""Losses and gradients that are NaN or infinite: the step is not made, and training ends, or goes on without it.

No step waits for the device for that: its kernel holds a fused optimizer back, and the host reads what has happened
when it writes a line of the log and before it saves anything. Only an optimizer that cannot be held back so costs one
read per step: who steps first and asks later has lost the weights.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from skim.engine.ranks import everywhere
from skim.errors import Interrupted

IN_A_ROW = 10  # steps without one that could be made: the weights are at fault, or all the data
LISTED = 64  # rows that a message names


class NonFinite(Interrupted):
    """The loss or a gradient of a step is NaN or infinite, or a weight is."""


@dataclass
class Step:
    """One optimizer step, as far as the device knows it.

    Attributes:
        number: counted from 1.
        losses: one of each batch.
        norms: of the gradients of each kind of parameter; empty where a scaler looks at them.
        bad: 1 if one of these is not finite on any process, else 0.
        rows: of each batch, by their numbers in the training data; ``None`` where batches have none.
    """

    number: int
    losses: list[Tensor]
    norms: list[Tensor]
    bad: Tensor
    rows: list[Tensor | None]

    def told(self) -> tuple[str, list[int]]:
        """The number that is not finite, and the rows of the batches that it is of."""
        losses, norms = [loss.item() for loss in self.losses], [norm.item() for norm in self.norms]
        wrong = [value for value in losses if not math.isfinite(value)]
        odd = [value for value in norms if not math.isfinite(value)]
        said = f"loss is {wrong[0]}" if wrong else f"gradient is {odd[0]}" if odd else ""
        of = [rows for rows, loss in zip(self.rows, losses, strict=True) if not (wrong and math.isfinite(loss))]
        mine = [rows for rows in of if rows is not None]
        return said, [row for rows in mine for row in rows.tolist()]


class Finite(Callback):
    """Makes no step by a loss or a gradient that is not finite, and lets no such weights into a checkpoint.

    Under ``16-mixed`` only the loss counts: gradients that overflow are what the scaler is there for.

    Args:
        then: ``stop`` ends training at such a step, ``skip`` goes on with the next one.

    Attributes:
        skipped: steps that were not made, counted from 1.
    """

    def __init__(self, then: Literal["stop", "skip"] = "stop") -> None:
        self.then = then
        self.skipped: list[int] = []
        self._losses: list[Tensor] = []  # of the present step
        self._rows: list[Tensor | None] = []
        self._before: list[Tensor] = []  # buffers of the method, which follow what the forward saw
        self._steps: list[Step] = []  # that the host has not read

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        if not self._rows and self.then == "skip":
            self._before = [buffer.clone() for buffer in self._state(module)]
        self._rows.append(batch.get("row"))

    def on_before_backward(self, trainer: pl.Trainer, module: Any, loss: Tensor) -> None:
        self._losses.append(loss.detach())

    def judge(
        self, trainer: pl.Trainer, module: Any, norms: Sequence[Tensor], optimizer: torch.optim.Optimizer
    ) -> None:
        """Hold the optimizer back if a number of this step is not finite.

        Args:
            trainer: of the run.
            module: in training.
            norms: of its gradients.
            optimizer: about to make the step.

        Raises:
            NonFinite: one is not, and training shall end at it.
        """
        if self not in trainer.callbacks:  # type: ignore[attr-defined]  # a test of rates goes to where a loss is infinite
            return
        losses, counted = self._losses, [] if trainer.precision == "16-mixed" else list(norms)
        bad = (torch.stack([*losses, *counted]) * 0).sum().ne(0).float()  # NaN and infinity times 0 are NaN
        if trainer.world_size > 1:
            bad = trainer.strategy.reduce(bad, reduce_op="max")
        self._steps.append(Step(trainer.global_step + 1, losses, counted, bad, self._rows))
        self._losses, self._rows = [], []
        if self.then == "skip":
            for before, buffer in zip(self._before, self._state(module), strict=False):
                buffer.copy_(torch.where(bad > 0, before, buffer))
        if held(optimizer):
            optimizer.found_inf = bad  # type: ignore[attr-defined]  # of its kernel: a step is made where it is 0
            if module.written:
                self.read(module)
        elif self.read(module):
            for parameter in module.parameters():
                parameter.grad = None  # which every optimizer leaves as it is

    def read(self, module: Any) -> bool:
        """Look at the steps since the last look; tell whether one of them was not made.

        Raises:
            NonFinite: one was not, and training shall end at it; or so many in a row that nothing is learned.
        """
        steps, self._steps = self._steps, []
        if not steps:
            return False
        found = torch.stack([step.bad for step in steps]).tolist()
        for step, bad in zip(steps, found, strict=True):
            if bad:
                self._refuse(step, module)
        return any(found)

    def _refuse(self, step: Step, module: Any) -> None:
        """Count a step that was not made, or end training at it."""
        told = everywhere(step.told())
        # the loss of one process spoils the gradients of all
        said = min((said for said, _ in told if said), key=lambda said: not said.startswith("loss"), default="")
        rows = sorted(row for what, rows in told for row in rows if what[:4] == said[:4])
        named = ", ".join(map(str, rows[:LISTED])) + (f" and {len(rows) - LISTED} more" if len(rows) > LISTED else "")
        of = f"Its batch has the rows {named} of the training data." if rows else "Its batch has no rows of its own."
        what = f"step {step.number} of {module.plan.steps}: the {said}"
        if self.then == "stop":
            raise NonFinite(
                what,
                f"{of} Look at them and at train.lr, or leave such steps out: train.nonfinite=skip beside resume=.",
            )
        self.skipped.append(step.number)
        module.print(f"{what}. It is skipped. {of}")
        if self.skipped[-IN_A_ROW:] == list(range(step.number - IN_A_ROW + 1, step.number + 1)):
            raise NonFinite(
                what, f"The last {IN_A_ROW} steps were skipped, so nothing is learned any more: see train.lr."
            )

    def check(self, module: Any) -> None:
        """Refuse to save weights that are not finite; to be called before anything is written.

        Raises:
            NonFinite: some are not, or a step since the last look was not made and training shall end at it.
        """
        self.read(module)
        named = [(name, tensor) for name, tensor in module.named_parameters() if tensor.is_floating_point()]
        named = [(name, tensor) for name, tensor in named if tensor.numel()]
        norms = torch.stack(torch._foreach_norm([tensor.detach() for _, tensor in named], float("inf")))
        finite = torch.isfinite(norms).tolist()
        if not all(finite):
            name = named[finite.index(False)][0]
            step = f"step {module.global_step} of {module.plan.steps}"
            raise NonFinite(f"{step}: {name} is not finite any more, and is not saved", "Lower train.lr.")

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        self.check(module)  # with callbacks.last_checkpoint=null the next that is written is model/

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped} if self.skipped else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    @staticmethod
    def _state(module: Any) -> list[Tensor]:
        """Numbers of the method that a forward moves: its steering."""
        return [buffer for buffer in module.method.buffers() if buffer.is_floating_point()]


def held(optimizer: torch.optim.Optimizer) -> bool:
    """Tell whether an optimizer's kernel can hold a step back by itself, which a fused one's can."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))
