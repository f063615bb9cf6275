"""transformers' own Trainer: ``Trainer(model, callbacks=[SkimCallback()])`` trains a compressed model to its target.

A callback sees no loss, so for the length of a training the model's own forward returns one that carries the method's
penalties. Everything else hangs on the Trainer's events: stages and schedules on its steps, the method's learning rate
on the optimizer's step, readings on its logs. A checkpoint holds the method because ``save_pretrained`` of a compressed
model does; progress and stage follow from the Trainer's global step, so a run that goes on needs nothing more.
"""

from __future__ import annotations

import inspect
import warnings
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from skim.beside import keep_method
from skim.calibration import TOLERANCE, calibrate, look_after
from skim.compression import walk_of
from skim.engine.adapters import unwrapped
from skim.engine.inputs import inputs_of
from skim.engine.trace import Trace
from skim.engine.walk import Walk
from skim.errors import SkimError, unknown
from skim.integrations.rates import OwnRate
from skim.methods import Method
from skim.stages import Plan, Stage

ROWS = 512  # inputs to calibrate on


class SkimCallback(TrainerCallback):
    """Callback with which transformers' Trainer trains a compressed model.

    Args:
        stages: how long each stage of the method takes, as shares of any sum, ``{"soft": 1, "hard": 2}``; ``None``:
            all that the method has, equally long.
        method_lr: peak learning rate of the method's own parameters, which follows the Trainer's schedule; a number,
            or one for each stage; 0 freezes them. ``None``: what the method is trained with elsewhere, or what the
            optimizer says if it has a group of its own for them. Of a chain, one of all these for each member by its
            label, ``{"ltp": {"soft": 1e-5, "hard": 0}, "transkimmer": 1e-3}``, or one for all.
        calibrate_on: batches of inputs on which decisions are set to ``method.target``, at the end and in stages with
            hard decisions; labels are not looked at. ``None``: 512 rows of the training data, evenly spaced; of data
            that come as a stream, those seen last.
    """

    def __init__(
        self,
        stages: Mapping[str, float] | None = None,
        method_lr: float | Mapping[str, Any] | None = None,
        calibrate_on: Iterable[Mapping[str, Any]] | None = None,
    ) -> None:
        self.stages, self.method_lr, self.calibrate_on = stages, method_lr, calibrate_on
        self.walk: Walk | None = None
        self._due: Tensor | None = None  # penalties of a forward without a loss, which somebody else has to add
        self._spent: list[Tensor] = []  # in evaluation: FLOPs of this model and of the dense one, per batch
        self._readings: dict[str, Any] = {}

    @property
    def method(self) -> Method:
        """The method that is trained."""
        assert self.walk is not None  # as of on_train_begin
        return self.walk.method

    def penalty(self) -> Tensor:
        """The weighted penalties of the last forward, a scalar, to be added to a loss that is computed outside."""
        if self._due is None:
            raise SkimError(
                "There is no penalty to add: the model was given labels, so its own loss has it, or it has not been "
                "run in training."
            )
        due, self._due = self._due, None
        return due

    # ---- the training ----

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        model = unwrapped(kwargs["model"])
        self.walk = walk = walk_of(model)
        self._check(args)
        if self.method.table is not None:
            raise SkimError(
                f"method={self.method.name} has a range of budgets, for which each step takes several forwards.\n"
                "Train it with train.py, or give it one target here."
            )
        self.step, self.stage, self.looked_after = state.global_step, "", -1
        self.plan = self._plan(state.max_steps)
        self.rates = {
            label: OwnRate(list(part.parameters()), kwargs["optimizer"], args.learning_rate)
            for label, part in self.method.by_label.items()
        }
        self.method.stage_shares = self.plan.shares
        self.optimizer = kwargs["optimizer"]
        self.seen: deque[dict[str, Tensor]] = deque()
        self.given: list[dict[str, Any]] | None = None
        if self.calibrate_on is not None:
            self.given = [dict(batch) for batch in self.calibrate_on]
        elif self.method.target is not None:  # nothing is calibrated without one
            self.given = rows_of(kwargs.get("train_dataloader"))
        if self.step:  # it goes on: decisions depend on the progress as of the last step
            begin, steps = self.plan.of_method(self.step - 1)
            self.method.progress = (self.step - 1 - begin) / steps
        self._enter()
        keep_method(model)  # if it became a PEFT model after it was compressed
        self._forward = vars(walk.model).get("forward")
        vars(walk.model)["forward"] = WithPenalties(self, walk, walk.model.forward)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.step = state.global_step
        self._enter()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._check_added()
        for rate in self.rates.values():
            rate.before_step()

    def on_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        for label, rate in self.rates.items():
            rate.after_step(self._rate_now(label))

    def on_substep_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._check_added()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        assert self.walk is not None
        whole = vars(self.walk.model)
        if isinstance(whole.get("forward"), WithPenalties):
            del whole["forward"]
            if self._forward is not None:
                whole["forward"] = self._forward
        if self.method.target is not None and self.method.shift is not None and self._batches():
            target, spent = self.method.aims_at, calibrate(self.walk.model, self._batches())
            self._agree()
            if abs(spent - target) > TOLERANCE:
                warnings.warn(
                    f"target missed: asked for relative FLOPs {target:g}, ended at {spent:.3f}. Train longer, change "
                    "method_lr, or start from a trained dense model.",
                    stacklevel=2,
                )

    def _check(self, args: TrainingArguments) -> None:
        if args.n_gpu > 1:
            raise SkimError(
                f"Trainer would run {args.n_gpu} copies of the model in threads of one process (DataParallel), and a "
                "method is stepped by what one forward did.\nStart one process per GPU: torchrun --nproc-per-node "
                f"{args.n_gpu} ..., or choose one: CUDA_VISIBLE_DEVICES=0."
            )
        if args.fsdp or args.deepspeed:
            raise SkimError(
                "SkimCallback has not been made for parameters that are sharded (fsdp, deepspeed): a method reads and "
                "sets its own.\nUse DDP (torchrun), or skim's own training."
            )

        known = [*filter(None, self.method.by_label), *(self.method.stages or ("",))]
        for name in self.method_lr if isinstance(self.method_lr, Mapping) else ():
            if name not in known:
                raise unknown("stage or member in method_lr", name, known)

    def _plan(self, steps: int) -> Plan:
        known = self.method.stages or ("",)
        asked = dict.fromkeys(known, 1.0) | dict(self.method.stage_shares) if self.stages is None else dict(self.stages)
        for name, share in asked.items():
            if name not in known:
                raise unknown("stage of the method", name, known)
            if not share > 0:
                raise SkimError(f"stages={{'{name}': {share}}} is not a share of the training; leave the stage out.")
        plan = Plan([Stage(name, epochs=asked[name]) for name in known if name in asked], steps)
        for stage, begin, end in zip(plan.stages, plan.bounds, plan.bounds[1:], strict=False):
            if begin == end:
                raise SkimError(f"Stage {stage.name} gets none of the {steps} steps; train longer, or leave it out.")
        return plan

    def _enter(self) -> None:
        """Train by the stage of the present step; moments of another loss are dropped where it begins."""
        stage, first, _ = self.plan.at(self.step)
        if not stage.name or stage.name == self.stage:
            return
        self.stage = stage.name
        self.method.enter(stage.name)
        if self.step == first and first > 0:
            self.optimizer.state.clear()

    def _rate_now(self, label: str) -> float | None:
        """Peak learning rate in this stage of the method, or a chain's member; ``None``: what the optimizer has."""
        asked, part = self.method_lr, self.method.by_label[label]
        if part.stages and self.stage not in part.stages:
            return 0.0
        if isinstance(asked, Mapping) and not set(asked).isdisjoint(self.method.by_label):
            asked = asked.get(label)
        if asked is None and self.rates[label].has_group:
            return None
        if isinstance(asked, Mapping):
            asked = asked.get(self.stage)
        return part.peak_rate(self.stage) if asked is None else float(asked)

    def _batches(self) -> list[Any]:
        return list(self.seen) if self.given is None else self.given

    def _agree(self) -> None:
        """Ranks have seen different inputs; what rank 0 found holds for all."""
        if self.method.shift is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.broadcast(self.method.shift, 0)

    def before_forward(self, inputs: Mapping[str, Any]) -> None:
        """Look after the budget once in a step; of a stream, remember the inputs."""
        assert self.walk is not None
        if self.given is None and self.method.target is not None:
            kept = {name: value.detach() for name, value in inputs_of(inputs).items() if isinstance(value, Tensor)}
            self.seen.append(kept)
            while len(self.seen) > 1 and sum(len(next(iter(batch.values()))) for batch in self.seen) > ROWS:
                self.seen.popleft()
        begin, steps = self.plan.of_method(self.step)
        if self.looked_after != self.step:
            self.looked_after = self.step
            look_after(self.walk.model, self._batches(), self.step - begin, steps, starts=begin == 0)
            self._agree()

    def after_forward(self, trace: Trace) -> Tensor:
        """Move the method's schedules on, and return its weighted penalties on this forward, a scalar."""
        method = self.method
        begin, steps = self.plan.of_method(self.step)
        method.step((self.step - begin) / steps, trace)
        total, log = method.weighed(trace)
        self._readings = {"relative_flops": trace.relative_flops().detach(), **log}
        self._readings |= {f"method/{name}": value for name, value in method.readings().items()}
        if method.stages:  # what a stage does not train needs a gradient all the same: DDP waits for everyone's
            total = total + 0.0 * sum(p.sum() for p in method.parameters() if p.requires_grad)
        return total

    def _check_added(self) -> None:
        if self._due is not None:
            raise SkimError(
                "The loss was computed outside the model (label_smoothing_factor, compute_loss_func, or your own "
                "compute_loss), so the method's penalties are not in it.\nLet the model compute it from labels, or add "
                "them yourself: compute_loss_func=lambda out, labels, **_: my_loss(out, labels) + callback.penalty()."
            )

    # ---- what is logged ----

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        trace = walk_of(kwargs["model"]).trace
        self._spent.append(torch.stack([trace.flops().sum(), trace.dense_flops.sum()]).detach())

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        logs: dict[str, Any] = kwargs["logs"]
        more: dict[str, float] = {}
        evaluated = [name.removesuffix("_runtime") for name in logs if name.endswith("_runtime")]
        if "loss" in logs:
            more = {name: float(value) for name, value in self._readings.items()}
        elif self._spent and evaluated:
            more = {f"{evaluated[0]}_relative_flops": self._relative_flops()}
        logs |= more
        if state.log_history:
            state.log_history[-1] |= more

    def on_predict(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, metrics: Any, **kwargs: Any
    ) -> None:
        evaluated = [name.removesuffix("_runtime") for name in metrics if name.endswith("_runtime")]
        if self._spent and evaluated:
            metrics[f"{evaluated[0]}_relative_flops"] = self._relative_flops()

    def _relative_flops(self) -> float:
        """Relative FLOPs of all batches evaluated since the last call, on every rank: a ratio of totals."""
        spent = torch.stack(self._spent).sum(0)
        self._spent = []
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.all_reduce(spent)
        return float(spent[0] / spent[1])


def rows_of(loader: Any) -> list[dict[str, Any]] | None:
    """Batches of rows of a loader's data, evenly spaced and the same in every run; ``None`` of a stream.

    Args:
        loader: the Trainer's, over training data.
    """
    data: Any = getattr(loader, "dataset", None)
    collate = getattr(loader, "collate_fn", None)
    if collate is None or not (hasattr(data, "__getitem__") and hasattr(data, "__len__")):
        return None
    rows = range(0, len(data), max(len(data) // ROWS, 1))[:ROWS]
    size = getattr(loader, "total_batch_size", None) or loader.batch_size or 1
    with torch.random.fork_rng():  # collators may draw
        return [dict(collate([data[i] for i in rows[a : a + size]])) for a in range(0, len(rows), size)]


class WithPenalties:
    """The forward of a whole model while a Trainer trains it: its loss has the method's penalties in it.

    Where the Trainer says how many labels all batches of its step have, it counts on the model to divide by that, and
    not every head does. So here a head always takes the mean over its batch, and its share of the step's labels weighs
    it, penalties included.

    Args:
        callback: knows the step, and takes the readings.
        walk: of the model's encoder.
        forward: what the model's forward was.
    """

    def __init__(self, callback: SkimCallback, walk: Walk, forward: Any) -> None:
        self.callback, self.walk, self.forward = callback, walk, forward
        self.__signature__ = inspect.signature(type(walk.model).forward.__get__(walk.model))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not (self.walk.model.training and torch.is_grad_enabled()):
            return self.forward(*args, **kwargs)
        labelled = kwargs.pop("num_items_in_batch", None)
        given = self.__signature__.bind(*args, **kwargs).arguments
        self.callback.before_forward({**given, **given.get("kwargs", {})})
        output = self.forward(*args, **kwargs)
        penalty = self.callback.after_forward(self.walk.trace)
        loss = output.get("loss") if isinstance(output, dict) else output[0]
        if loss is None or loss.dim():
            self.callback._due = penalty
            return output
        labels = given.get("labels")
        loss = loss + penalty
        if labelled is not None and isinstance(labels, Tensor):
            loss = loss * (labels.ne(-100).sum() / labelled)
        if isinstance(output, dict):
            output["loss"] = loss
            return output
        return (loss, *output[1:])
