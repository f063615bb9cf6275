"""Stages of a training: the plan is checked when it begins, and the method and the optimizer are told of each stage."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

from skim.errors import SkimError
from skim.methods import Method
from skim.stages import Stage, kind_of


class Stages(Callback):
    """Train stage after stage: each has its weight decay, fresh moments, and the method's own way to train."""

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Check the plan.

        Raises:
            SkimError: a stage has no step, or shall train a method whose parameters are frozen.
        """
        for label, part in module.method.by_label.items():
            frozen = [name for name, parameter in part.named_parameters() if not parameter.requires_grad]
            if frozen and any(stage.peak(kind_of(label)) > 0 for stage in module.stages):
                raise SkimError(
                    f"The method's parameters are to be trained and {len(frozen)} of them are frozen, such as "
                    f"{frozen[0]}: peft.get_peft_model freezes all that it finds.\nCall skim.compress after it, or set "
                    "the stage's method_lr=0 (train.method_lr=0) to train without them."
                )
            if frozen:
                part.requires_grad_(False)  # which no stage trains
        module.plan.check()
        module.method.stage_shares = module.plan.shares

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, *_: object) -> None:
        step = trainer.global_step
        stage, first, steps = module.plan.at(step)
        if stage is not module.stage:
            self.enter(module, stage, starts=step == first > 0, steps=steps)
        begin, _steps = module.plan.of_method(step)
        if step == begin > first:  # the method begins within the stage
            forget(module, module.method.parameters())  # moments of no gradients

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Be in the last stage, also where training goes on behind its last step and sees no batch."""
        stage, _, steps = module.plan.at(max(trainer.global_step - 1, 0))
        if stage is not module.stage:
            self.enter(module, stage, starts=False, steps=steps)

    def on_fit_end(self, trainer: pl.Trainer, module: Any) -> None:
        """Likewise, where there was nothing at all to do."""
        self.on_train_end(trainer, module)

    def enter(self, module: Any, stage: Stage, starts: bool, steps: int) -> None:
        """Train by another stage from now on.

        Args:
            module: to be trained.
            stage: the one to come.
            starts: False in the middle of a stage that is resumed, and at the beginning of training.
            steps: optimizer steps of the stage.
        """
        module.stage = stage
        for group in optimizer_of(module).param_groups:
            group["weight_decay"] = stage.decay(group["kind"])
        if starts:
            optimizer_of(module).state.clear()  # moments of another loss
        if stage.name:
            module.method.enter(stage.name)
            module.print(f"stage {stage.name}: {steps} steps{said_rates(stage, module.method)}")


def said_rates(stage: Stage, method: Method) -> str:
    """Say at which peak rates the members of a chain learn in a stage; nothing of another method."""
    learning = [label for label, part in method.by_label.items() if label and next(part.parameters(), None) is not None]
    rates = {label: stage.peak(kind_of(label)) for label in learning}
    return "".join(f", {label} {f'learns at {rate:g}' if rate else 'is frozen'}" for label, rate in rates.items())


def optimizer_of(module: pl.LightningModule) -> torch.optim.Optimizer:
    """The module's one optimizer."""
    return cast(torch.optim.Optimizer, module.optimizers(use_pl_optimizer=False))


def forget(module: pl.LightningModule, parameters: Iterable[nn.Parameter]) -> None:
    """Drop the optimizer's moments of some parameters."""
    for parameter in parameters:
        optimizer_of(module).state.pop(parameter, None)
