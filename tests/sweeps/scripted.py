"""A callback that makes trainings end as a file says, a line for each: for tests of what becomes of others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytorch_lightning as pl


class Scripted(pl.Callback):
    """``fail`` or ``interrupt`` behind the third step, ``-`` for neither."""

    def __init__(self, file: str) -> None:
        self.file = Path(file)
        self.act = "-"

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.act, *others = self.file.read_text().split()
        self.file.write_text(" ".join(others))

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        if trainer.global_step == 3 and self.act == "fail":
            raise RuntimeError("a bug")
        if trainer.global_step == 3 and self.act == "interrupt":
            raise KeyboardInterrupt
