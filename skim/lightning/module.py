"""Training a compressed model: the task's loss, plus the method's penalties, plus a teacher's if there is one.

Stages, budget, signals and exact resume are callbacks that the module brings along
(:meth:`SkimModule.configure_callbacks`).
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.optim import AdamW

from skim.budgets import spending
from skim.calibration import Batches
from skim.compression import accepted, keeping_states, uncompressed, walk_of
from skim.engine.noise import belonging
from skim.engine.ranks import joined, weighed
from skim.engine.trace import Trace
from skim.errors import SkimError
from skim.lightning.callbacks.average import Average
from skim.lightning.callbacks.budget import Budget
from skim.lightning.callbacks.finite import Finite
from skim.lightning.callbacks.memory import TrimsHeap
from skim.lightning.callbacks.resume import ExactResume
from skim.lightning.callbacks.signals import EndsOnSignal
from skim.lightning.callbacks.stages import Stages, optimizer_of
from skim.lightning.distill import Distiller, Lesson
from skim.lightning.optim import Optimizer, Scheduler, grouped, linear, optimized, own_kinds, scheduled
from skim.lightning.sandwich import INPLACE, PLACES, drawn, taught
from skim.lightning.scores import Scores
from skim.saliency import saliency
from skim.stages import Plan, Stage, of_method
from tasks.base import Task
from tasks.losses import Loss

TRAINED = "trained"  # in a checkpoint: see SkimModule.trained


class SkimModule(pl.LightningModule):
    """One compressed model on one task. Decisions are relaxed in training, hard and deterministic in evaluation.

    Args:
        model: returned by ``skim.compress``.
        task: gives the metrics and turns logits into predictions.
        stages: how to train, one after the other.
        method_after: share of training in which the model trains, and is validated, as the plain dense backbone, before
            the method begins.
        optimizer: makes an optimizer of parameter groups, see :func:`skim.lightning.optim.optimized`.
        scheduler: makes the schedule of its learning rates, see :func:`skim.lightning.optim.scheduled`.
        distiller: to learn from a teacher as well.
        calibrate_on: inputs on which a method with a target is set to it, before a stage whose decisions are hard.
        formulas: names of published FLOPs formulas to report beside the true count, see :data:`skim.flops.FORMULAS`.
        companion: from ``task.companion``, trained beside the model.
        loss: from ``task.training_loss``, in place of the loss that the model computes.
        between: budgets that each step draws between the smallest and the largest, of a method that has a range.
        average: decay of a moving average of the weights that is evaluated in their place, and what is left in the end;
            ``None``: the weights themselves.
        nonfinite: what happens at a loss or gradient that is NaN or infinite: ``stop`` ends training, ``skip`` leaves
            the step out.

    Attributes:
        finite: sees to that.
        stage: the present one; ``None`` before training.
        loss: the task's in the last step of training, detached, for those who show it; ``None`` before.
        trained: by name, what calibration has changed at the end, as training has left it: to train on from.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        stages: Sequence[Stage] = (Stage(),),
        method_after: float = 0.0,
        optimizer: Optimizer = AdamW,
        scheduler: Scheduler = linear,
        distiller: Distiller | None = None,
        calibrate_on: Batches | None = None,
        formulas: Sequence[str] = (),
        companion: nn.Module | None = None,
        loss: Loss | None = None,
        between: int = 1,
        average: float | None = None,
        nonfinite: Literal["stop", "skip"] = "stop",
    ) -> None:
        super().__init__()
        self.model, self.task, self.companion = model, task, companion
        self.stages, self.method_after = tuple(stages), method_after
        self.stage: Stage | None = None
        self.loss: Tensor | None = None
        self.trained: dict[str, Tensor] = {}
        self.optimizer, self.scheduler = optimizer, scheduler
        self.distiller, self.between = distiller, between
        self.scores = Scores(task, walk_of(model), formulas)
        self.finite = Finite(nonfinite)
        self._callbacks: list[Callback] = [ExactResume(), EndsOnSignal(), Stages(), self.finite, TrimsHeap()]
        if calibrate_on is not None:
            self._callbacks.append(Budget(calibrate_on))
        if average is not None:
            self._callbacks.append(Average(average))
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
        """Trace of the last forward."""
        return walk_of(self.model).trace

    @property
    def plan(self) -> Plan:
        """The stages over the steps of this run."""
        return Plan(self.stages, max(int(self.trainer.estimated_stepping_batches), 1), self.method_after)

    @property
    def begun(self) -> bool:
        """True if the method takes part in the present step."""
        return self.global_step >= self.plan.begin

    @property
    def has_run(self) -> bool:
        """True if the method has taken part in a step of training; from the start, if nothing precedes it."""
        begin = self.plan.begin
        return begin == 0 or self.global_step > begin

    @property
    def written(self) -> bool:
        """True if this step's numbers go to the log: of others, operations and waits for the device are spared."""
        # as Lightning's own callbacks ask; without a trainer there is no log
        return self._trainer is not None and self._trainer._logger_connector.should_update_logs

    def forward(self, batch: dict[str, Tensor]) -> Any:
        return self.model(**accepted(self.model, batch))

    def configure_callbacks(self) -> list[Callback]:
        return self._callbacks

    def configure_optimizers(self) -> dict[str, Any]:
        groups = grouped(self.parameters(), self.method, self.stages[0])
        # where a scaler stretches gradients (16-mixed), a fused optimizer shrinks them after they have been clipped
        unscaled = self.trainer.precision in ("32-true", "bf16-mixed")
        fused = self.device.type in ("cpu", "cuda") and unscaled
        optimizer = optimized(self.optimizer, groups, fused)
        schedule = scheduled(self.scheduler, optimizer, self.plan)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    # ---- training ----

    def on_fit_start(self) -> None:
        # from_pretrained returns a model in eval mode and Lightning keeps it there: no dropout, no relaxed decisions
        self.model.train()
        if self.distiller is not None:
            self.distiller.to(self.device)

    def on_train_start(self) -> None:
        # a training that is shorter than the interval of the log would leave no line
        self.trainer.log_every_n_steps = min(self.trainer.log_every_n_steps, self.plan.steps)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.finite.check(self)
        checkpoint["method_progress"] = self.method.progress  # the next forward decides by it
        if self.trained:
            checkpoint[TRAINED] = self.trained

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.method.progress = checkpoint["method_progress"]
        for state in (checkpoint["state_dict"], checkpoint.get("current_model_state", {})):
            state.update(checkpoint.get(TRAINED, {}))

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        # of the step as a whole, however many processes share it
        place = (self.task.seed, self.current_epoch, batch_idx)
        with joined(), belonging(batch.get("row"), *place):
            return self._trained(batch, batch_idx)

    def _trained(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """The loss of one batch."""
        begun = self.begun
        batch, added = self._corrupted(batch)
        method, teacher = self.method, self.distiller
        sandwiched = begun and method.table is not None and not method.trains_dense
        states = teacher is not None and teacher.hidden > 0
        salient = saliency(self.model, batch) if begun and method.reads_saliency else None  # of all forwards of a step
        with nullcontext() if begun else uncompressed(self.model), keeping_states(self.model, states):
            if sandwiched:
                loss, own = self._sandwiched(batch, salient, batch_idx)
            else:
                lesson = None if teacher is None else teacher.teach(self.model, batch, begun)
                loss, own, _ = self._passed(batch, salient, lesson)
        self.loss = own
        if added is not None:
            loss = loss + added
        # what a stage, or a forward, does not train needs a gradient all the same: DDP waits for everyone's
        if method.stages or sandwiched or not begun:
            loss = loss + 0.0 * sum(parameter.sum() for parameter in method.parameters())
        if self.written:
            self.log("train/loss", self.loss, prog_bar=True)
            if self.finite.then == "skip":
                self.log("train/steps_skipped", float(len(self.finite.skipped)))
            self.log_dict({curve("lr", group["kind"]): group["lr"] for group in optimizer_of(self).param_groups})
        return loss

    def _passed(
        self, batch: dict[str, Tensor], salient: Tensor | None, lesson: Lesson | None, place: str = ""
    ) -> tuple[Tensor, Tensor, Any]:
        """One forward: its loss, penalties included; the task's alone, detached; and its output.

        Args:
            batch: of the step.
            salient: its tokens' saliency, if the method reads it.
            lesson: a teacher's, if there is one.
            place: of the forward among those of a step, for the log; empty for the only one.
        """
        out = self(batch)
        trace = self.trace
        trace.saliency = salient
        own = loss = self._of_task(out, batch)
        distances: dict[str, Tensor] = {}
        if lesson is not None:
            loss, distances = (self.distiller or INPLACE).mix(loss, self.task, out, trace, lesson, batch)
        if self.begun and not self.method.idle:
            loss = loss + self._penalties(trace, place)
        if self.written:
            self.log_dict({f"train/{name}{place}": distance for name, distance in distances.items()})
            with torch.no_grad():
                self.log(f"train/keep{place}", trace.keep_ratio().mean())
                self.log(f"train/flops{place}", trace.relative_flops().float())
        return loss, own.detach(), out

    def _sandwiched(self, batch: dict[str, Tensor], salient: Tensor | None, batch_idx: int) -> tuple[Tensor, Tensor]:
        """The losses of a batch, means over the budgets of this step, see :mod:`skim.lightning.sandwich`."""
        method, teacher = self.method, self.distiller
        lesson = teacher.teach(self.model, batch, True) if teacher is not None and teacher.teacher is not None else None
        table, losses, owns = method.table, [], []
        budgets = drawn(table.low, table.high, self.between, self.task.seed, self.current_epoch, batch_idx)
        with spending(method):
            for k, budget in enumerate(budgets):
                method.meet(budget)
                loss, own, out = self._passed(batch, salient, lesson, PLACES[min(k, 2)])
                lesson = taught(out, self.trace) if lesson is None else lesson
                losses.append(loss)
                owns.append(own)
        return torch.stack(losses).mean(), torch.stack(owns).mean()

    def _of_task(self, out: Any, batch: dict[str, Tensor]) -> Tensor:
        """The task's loss: the mean over all labels of the step."""
        made = self._loss
        if made is None:
            return weighed(self.task.loss_of(out, batch), lambda: self.task.labelled(batch))
        return weighed(made(out, batch), lambda: made.weight(batch, self.task.labelled(batch)))

    def _penalties(self, trace: Trace, place: str) -> Tensor:
        """The method's weighted penalties on this step, after its schedules have moved on; logged by name."""
        begin, steps = self.plan.of_method(self.global_step)
        self.method.step((self.global_step - begin) / steps, trace)
        total, log = self.method.weighed(trace)
        if self.written:
            self.log_dict({f"train/method/{name}{place}": value for name, value in self.method.readings().items()})
            self.log_dict({f"train/{name}{place}": value for name, value in log.items()})
        return total

    def _corrupted(self, batch: dict[str, Tensor]) -> tuple[dict[str, Tensor], Tensor | None]:
        """The batch as the task's companion, if it has one, hands it on, and the companion's loss."""
        return (batch, None) if self.companion is None else self.task.corrupt(batch, self.companion)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the method's gradients apart, and each chain member's: thresholds' can be a hundred times weights'."""
        own, norms = own_kinds(self.method), []
        for kind in ("", *dict.fromkeys(own.values())):
            some = [p for p in self.parameters() if own.get(p, "") == kind and p.grad is not None]
            if not some:
                continue
            norm = nn.utils.get_total_norm([p.grad for p in some if p.grad is not None])
            norms.append(norm)
            if self.written:
                self.log(curve("grad_norm", kind), norm)
            if gradient_clip_val and gradient_clip_algorithm == "value":  # None and 0 are off
                nn.utils.clip_grad_value_(some, gradient_clip_val)
            elif gradient_clip_val:
                nn.utils.clip_grads_with_norm_(some, gradient_clip_val, norm)
        if self._trainer is not None:
            self.finite.judge(self.trainer, self, norms, optimizer_of(self))

    # ---- evaluation ----

    def _evaluate(self, batch: dict[str, Tensor]) -> None:
        batch, _ = self._corrupted(batch)
        self.scores.update(self(batch), batch, self.trace)

    def _report(self, part: str) -> None:
        # synchronised over ranks by torchmetrics
        self.log_dict({f"{part}/{name}": value for name, value in self.scores.compute().items()})
        self.log_dict({f"{part}/method/{name}": value for name, value in self.method.readings().items()})
        self.scores.reset()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        # within a fit, a model is evaluated as it was trained
        with uncompressed(self.model) if self.trainer.state.fn == "fit" and not self.has_run else nullcontext():
            self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self._report("test")


def curve(what: str, kind: str) -> str:
    """The name under which a number of the parameters of a kind is logged: ``train/method_lr/ltp`` of a member's."""
    if not of_method(kind):
        return f"train/{what}"
    return "/".join(filter(None, (f"train/method_{what}", kind.partition(".")[2])))
