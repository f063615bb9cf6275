"""Budget of a training: hard decisions are set to the method's target when they begin, and held there."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from skim.calibration import Batches, look_after


class Budget(Callback):
    """Keep a method with a target at it while it trains, see :func:`skim.calibration.look_after`.

    Args:
        inputs: to calibrate on.
    """

    def __init__(self, inputs: Batches) -> None:
        self.inputs = inputs
        self.step = -1  # at which the budget was last looked after

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *_: object) -> None:
        step = trainer.global_step
        if not module.begun or step == self.step:  # accumulated batches share a step
            return
        self.step = step
        _, first, _steps = module.plan.at(step)
        begin, steps = module.plan.of_method(step)
        with trainer.precision_plugin.forward_context():
            look_after(module.model, self.inputs, step - begin, steps, starts=first == 0, tell=module.print)
