"""TensorBoard: ``logger=tensorboard``, and then ``tensorboard --logdir runs``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.utilities import rank_zero_only

from skim.lightning.loggers.told import markdown, numbers, require, sentences, times
from skim.report.heatmap import SkimmedText
from skim.results import Results


class TensorBoard(TensorBoardLogger):
    """Curves, sentences, latency, and a run's config with what it has come to, for the tab HPARAMS.

    Args:
        save_dir: the run's folder; events go to ``tensorboard/`` in it.
    """

    def __init__(self, save_dir: str) -> None:
        require("tensorboard", "tensorboard", "tensorboard")
        super().__init__(save_dir, name="", version="", sub_dir="tensorboard", default_hp_metric=False)
        self.config: dict[str, Any] = {}

    @rank_zero_only
    def log_hyperparams(self, params: Any, metrics: Any = None, step: int | None = None) -> None:
        """Keep the config until the run has ended: TensorBoard takes it together with the final numbers."""
        if metrics is None and isinstance(params, Mapping):
            self.config = dict(params)
        super().log_hyperparams(params, metrics, step)

    @rank_zero_only
    def log_sentences(self, texts: Sequence[SkimmedText], step: int) -> None:
        """Write a table of sentences, whose tokens have the layers that they took part in behind them."""
        self.experiment.add_text("sentences", markdown(*sentences(texts)), step)

    @rank_zero_only
    def conclude(self, results: Results) -> None:
        """Write the final numbers as ``final/...``, apart from the curves, and close the file."""
        columns, rows = times(results)
        if rows:
            self.experiment.add_text("latency", markdown(columns, rows), results.steps)
        final = {f"final/{name}": value for name, value in numbers(results).items()}
        super().log_hyperparams({**self.config, "status": results.status}, final, results.steps)
        self.finalize(results.status)
