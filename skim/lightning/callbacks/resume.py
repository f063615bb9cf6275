"""Exact resume: a run that goes on from a checkpoint is, to the last bit, the run that was not interrupted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from skim.engine.ranks import everywhere
from skim.errors import SkimError
from skim.files import whole
from skim.published.files import tensors_of
from skim.stages import check_bounds


def check_resumable(path: Path) -> None:
    """Refuse a file that training cannot go on from.

    Raises:
        SkimError: it cannot be read, or lacks the state of an optimizer, as ``best.ckpt`` does.
    """
    checkpoint = tensors_of(path, mmap=True)
    if not whole(path):
        raise SkimError(
            f"resume: {path} is cut or damaged: its checksum differs.\n"
            "Name the run's folder, in which the one before it may be good, or start anew."
        )
    if not isinstance(checkpoint, dict) or "optimizer_states" not in checkpoint:
        raise SkimError(
            f"resume: {path} holds weights and no state of an optimizer to train them on with.\n"
            "Use last.ckpt beside it, or start anew from its run: init_from=<run>."
        )


def reseed(seed: int, device: torch.device) -> None:
    """Seed what a step draws from: the CPU's generator, and the device's.

    ``torch.manual_seed`` seeds those of every kind of device; for one that was never used it writes down the stack of
    callers first, which takes longer than all else that a framework does in a step.
    """
    torch.default_generator.manual_seed(seed)
    if device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


def position(checkpoint: dict[str, Any]) -> tuple[int, int]:
    """Epoch and batch at which the training of a checkpoint goes on."""
    fit = checkpoint["loops"]["fit_loop"]
    batches, epochs = fit["epoch_loop.batch_progress"], fit["epoch_progress"]["current"]
    closed = epochs["processed"] == epochs["started"]  # also by max_steps, in its middle
    epoch = epochs["processed"] - closed
    return (epoch + 1, 0) if batches["is_last_batch"] else (epoch, batches["current"]["processed"])


class ExactResume(Callback):
    """Give every batch its own random numbers, and go on with the very batch at which a checkpoint stands."""

    def __init__(self) -> None:
        self.bounds: list[int] = []  # of the plan
        self.begin = 0  # first step of the method
        self.before: tuple[list[int], int] | None = None  # both, in the checkpoint that is being resumed
        self.step = 0  # at which it stands

    def on_fit_start(self, trainer: pl.Trainer, module: Any) -> None:
        """Compare the plan with that of the checkpoint.

        Raises:
            SkimError: stages change, or the method begins, at another step; or ranks have other checkpoints.
        """
        steps = everywhere(self.step)  # each rank looks by itself; from other steps they would train other weights
        if len(set(steps)) > 1:
            said = ", ".join(f"rank {rank} from step {step}" for rank, step in enumerate(steps[:8]))
            raise SkimError(
                f"resume: the processes of this run would not go on from one checkpoint: {said}.\n"
                "Is the run's folder on a file system that all machines see?"
            )
        plan = module.plan
        self.bounds, self.begin = plan.bounds, plan.begin
        if self.before is None:
            return
        bounds, begin = self.before
        check_bounds(bounds, self.bounds)
        if begin != self.begin:
            raise SkimError(
                f"resume: the method of the checkpoint begins at step {begin}, this run's at {self.begin}.\n"
                f"Use train.method_after={begin / plan.steps:.6g}."
            )
        self.before = None

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        # dropout and noise of a batch follow from its place, and not from what was drawn before it
        place = (module.task.seed, trainer.global_rank, trainer.current_epoch, index)
        reseed(int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> 1), trainer.strategy.root_device)

    def on_save_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        checkpoint["plan"] = {"bounds": self.bounds, "begin": self.begin}
        checkpoint["order"] = order(trainer, module)

    def on_load_checkpoint(self, trainer: pl.Trainer, module: Any, checkpoint: dict[str, Any]) -> None:
        """Go on where the checkpoint stands.

        Raises:
            SkimError: it stands in the middle of an epoch, whose batches are others in this run.
        """
        self.before = checkpoint["plan"]["bounds"], checkpoint["plan"]["begin"]
        self.step = checkpoint["global_step"]
        epoch, batch = position(checkpoint)
        before, now = checkpoint["order"], order(trainer, module)
        if batch and (differs := [name for name in now if before.get(name, now[name]) != now[name]]):
            said = ", ".join(f"{name}={before.get(name)}, now {now[name]}" for name in differs)
            raise SkimError(
                f"resume: the checkpoint stands in the middle of an epoch, whose batches are others now: {said}.\n"
                "Use what it was made with, or a checkpoint from the end of an epoch."
            )
        module.task.resume_at(epoch, batch)


def order(trainer: pl.Trainer, module: Any) -> dict[str, Any]:
    """The numbers that the batches of an epoch follow from."""
    task = module.task
    by_tokens = task.tokens_per_batch is not None
    return {
        "seed": task.seed,
        "task.batch_size": None if by_tokens else task.batch_size,
        "task.tokens_per_batch": task.tokens_per_batch,
        "training rows": task.training_rows,
        "content of task.files.train": task.contents.get("train"),
        "processes": None if task.global_batch else trainer.world_size,  # shared out, a step is the same on any number
    }
