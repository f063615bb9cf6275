"""A signal in training: the checkpoint is written at the next step, and there the run ends."""

from __future__ import annotations

import signal
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from skim.lightning.callbacks.checkpoints import LastCheckpoint
from skim.signals import HEARD, Stopped, ends


class EndsOnSignal(Callback):
    """Ends training when a signal was heard, at a step from which it goes on bit for bit.

    That is the end of a step whose numbers are logged and whose evaluation, if one is due, is done. All processes of a
    run end at the same one, whichever has heard.
    """

    def __init__(self) -> None:
        self.asked = 0  # the signal for which a checkpoint is being written; 0 is none
        self.last: LastCheckpoint | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.last = next((one for one in trainer.callbacks if isinstance(one, LastCheckpoint)), None)  # type: ignore[attr-defined]
        if HEARD.on:
            signal.signal(signal.SIGTERM, HEARD)  # Lightning's handler waits for other ranks in the middle of a step
            HEARD.waits = True

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        number = HEARD.number or 0
        if trainer.world_size > 1:
            heard = torch.tensor(number, device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(heard, reduce_op="max"))
        if number:
            self.asked, HEARD.number = number, None
            if self.last is not None:
                self.last.put_off = True  # it comes behind this callback, and knows when

    def on_train_batch_start(self, *_: Any) -> None:
        """End a run whose checkpoint has been written, if it shall end.

        Raises:
            Stopped: it shall.
        """
        if self.asked and (self.last is None or not self.last.put_off):
            number, self.asked = self.asked, 0
            if ends(number):
                raise Stopped(number)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.asked:  # no step comes any more
            HEARD.number = self.asked
