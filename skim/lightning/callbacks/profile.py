"""Profile of a few training steps: operations by their time in a table, and a trace to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch.profiler import ProfilerActivity, profile, schedule

from skim.files import replacing, write_text


class OperationProfile(Callback):
    """Record some training steps with torch's profiler: ``operations.txt``, ``trace.json``.

    Lightning's PyTorchProfiler records evaluations of the same run as well and keeps the last of them in its table.

    Args:
        folder: where to.
        after: steps before, in which memory is claimed and kernels are chosen.
        steps: recorded ones.
        rows: of the table.
    """

    def __init__(self, folder: str | Path, after: int = 5, steps: int = 5, rows: int = 40) -> None:
        self.folder, self.after, self.steps, self.rows = Path(folder), after, steps, rows
        self._recording: profile | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        cuda = trainer.strategy.root_device.type == "cuda"
        self._recording = profile(
            activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])],
            schedule=schedule(wait=max(self.after - 1, 0), warmup=1, active=self.steps, repeat=1),
            on_trace_ready=self.write,
            acc_events=True,
        )
        self._recording.start()

    def on_train_batch_end(self, *_: Any) -> None:
        if self._recording is not None:
            self._recording.step()

    def write(self, recorded: profile) -> None:
        """Write both files."""
        by = "self_device_time_total" if ProfilerActivity.CUDA in recorded.activities else "self_cpu_time_total"
        table = recorded.key_averages().table(sort_by=by, row_limit=self.rows, max_name_column_width=60)
        write_text(self.folder / "operations.txt", table)
        with replacing(self.folder / "trace.json") as part:
            recorded.export_chrome_trace(str(part))

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if self._recording is not None:
            self._recording.stop()  # which writes what a run of fewer steps has got
        self._recording = None
