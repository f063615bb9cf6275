"""Evaluation sentences as the model skims them, shown by the loggers that can show more than numbers."""

from __future__ import annotations

from typing import Any, cast

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from skim.lightning.loggers.told import Shows
from skim.report.heatmap import read


class Sentences(Callback):
    """Show the same few evaluation sentences at every evaluation of a training, once the method takes part in it.

    Args:
        count: sentences; 0 is none. They cost one forward of so many texts, and nothing without a logger to show them.
    """

    def __init__(self, count: int) -> None:
        self.count = count

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and cast(Any, pl_module).has_run:
            with trainer.precision_plugin.forward_context():
                self.show(trainer, pl_module)

    def show(self, trainer: pl.Trainer, module: Any) -> None:
        """Let the loggers that can show the sentences as the module's model skims them now."""
        loggers = [logger for logger in trainer.loggers if isinstance(logger, Shows)]
        if not loggers or not self.count:
            return
        task = module.task
        texts = task.example_texts(self.count)
        skimmed = read(module.model, task.tokenizer, texts, task.label_names, task.single_texts)
        for logger in loggers if trainer.is_global_zero else ():
            logger.log_sentences(skimmed, trainer.global_step)
