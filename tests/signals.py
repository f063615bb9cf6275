"""Signals sent to a run by itself, at steps that a test chooses."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytorch_lightning as pl


class SendsSignal(pl.Callback):
    """Sends a signal to this process in a step's middle, once for all runs that share a file.

    Args:
        step: of the training.
        name: of the signal.
        once: a file that is made then.
    """

    def __init__(self, step: int, name: str, once: str) -> None:
        self.step, self.number, self.once = step, signal.Signals[name], Path(once)

    def on_before_zero_grad(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.once.exists():
            self.once.touch()
            os.kill(os.getpid(), self.number)
