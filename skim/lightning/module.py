"""Training a compressed model: the task's loss, plus the method's penalties, plus an optional teacher."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, cast

import numpy as np
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric

from skim.compression import accepted, uncompressed, walk_of
from skim.engine.inputs import inputs_of
from skim.engine.trace import Trace
from skim.errors import SkimError, unknown
from skim.flops import FORMULAS
from skim.lightning.budget import Batches, look_after
from skim.lightning.spending import Spending
from skim.lightning.stages import KINDS, Plan, Stage, check_bounds
from tasks.base import Task
from tasks.losses import Loss

TEACHERS = ("init", "self")


def position(checkpoint: dict[str, Any]) -> tuple[int, int]:
    """Epoch and batch at which the training of a checkpoint goes on."""
    fit = checkpoint["loops"]["fit_loop"]
    batches, epochs = fit["epoch_loop.batch_progress"], fit["epoch_progress"]["current"]
    closed = epochs["processed"] == epochs["started"]  # also by max_steps, in its middle
    epoch = epochs["processed"] - closed
    return (epoch + 1, 0) if batches["is_last_batch"] else (epoch, batches["current"]["processed"])


class SkimModule(pl.LightningModule):
    """One compressed model on one task. Decisions are relaxed in training, hard and deterministic in evaluation.

    Args:
        model: what ``skim.compress`` returned.
        task: gives the metrics and turns logits into predictions.
        stages: how to train, one after the other.
        distill: weight of the distance to the teacher's logits, in [0, 1]; the task's loss weighs the rest.
        distill_temperature: both distributions are softened by it.
        distill_from: ``init``: the teacher is ``teacher``; ``self``: it is the model's own weights, run uncompressed.
        teacher: the dense model to learn from, in evaluation mode; needed if ``distill`` is above 0.
        method_after: share of training in which the model trains, and is validated, as the plain dense backbone, before
            the method begins.
        calibrate_on: inputs on which a method with a target is set to it, before a stage whose decisions are hard.
        formulas: names of published FLOPs formulas to report beside the true count, see :data:`skim.flops.FORMULAS`.
        companion: what ``task.companion`` made, to be trained beside the model.
        loss: what ``task.training_loss`` gave, to train on in place of the loss that the model computes.

    Attributes:
        classes: the last evaluation class by class, see :meth:`tasks.base.Task.table`.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        stages: Sequence[Stage] = (Stage(),),
        distill: float = 0.0,
        distill_temperature: float = 2.0,
        distill_from: str = "init",
        teacher: nn.Module | None = None,
        method_after: float = 0.0,
        calibrate_on: Batches | None = None,
        formulas: Sequence[str] = (),
        companion: nn.Module | None = None,
        loss: Loss | None = None,
    ) -> None:
        super().__init__()
        if distill_from not in TEACHERS:
            raise unknown("train.distill_from", distill_from, TEACHERS)
        self.model = model
        self.task = task
        self.stages = tuple(stages)
        self.stage: Stage | None = None  # the present one
        self._looked_after = -1  # the step of it at which the budget was last thought of
        self._bounds: list[int] | None = None  # the plan's, for checkpoints
        self._bounds_before: list[int] | None = None  # those of the checkpoint that is being resumed
        self._begin = 0  # the method's first step
        self._begin_before: int | None = None  # in the checkpoint that is being resumed
        self.distill, self.distill_temperature, self.distill_from = distill, distill_temperature, distill_from
        self.method_after = method_after
        # in a tuple: the teacher is no parameter of this module, is not trained, saved or moved by Lightning
        self._teacher = (teacher,)
        self.calibrate_on = calibrate_on
        self.metrics = task.metrics()
        self.counts = task.counts()
        self.classes: dict[str, Any] | None = None
        self.companion = companion
        walk = walk_of(model)
        self.spending = Spending(len(walk.costs), {name: FORMULAS[name](walk.base.config) for name in formulas})
        self.eval_loss = MeanMetric()
        if loss is not None and self.method.reads_head:
            raise SkimError(
                f"method={self.method.name} sums the losses of all its exits, which know no weights and no smoothing.\n"
                "Set train.label_smoothing=0 and task.class_weights=null, or take another method."
            )
        self._loss = loss

    @property
    def method(self) -> Any:
        """The compression method."""
        return walk_of(self.model).method

    @property
    def trace(self) -> Trace:
        """Of the last forward."""
        return walk_of(self.model).trace

    def forward(self, batch: dict[str, Tensor]) -> Any:
        return self.model(**accepted(self.model, batch))

    # ---- training ----

    def on_fit_start(self) -> None:
        frozen = [name for name, parameter in self.method.named_parameters() if not parameter.requires_grad]
        if frozen and any(stage.method_lr > 0 for stage in self.stages):
            raise SkimError(
                f"The method's parameters are to be trained and {len(frozen)} of them are frozen, such as {frozen[0]}: "
                "peft.get_peft_model freezes all that it finds.\nCall skim.compress after it, or set the stage's "
                "method_lr=0 (train.method_lr=0) to train without them."
            )
        if frozen:
            self.method.requires_grad_(False)  # which no stage trains
        plan = self.plan
        plan.check()
        bounds = plan.bounds
        if self._bounds_before is not None:
            check_bounds(self._bounds_before, bounds)
        if self._begin_before is not None and self._begin_before != plan.begin:
            raise SkimError(
                f"resume: the method of the checkpoint begins at step {self._begin_before}, this run's at "
                f"{plan.begin}.\nUse train.method_after={self._begin_before / plan.steps:.6g}."
            )
        self._bounds, self._bounds_before = bounds, None
        self._begin, self._begin_before = plan.begin, None
        # from_pretrained returns a model in eval mode and Lightning keeps it there: no dropout, no relaxed decisions
        self.model.train()
        if self._teacher[0] is not None:
            self._teacher[0].to(self.device)

    def on_train_start(self) -> None:
        # a training that is shorter than the interval of the log would leave no line
        left = max(self.plan.steps - self.global_step, 1)
        self.trainer.log_every_n_steps = min(self.trainer.log_every_n_steps, left)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["bounds"] = self._bounds
        checkpoint["method_begin"] = self._begin
        checkpoint["method_progress"] = self.method.progress  # the next forward decides by it
        checkpoint["order"] = self._order()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if "optimizer_states" not in checkpoint:
            raise SkimError(
                "resume: this checkpoint holds weights to look at and nothing to train them on with, as best.ckpt does."
                "\nUse last.ckpt beside it, or start anew from its run: init_from=<run>."
            )
        self._bounds_before = checkpoint.get("bounds")  # older checkpoints have none
        self._begin_before = checkpoint.get("method_begin")
        self.method.progress = checkpoint.get("method_progress", 0.0)
        epoch, batch = position(checkpoint)
        before, now = checkpoint.get("order", {}), self._order()
        if batch and (differs := [name for name in before if before[name] != now[name]]):
            said = ", ".join(f"{name}={before[name]}, now {now[name]}" for name in differs)
            raise SkimError(
                f"resume: the checkpoint stands in the middle of an epoch, whose batches are others now: {said}.\n"
                "Use what it was made with, or a checkpoint from the end of an epoch."
            )
        self.task.resume_at(epoch, batch)

    def _order(self) -> dict[str, Any]:
        """What the batches of an epoch follow from."""
        task = self.task
        return {
            "seed": task.seed,
            "task.batch_size": task.batch_size,
            "training rows": task.training_rows,
            "processes": self.trainer.world_size,
        }

    @property
    def plan(self) -> Plan:
        """The stages over the steps of this run."""
        return Plan(self.stages, max(int(self.trainer.estimated_stepping_batches), 1), self.method_after)

    @property
    def begun(self) -> bool:
        """Whether the method takes part in the present step."""
        return self.global_step >= self._begin

    @property
    def has_run(self) -> bool:
        """Whether the method has taken part in a step of training; from the start, if nothing precedes it."""
        return self._begin == 0 or self.global_step > self._begin

    def on_train_batch_start(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        # a batch's dropout and noise follow from where it stands: a run that goes on draws what it would have drawn
        place = (self.task.seed, self.global_rank, self.current_epoch, batch_idx)
        torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1))
        stage, first, steps = self.plan.at(self.global_step)
        if stage is not self.stage:
            self._enter(stage, first, steps)
        if not self.begun:
            return
        begin, steps = self.plan.of_method(self.global_step)
        done = self.global_step - begin
        if done == 0 and begin > first:
            self._forget(self.method.parameters())  # moments of no gradients
        again = done == self._looked_after  # accumulated batches share a step
        self._looked_after = done
        if again or self.calibrate_on is None:
            return
        with self.trainer.precision_plugin.forward_context():
            look_after(self.model, self.calibrate_on, done, steps, starts=first == 0, tell=self.print)

    def _enter(self, stage: Stage, first: int, steps: int) -> None:
        """Train by another stage from now on: its decay, fresh moments, and the method told."""
        self.stage = stage
        self._looked_after = -1
        optimizer = cast(torch.optim.Optimizer, self.optimizers(use_pl_optimizer=False))
        for kind, group in zip(self._kinds, optimizer.param_groups, strict=True):
            group["weight_decay"] = stage.decay(kind)
        if self.global_step == first and first > 0:  # and not in the middle of a stage that was resumed
            optimizer.state.clear()  # moments of another loss
        if stage.name:
            self.method.enter(stage.name)
            self.print(f"stage {stage.name}: {steps} steps")

    def _forget(self, parameters: Iterable[nn.Parameter]) -> None:
        """Drop the optimizer's moments of these."""
        optimizer = cast(torch.optim.Optimizer, self.optimizers(use_pl_optimizer=False))
        for parameter in parameters:
            optimizer.state.pop(parameter, None)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """By the norm, of the method's parameters apart: a threshold's gradient can be a hundred times the weights'."""
        own = {id(parameter) for parameter in self.method.parameters()}
        for name, group in (("grad_norm", False), ("method_grad_norm", True)):
            some = [p for p in self.parameters() if (id(p) in own) is group and p.grad is not None]
            if not some:
                continue
            if gradient_clip_val:  # None and 0 are off
                norm = torch.nn.utils.clip_grad_norm_(some, gradient_clip_val)
            else:
                norm = torch.nn.utils.get_total_norm([cast(Tensor, p.grad) for p in some])
            self.log(f"train/{name}", norm)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        begun = self.begun
        batch, added = self._corrupted(batch)
        taught = self._taught(batch) if self.distill > 0 else None
        with nullcontext() if begun else uncompressed(self.model):
            out = self(batch)
        trace = self.trace
        own = out.loss if self._loss is None else self._loss(out, batch)
        loss = own
        if taught is not None:
            away = self.task.distance(out, taught, batch, self.distill_temperature)
            loss = (1 - self.distill) * loss + self.distill * away
        loss = loss + added
        # what a stage does not train needs a gradient all the same: DDP waits for everyone's
        if self.method.stages or not begun:
            loss = loss + 0.0 * sum(parameter.sum() for parameter in self.method.parameters())
        self.log("train/loss", own.detach(), prog_bar=True)
        self._log_rates()
        if begun:
            loss = loss + self._penalties(trace)
        with torch.no_grad():
            self.log("train/keep", trace.keep_ratio().mean(), prog_bar=True)
            self.log("train/flops", trace.relative_flops().float(), prog_bar=True)
        return loss

    def _penalties(self, trace: Trace) -> Tensor:
        """The method's weighted penalties on this step, after its schedules have moved on; logged by name."""
        begin, steps = self.plan.of_method(self.global_step)
        self.method.step((self.global_step - begin) / steps, trace)
        self.log_dict({f"train/method/{name}": value for name, value in self.method.readings().items()})
        total, log = self.method.weighed(trace)
        self.log_dict({f"train/{name}": value for name, value in log.items()})
        return total

    def _log_rates(self) -> None:
        """The learning rates of this step: the weights', and the method's own."""
        optimizer = cast(torch.optim.Optimizer, self.optimizers(use_pl_optimizer=False))
        for kind, group in zip(self._kinds, optimizer.param_groups, strict=True):
            self.log("train/method_lr" if kind == "method" else "train/lr", group["lr"])

    def _corrupted(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | float]:
        """The batch as the task's companion, if it has one, hands it on, and the companion's loss."""
        return (batch, 0.0) if self.companion is None else self.task.corrupt(batch, self.companion)

    @torch.no_grad()
    def _taught(self, batch: dict[str, Tensor]) -> Any:
        """The teacher's output; ``None`` while there is nobody to learn from.

        The model's uncompressed self teaches in evaluation mode, as the teacher of ``init`` does: what a student shall
        imitate is what the dense model says, and not what it says with a random part of it missing. It runs before the
        student, whose trace is the one to be looked at; and as long as the student is uncompressed too, it teaches
        nothing.
        """
        inputs = inputs_of(batch)
        if self.distill_from == "init":
            return None if self._teacher[0] is None else self._teacher[0](**inputs)
        if not self.begun:
            return None
        self.model.eval()
        try:
            with uncompressed(self.model):
                return self.model(**inputs)
        finally:
            self.model.train()
            torch.clear_autocast_cache()  # torch < 2.11 would hand the student weights without a gradient

    def configure_optimizers(self) -> dict[str, Any]:
        method = {id(p) for p in self.method.parameters()}
        groups: dict[str, list[nn.Parameter]] = {kind: [] for kind in KINDS}
        # a companion may share some with the model; each is trained once
        for parameter in self.parameters():
            if not parameter.requires_grad:
                continue
            kind = "method" if id(parameter) in method else "decay" if parameter.dim() > 1 else "plain"
            groups[kind].append(parameter)
        self._kinds = [kind for kind in KINDS if groups[kind]]
        # fused: one pass over the weights; the default takes a sixth of a MiniLM step on a CPU for its embeddings.
        # Lightning cannot clip gradients under mixed precision with it.
        fused = self.device.type in ("cpu", "cuda") and self.trainer.precision == "32-true"
        # a learning rate of 1: the schedule gives the rate itself, because stages have rates of their own
        optimizer = AdamW([{"params": groups[kind], "lr": 1.0} for kind in self._kinds], fused=fused)
        scheduler = LambdaLR(optimizer, [partial(self.plan.rate, kind) for kind in self._kinds])
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # ---- evaluation ----

    def _evaluate(self, batch: dict[str, Tensor]) -> None:
        batch, _ = self._corrupted(batch)
        out = self(batch)
        self.spending.update(self.trace)
        labels = self.task.labelled(batch)
        if labels:
            self.task.update(self.metrics, out, batch)
            if self.counts is not None:
                self.task.update(self.counts, out, batch)
            self.eval_loss.update(out.loss, weight=labels)

    def _report(self, part: str) -> None:
        values = {**self.metrics.compute(), "loss": self.eval_loss.compute(), **self.spending.compute()}
        # the metrics are already synchronised over ranks by torchmetrics
        self.log_dict({f"{part}/{name}": value.float() for name, value in values.items()})
        self.log_dict({f"{part}/method/{name}": value for name, value in self.method.readings().items()})
        if self.counts is not None:
            self.classes = self.task.table(self.counts.compute().cpu())
            self.counts.reset()
        for metric in (self.metrics, self.eval_loss, self.spending):
            metric.reset()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        # while it is fitted, what is looked at is what was trained
        with uncompressed(self.model) if self.trainer.state.fn == "fit" and not self.has_run else nullcontext():
            self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self._report("test")
