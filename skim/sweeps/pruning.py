"""Ending a run of a search that cannot reach the front any more: a finished one was better and no dearer all along."""

from __future__ import annotations

import csv
import signal
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from skim.signals import Stopped
from skim.sweeps.folder import Sweep
from skim.sweeps.job import Pruned


class StopsDominated(Callback):
    """Ends a run at an evaluation at which a finished job of its sweep dominates it by a margin.

    Optuna's pruners compare one number. Here are two: the other job had, after as many steps, a metric that was better
    by more than the margin, at relative FLOPs that were not above. Curves cross: the smaller the margin, the more runs
    are ended that would have come to the front later.

    Args:
        folder: of the sweep.
        margin: of the task's metric.
    """

    def __init__(self, folder: str, margin: float) -> None:
        self.sweep, self.margin = Sweep(Path(folder)), margin

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Look at the curves of the others.

        Raises:
            Pruned: one of them dominates this run.
        """
        if trainer.state.fn != "fit":
            return
        monitor, step = cast(Any, pl_module).task.monitor, trainer.fit_loop.epoch_loop._batches_that_stepped
        now = [float(trainer.callback_metrics[f"val/{name}"]) for name in (monitor, "relative_flops")]
        found = self.better(monitor, step, now[0], now[1]) if trainer.is_global_zero else None
        found = trainer.strategy.broadcast(found)
        if found is None:
            return
        if trainer.is_global_zero:
            raise Pruned(found)
        raise Stopped(signal.SIGTERM)  # other ranks end without a word

    def better(self, monitor: str, step: int, metric: float, spent: float) -> str | None:
        """Name a finished job that was better at a step, by more than the margin, and spent no more."""
        for job in self.sweep.jobs():
            if job.state != "done" or not (job.folder / "metrics.csv").is_file():
                continue
            with (job.folder / "metrics.csv").open(newline="") as file:
                for row in csv.DictReader(file):
                    if row.get(f"val/{monitor}") and int(row["step"]) == step:
                        other, cost = float(row[f"val/{monitor}"]), float(row["val/relative_flops"])
                        if other > metric + self.margin and cost <= spent:
                            there = f"job {job.number} had {monitor} {other:.4f} at relative FLOPs {cost:.3f}"
                            return f"{there} after as many steps; here {metric:.4f} at {spent:.3f}"
        return None
