"""Moving average of the weights: it is evaluated, kept as the best and exported in place of the weights themselves."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class Average(WeightAveraging):
    """Lightning's averaging of weights, with an average that begins anew in every stage, and when the method begins.

    What changes of it, and why: the weights stand in for their average until an evaluation has been judged, so that
    what is kept as the best is what was evaluated; a checkpoint at the end of training holds both, so that a longer one
    can go on from it; and of the module only what has weights is copied. Buffers, such as a method's shift, are not
    averaged: the present ones count.

    Args:
        decay: share of the average that stays in a step, once there have been enough of them; see :func:`follow`.
    """

    def __init__(self, decay: float) -> None:
        super().__init__(use_buffers=False, multi_avg_fn=partial(follow, decay=decay))
        self.decay = decay
        self.ended: tuple[dict[str, Tensor], Tensor] | None = None  # weights at the end of training; steps averaged

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if stage == "fit":
            # a copy of the module itself would have data, teacher and callbacks of its own
            parts = {name: part for name, part in pl_module.named_children() if any(True for _ in part.parameters())}
            device = trainer.strategy.root_device  # the module is not there yet
            self._average_model = AveragedModel(nn.ModuleDict(parts), device, use_buffers=False, **self._kwargs)
            self.ended = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: Any, *_: object) -> None:
        step = trainer.global_step
        if step in (pl_module.plan.at(step)[1], pl_module.plan.of_method(step)[0]):
            self.average.n_averaged.zero_()  # what was learned for another loss is no part of it

    @property
    def average(self) -> Any:
        """Torch's average, while training lasts."""
        return cast(Any, self._average_model)

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stay with the average: other callbacks are going to look at what was evaluated, and to keep it."""

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # behind the callbacks of the trainer, ahead of the last checkpoint, which holds both
        super().on_validation_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Stay with the weights: the last checkpoint is still to be written."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the average in the place of the weights for good."""
        weights = {name: tensor.detach().cpu().clone() for name, tensor in pl_module.state_dict().items()}
        self.ended = weights, self.average.n_averaged.cpu()
        super().on_train_end(trainer, pl_module)
        self._average_model = None

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        if self.ended is None:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)
            return
        # calibrated since: by a buffer
        weights, count = self.ended
        buffers = {name for name, _ in pl_module.named_buffers(remove_duplicate=False)}
        state = checkpoint["state_dict"]
        checkpoint["current_model_state"] = {n: state[n] if n in buffers else weights[n] for n in state}
        checkpoint["averaging_state"] = {"n_averaged": count}


def follow(averages: Any, weights: Any, count: Tensor, decay: float) -> None:
    r"""Move averages towards weights, in place.

    .. math:: a \leftarrow d a + (1 - d) w, \quad d = \min\left(\text{decay}, \frac{1 + n}{10 + n}\right)

    After few steps, n, d is smaller than the decay, or the average would be one of how training began (as TensorFlow's
    ``ExponentialMovingAverage`` with ``num_updates``).

    Args:
        averages: tensors.
        weights: likewise.
        count: n, at least 1; of none, the average is the weights.
        decay: in [0, 1).
    """
    steps = float(count)
    torch._foreach_lerp_(averages, weights, 1.0 - min(decay, (1.0 + steps) / (10.0 + steps)))
