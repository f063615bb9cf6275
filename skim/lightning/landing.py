"""End of a training: on its target, evaluated as it will run, and with the weights that did best there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytorch_lightning as pl
import torch
from rich.console import Console

from skim.calibration import Batches, calibrate, passes, spend
from skim.compression import execution, walk_of
from skim.lightning.assembly import part_of
from skim.lightning.callbacks.checkpoints import BestCheckpoint, Evaluation, LastCheckpoint
from skim.lightning.callbacks.progress import counted
from skim.lightning.checkpoint_io import write_checkpoint
from skim.lightning.module import TRAINED, SkimModule
from skim.options.words import budgets
from skim.published.files import tensors_of
from skim.results import Results
from tasks.base import Task


@dataclass(frozen=True)
class Landed:
    """Weights on their target, and what they come to there.

    Attributes:
        checkpoint: where they are from, ``best`` or ``last``.
        step: of the training.
        values: what Lightning logged of their evaluation.
        evaluation: the same in brief.
        calibration: relative FLOPs as training left them and after it, and the shift that did it; ``None`` without.
        classes: the same class by class, see :meth:`tasks.base.Task.table`.
        by_length: the same by the length of the inputs, see :meth:`skim.lightning.scores.ByLength.compute`.
    """

    checkpoint: str
    step: int
    values: dict[str, float]
    evaluation: Evaluation
    calibration: dict[str, float] | None
    classes: dict[str, Any] | None
    by_length: list[dict[str, float]]


def land(
    trainer: pl.Trainer,
    module: SkimModule,
    inputs: Batches | None,
    export: str,
    console: Console,
) -> list[Landed]:
    """Bring the model onto its target with the weights at the end of training, or with the best ones.

    Best in training is not best in the end: calibration moves decisions, and it is its outcome that is exported. So
    both are calibrated and evaluated, where they are not the same. The checkpoints are written again, with the shift.

    Args:
        trainer: after ``fit``.
        module: what it trained; holds the chosen weights afterwards.
        inputs: to calibrate on; ``None``: decisions stay as training left them.
        export: ``best``, or ``last`` whatever was best.
        console: to show what takes a while.

    Returns:
        What was evaluated, the chosen one first.
    """
    step, end, best = trainer.global_step, part_of(trainer, LastCheckpoint), part_of(trainer, BestCheckpoint)
    same = best is not None and best.best is not None and best.best.step == step
    calibration = calibrated(trainer, module, inputs, console)
    if calibration is not None:
        if end is not None:
            trainer.save_checkpoint(end.path, weights_only=False)
        if best is not None and same:
            trainer.save_checkpoint(best.path, weights_only=True)
    module.trained = {}
    last = landed("last", step, trainer, module, calibration)
    if export == "last" or best is None or best.best is None or same:
        return [last]
    kept = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
    progress = module.method.progress
    checkpoint = tensors_of(best.path)
    module.load_state_dict(checkpoint["state_dict"] | checkpoint.get(TRAINED, {}))
    module.method.progress = checkpoint["method_progress"]
    calibration = calibrated(trainer, module, inputs, console)
    if calibration is not None and trainer.is_global_zero:
        write_checkpoint(checkpoint | {"state_dict": module.state_dict(), TRAINED: module.trained}, best.path)
    found = landed("best", best.best.step, trainer, module, calibration)
    target = module.method.aims_at
    # the best is better, or training ends where it ended
    if last.evaluation.beats(found.evaluation, target) or not found.evaluation.beats(last.evaluation, target):
        module.load_state_dict(kept)
        module.method.progress = progress
        return [last, found]
    return [found, last]


def landed(
    name: str, step: int, trainer: pl.Trainer, module: SkimModule, calibration: dict[str, float] | None
) -> Landed:
    """Evaluate the present weights."""
    values = evaluated(trainer, module, datamodule=module.task)
    evaluation = Evaluation(step, values[f"val/{module.task.monitor}"], values["val/relative_flops"])
    scores = module.scores
    return Landed(name, step, values, evaluation, calibration, scores.classes, scores.by_length)


def calibrated(
    trainer: pl.Trainer, module: SkimModule, inputs: Batches | None, console: Console
) -> dict[str, float] | None:
    """Shift the decisions onto the target and say what that did; ``None`` without a target or a shift."""
    model = module.model
    method = walk_of(model).method
    if inputs is None or method.target is None or method.shift is None:
        return None
    if not trainer.is_global_zero:
        console = Console(quiet=True)
    what = f"calibration to {budgets(method.target)}"
    with trainer.precision_plugin.forward_context(), counted(console, what, passes(method.adapting)) as count:
        module.to(trainer.strategy.root_device)  # Lightning takes it off the device after each of its loops
        state = {name: tensor.clone() for name, tensor in module.named_buffers(remove_duplicate=False)}
        before = spend(model, inputs)
        after = calibrate(model, inputs, each=count)
    # what training has left goes into the checkpoints too: a run that is killed now does all of this once more
    now = module.state_dict()
    module.trained = {n: t for n, t in state.items() if n in now and not torch.equal(t, now[n])}
    return {"relative_flops_before": before, "relative_flops_after": after, "shift": float(method.shift)}


def evaluated(trainer: pl.Trainer, module: SkimModule, **data: Any) -> dict[str, float]:
    """Evaluate, unseen by the loggers: their curves are those of the training, and end with it.

    Args:
        trainer: to run it.
        module: to be evaluated.
        data: ``datamodule=`` or ``dataloaders=``.
    """
    loggers, trainer.loggers = trainer.loggers, []
    try:
        return dict(trainer.validate(module, verbose=False, **data)[0])
    finally:
        trainer.loggers = loggers


def elsewhere(trainer: pl.Trainer, module: SkimModule, task: Task) -> dict[str, float]:
    """Metrics on the task's other evaluation splits, such as ``accuracy_mismatched`` of MNLI."""
    found: dict[str, float] = {}
    for name, other in task.others().items():
        values = evaluated(trainer, module, dataloaders=other.val_dataloader())
        found |= {f"{metric}_{name}": score for metric, score in Results.metrics_of(values).items()}
    return found


def measure(results: Results, values: dict[str, float], trainer: pl.Trainer, module: SkimModule) -> None:
    """Evaluate elsewhere and in masked execution: that must agree with how it runs, and the report shows that it does.

    Args:
        results: to be filled.
        values: of the evaluation as the model will run.
        trainer: to run the others.
        module: with the weights to be exported.
    """
    task = module.task
    results.take(values, task.monitor)
    results.metrics |= elsewhere(trainer, module, task)
    results.notes += [note for part in ("train", "validation") for note in task.notes(part)]
    if module.method.name != "dense":
        with execution(module.model, "masked"):
            masked = evaluated(trainer, module, datamodule=task)
        results.masked_metrics = Results.metrics_of(masked)
