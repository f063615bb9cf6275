"""Callbacks that keep the last checkpoint and the best one, and that stop a training early."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from lightning_fabric.utilities.apply_func import convert_tensors_to_scalars
from pytorch_lightning.callbacks import Callback, ModelCheckpoint

from skim.calibration import TOLERANCE
from skim.errors import SkimError
from skim.files import replacing, whole
from skim.published.files import tensors_of
from skim.resume import LAST, PREVIOUS


@dataclass(frozen=True)
class Evaluation:
    """Outcome of evaluating the weights at a step.

    Attributes:
        step: optimizer steps behind them.
        metric: the task's, the higher the better; NaN is below all.
        relative_flops: what they spent.
    """

    step: int
    metric: float
    relative_flops: float

    def at_budget(self, target: float | None) -> bool:
        """Tell whether it spent the target, within the tolerance; without a target, always."""
        return target is None or abs(self.relative_flops - target) <= TOLERANCE

    def beats(self, best: Evaluation | None, target: float | None) -> bool:
        """Tell whether its weights are better than the best ones before it: by the metric, at equal cost.

        Early in training a model spends more and answers better, so the metric alone would choose the one that has
        saved nothing yet. What is off the target only counts as long as nothing is on it, and then by how near it is.
        Without a target the budget is what training has come to: the best of before is given up with the cost it had.

        Args:
            best: of an earlier step; ``None``: there is none.
            target: relative FLOPs asked of the method, or ``None``.
        """
        if best is None:
            return True
        if self.at_budget(target) != best.at_budget(target):
            return self.at_budget(target)
        if target is not None and not self.at_budget(target):
            return abs(self.relative_flops - target) < abs(best.relative_flops - target)
        if target is None and abs(self.relative_flops - best.relative_flops) > TOLERANCE:
            return True
        return not math.isnan(self.metric) and not self.metric <= best.metric


class BestCheckpoint(Callback):
    """``best.ckpt``: the weights of the best evaluation in the last stage, once the method has begun; no optimizer.

    Args:
        folder: where to.

    Attributes:
        best: the evaluation that it holds, ``None`` before there is one.
        latest: the last evaluation, ``None`` if it was too early to count.
        lost: the step of a best checkpoint that the run before had, and that is not there any more.
    """

    def __init__(self, folder: str | Path) -> None:
        self.path = Path(folder) / "best.ckpt"
        self.best: Evaluation | None = None
        self.latest: Evaluation | None = None
        self.lost: int | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn != "fit":
            return
        module, values = cast(Any, pl_module), trainer.callback_metrics
        self.latest = None
        if module.stage is not module.stages[-1] or not module.has_run:
            return
        metric, spent = (float(values[f"val/{name}"]) for name in (module.task.monitor, "relative_flops"))
        self.latest = Evaluation(trainer.global_step, metric, spent)
        # whoever saves waits for all ranks, so they shall be of one mind
        if trainer.strategy.broadcast(self.latest.beats(self.best, module.method.aims_at)):
            if trainer.is_global_zero:
                self.keep()
            self.best = self.latest
            trainer.save_checkpoint(self.path, weights_only=True)

    def keep(self) -> None:
        """Let the best so far live on if a checkpoint to go on from speaks of it; whoever goes on needs it."""
        folder, spoken = self.path.parent, spoken_of(self.path.parent, self.state_key)
        for path in folder.glob(earlier("*")):
            if path.name not in map(earlier, spoken):
                path.unlink()
        if self.best is not None and self.best.step in spoken and holds(self.path, self.best.step):
            copied(self.path, folder / earlier(self.best.step))

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Bring the file along that the resumed checkpoint speaks of; without it, the best is yet to come."""
        if self.best is not None and trainer.is_global_zero and not holds(self.path, self.best.step):
            before = Path(str(trainer.ckpt_path)).parent
            names = earlier(self.best.step), self.path.name
            found = [before / name for name in names if holds(before / name, self.best.step)]
            if found:
                copied(found[0], self.path)
        trainer.strategy.barrier()
        if self.best is not None and not trainer.strategy.broadcast(holds(self.path, self.best.step)):
            self.lost, self.best = self.best.step, None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best and asdict(self.best)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = state_dict["best"] and Evaluation(**state_dict["best"])


def earlier(step: object) -> str:
    """Name the best checkpoint of before, while one to go on from speaks of it."""
    return f"best-{step}.ckpt"


def copied(one: Path, other: Path) -> None:
    """Copy a checkpoint, at once or not at all; within a file system that has links, nothing is written."""
    with replacing(other) as part:
        try:
            os.link(one, part)
        except OSError:
            shutil.copy(one, part)


def holds(path: Path, step: int) -> bool:
    """Tell whether a file is the checkpoint of that step, and as it was written."""
    return whole(path) and tensors_of(path, mmap=True)["global_step"] == step


def spoken_of(folder: Path, key: str) -> set[int]:
    """Steps of the best evaluations that the checkpoints to go on from remember.

    Args:
        folder: of the checkpoints.
        key: under which they hold the state of :class:`BestCheckpoint`.
    """
    steps = set()
    for path in (folder / LAST.name, folder / PREVIOUS.name):
        with contextlib.suppress(SkimError):  # nobody goes on from one that is damaged
            best = tensors_of(path, mmap=True)["callbacks"].get(key, {})["best"] if path.is_file() else None
            steps |= {best["step"]} if best else set()
    return steps


class LastStageStopping(Callback):
    """Early stopping by the evaluations that may become the best: nothing before them, and nothing off the target.

    Args:
        patience: evaluations in a row without a new best one, after which training ends; ``None``: it never does.

    Attributes:
        step: at which it ended training, of ``of``; ``None`` if it did not.
    """

    def __init__(self, patience: int | None = None) -> None:
        self.patience = patience
        self.best: BestCheckpoint | None = None  # which judges them
        self.waited = 0
        self.step: int | None = None
        self.of = 0

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Find the callback that judges evaluations.

        Raises:
            SkimError: it was switched off.
        """
        self.best = next((one for one in trainer.callbacks if isinstance(one, BestCheckpoint)), None)  # type: ignore[attr-defined]
        if self.best is None and self.patience is not None:
            raise SkimError(
                f"callbacks.patience={self.patience} goes by the evaluations of callbacks.best_checkpoint, which is "
                "null.\nLeave one of the two away."
            )

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module = cast(Any, pl_module)
        if trainer.state.fn != "fit" or self.patience is None or self.best is None or self.best.latest is None:
            return
        latest = self.best.latest
        if latest is self.best.best:
            self.waited = 0
        elif latest.at_budget(module.method.aims_at):
            self.waited += 1
        if self.waited >= self.patience and trainer.global_step < module.plan.steps:  # at the last step, nothing is cut
            self.step, self.of = trainer.global_step, module.plan.steps
            trainer.should_stop = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """End a training that goes on from where it had been ended, unless there is more to wait for now."""
        ends = self.patience is not None and self.waited >= self.patience and self.of == cast(Any, pl_module).plan.steps
        if self.step is not None and ends:
            trainer.should_stop = True
        else:
            self.step = None

    def state_dict(self) -> dict[str, Any]:
        return {"waited": self.waited, "step": self.step, "of": self.of}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.waited = state_dict["waited"]
        self.step, self.of = state_dict.get("step"), state_dict.get("of", 0)


class LastCheckpoint(ModelCheckpoint):
    """``last.ckpt`` at every evaluation and at the end; ``save_last`` without a best would write it at the end only.

    Args:
        folder: where to.
        every: steps after which it is written in between; ``None`` for never.

    Attributes:
        put_off: one is due as soon as the batches of a step are through, and its evaluation.
        row: what is logged of the step behind which a checkpoint is written, and not before.
    """

    def __init__(self, folder: str | Path, every: int | None = None) -> None:
        super().__init__(folder, filename="last", enable_version_counter=False)
        self.path = Path(folder) / "last.ckpt"
        self.every = every
        self._saved = 0  # the step of the last one in between
        self.put_off = False
        self.row: dict[str, Any] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        step, loop = trainer.global_step, trainer.fit_loop
        due = self.put_off or (self.every is not None and step % self.every == 0 and step != self._saved)
        # whoever goes on from before an evaluation that is due leaves it out: that one writes it when it is done
        evaluates = loop.epoch_loop._should_check_val_fx(cast(Any, loop._data_fetcher))
        if due and not evaluates and not loop._should_accumulate():
            self._saved, self.put_off = step, False
            self.row = pending(trainer)
            trainer.save_checkpoint(self.path)
            self.row = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # between batches that share a step, gradients have gathered, and checkpoints hold none: at the step, then
        if trainer.state.fn == "fit" and trainer.fit_loop._should_accumulate():
            self.put_off = True
        else:
            super().on_validation_end(trainer, pl_module)
            self.put_off = False

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        trainer.save_checkpoint(self.path)  # max_steps may end a run between two evaluations

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "row": self.row}


def pending(trainer: pl.Trainer) -> dict[str, Any]:
    """The row of the log that Lightning writes next, at the end of a step; empty where it writes none."""
    connector = trainer._logger_connector
    if not connector.should_update_logs or not (values := convert_tensors_to_scalars(connector.metrics["log"])):
        return {}
    step = trainer.fit_loop.epoch_loop._batches_that_stepped
    return {"epoch": trainer.current_epoch, **values, "step": step}
