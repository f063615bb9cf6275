"""What a run shows of its training while it goes on."""

from __future__ import annotations

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console


class Lines(Callback):
    """One line per evaluation, for logs and terminals that show no progress bar."""

    def __init__(self, console: Console) -> None:
        self.console = console

    def on_validation_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        values = trainer.callback_metrics
        hidden = ("layer_", "gflops", "formula/")
        shown = [name for name in values if name.startswith("val/") and not any(part in name for part in hidden)]
        text = ", ".join(f"{name[4:].replace('_', ' ')} {float(values[name]):.4f}" for name in shown)
        self.console.print(f"step {trainer.global_step}: {text}", highlight=False)
