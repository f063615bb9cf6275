"""Training a compressed model: the task's loss, plus the method's penalties, plus an optional teacher."""

from __future__ import annotations

import math
from typing import Any, cast

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MeanMetric, SumMetric

from skim.compression import walk_of
from skim.engine.trace import Trace
from skim.engine.walk import INPUTS
from tasks.base import Task


class Spending(nn.Module):
    """Sums over batches and ranks of what was computed: ratios of totals, and not means of ratios."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.flops, self.dense_flops, self.tokens, self.sequences = (SumMetric() for _ in range(4))
        self.kept = nn.ModuleList(SumMetric() for _ in range(layers))

    def update(self, trace: Trace) -> None:
        """Add one forward."""
        self.flops.update(trace.flops().sum().float())
        self.dense_flops.update(trace.dense_flops.sum().float())
        self.tokens.update(trace.lengths.sum())
        self.sequences.update(len(trace.lengths))
        for metric, count in zip(self.kept, trace.counts().sum(1), strict=True):
            metric.update(count)

    def compute(self) -> dict[str, Tensor]:
        """``relative_flops``, ``gflops`` and ``baseline_gflops`` per sequence, ``keep_ratio``, also per layer."""
        tokens = self.tokens.compute()
        layers = {f"keep_ratio/layer_{i}": metric.compute() / tokens for i, metric in enumerate(self.kept)}
        return {
            "relative_flops": self.flops.compute() / self.dense_flops.compute(),
            "gflops": self.flops.compute() / self.sequences.compute() / 1e9,
            "baseline_gflops": self.dense_flops.compute() / self.sequences.compute() / 1e9,
            "keep_ratio": torch.stack(list(layers.values())).mean(),
            **layers,
        }

    def reset(self) -> None:
        """Forget everything; called after each evaluation."""
        for metric in self.modules():
            if isinstance(metric, SumMetric):
                metric.reset()


class SkimModule(pl.LightningModule):
    """One compressed model on one task. Decisions are relaxed in training, hard and deterministic in evaluation.

    Args:
        model: what ``skim.compress`` returned.
        task: gives the metrics and turns logits into predictions.
        lr: peak learning rate of the backbone and the head.
        method_lr: peak learning rate of the method's own parameters, which start from nothing.
        weight_decay: on matrices; never on biases, norms or the method.
        warmup: share of training in which the learning rate rises; it falls linearly to 0 after.
        distill: weight of the distance to the teacher's logits, in [0, 1]; the task's loss weighs the rest.
        distill_temperature: both distributions are softened by it.
        teacher: the dense model to learn from, in evaluation mode; needed if ``distill`` is above 0.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        lr: float = 5e-5,
        method_lr: float = 1e-3,
        weight_decay: float = 0.01,
        warmup: float = 0.1,
        distill: float = 0.0,
        distill_temperature: float = 2.0,
        teacher: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.task = task
        self.lr, self.method_lr, self.weight_decay, self.warmup = lr, method_lr, weight_decay, warmup
        self.distill, self.distill_temperature = distill, distill_temperature
        # in a tuple: the teacher is no parameter of this module, is not trained, saved or moved by Lightning
        self._teacher = (teacher,)
        self.metrics = task.metrics()
        self.spending = Spending(len(walk_of(model).costs))
        self.eval_loss = MeanMetric()

    @property
    def method(self) -> Any:
        """The compression method."""
        return walk_of(self.model).method

    @property
    def trace(self) -> Trace:
        """Of the last forward."""
        return cast(Trace, self.model.trace)

    def forward(self, batch: dict[str, Tensor]) -> Any:
        return self.model(**{name: batch[name] for name in (*INPUTS, "labels") if name in batch})

    # ---- training ----

    def on_fit_start(self) -> None:
        # from_pretrained returns a model in eval mode and Lightning keeps it there: no dropout, no relaxed decisions
        self.model.train()
        if self._teacher[0] is not None:
            self._teacher[0].to(self.device)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        out = self(batch)
        trace = self.trace
        loss = out.loss
        if self._teacher[0] is not None and self.distill > 0:
            loss = (1 - self.distill) * loss + self.distill * self._distance(out.logits, batch)
        self.method.step(self.global_step / max(self.trainer.estimated_stepping_batches, 1), trace)
        weights = self.method.weights()
        self.log("train/loss", out.loss.detach(), prog_bar=True)
        for name, value in self.method.penalties(trace).items():
            loss = loss + weights[name] * value
            self.log_dict({f"train/{name}": value.detach(), f"train/{name}_weight": weights[name]})
        with torch.no_grad():
            self.log("train/keep", trace.keep_ratio().mean(), prog_bar=True)
            self.log("train/flops", trace.relative_flops().float(), prog_bar=True)
        return loss

    def _distance(self, logits: Tensor, batch: dict[str, Tensor]) -> Tensor:
        """To the teacher: KL divergence of the softened distributions, or the squared error of a regression."""
        with torch.no_grad():
            inputs = {name: batch[name] for name in INPUTS if name in batch}
            target = self._teacher[0](**inputs).logits
        if self.task.head == "regression":
            return F.mse_loss(logits, target)
        t = self.distill_temperature
        log_p, log_q = (logits / t).log_softmax(-1), (target / t).log_softmax(-1)
        return F.kl_div(log_p, log_q, log_target=True, reduction="batchmean") * t * t

    def configure_optimizers(self) -> dict[str, Any]:
        method = {id(p) for p in self.method.parameters()}
        groups: dict[str, list[nn.Parameter]] = {"decay": [], "plain": [], "method": []}
        for parameter in self.model.parameters():
            if not parameter.requires_grad:
                continue
            kind = "method" if id(parameter) in method else "decay" if parameter.dim() > 1 else "plain"
            groups[kind].append(parameter)
        settings = {
            "decay": {"lr": self.lr, "weight_decay": self.weight_decay},
            "plain": {"lr": self.lr, "weight_decay": 0.0},
            "method": {"lr": self.method_lr, "weight_decay": 0.0},
        }
        # fused: one pass over the weights; the default takes a sixth of a MiniLM step on a CPU for its embeddings.
        # Lightning cannot clip gradients under mixed precision with it.
        fused = self.device.type in ("cpu", "cuda") and self.trainer.precision == "32-true"
        optimizer = AdamW([{"params": groups[kind], **settings[kind]} for kind in groups if groups[kind]], fused=fused)
        total = max(int(self.trainer.estimated_stepping_batches), 1)
        rise = math.ceil(self.warmup * total)

        def scale(step: int) -> float:
            return (step + 1) / rise if step < rise else (total - step) / max(total - rise, 1)

        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": LambdaLR(optimizer, scale), "interval": "step"}}

    # ---- evaluation ----

    def _evaluate(self, batch: dict[str, Tensor]) -> None:
        out = self(batch)
        self.spending.update(self.trace)
        if "labels" in batch:
            self.metrics.update(self.task.predict(out.logits), batch["labels"])
            self.eval_loss.update(out.loss, weight=len(batch["labels"]))

    def _report(self, stage: str) -> None:
        values = {**self.metrics.compute(), "loss": self.eval_loss.compute(), **self.spending.compute()}
        # the metrics are already synchronised over ranks by torchmetrics
        self.log_dict({f"{stage}/{name}": value.float() for name, value in values.items()})
        for metric in (self.metrics, self.eval_loss, self.spending):
            metric.reset()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._evaluate(batch)

    def on_test_epoch_end(self) -> None:
        self._report("test")
