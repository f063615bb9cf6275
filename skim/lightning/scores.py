"""Numbers of an evaluation, summed over batches and ranks: metrics, loss, FLOPs, kept tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, SumMetric

from skim.engine.trace import Trace
from skim.flops import FORMULAS, LayerCost
from tasks.base import Task


class Spending(nn.Module):
    """Sums over batches and ranks of what was computed: ratios of totals, and not means of ratios.

    Args:
        layers: L.
        formulas: published formulas to count by as well, see :data:`skim.flops.FORMULAS`, for this backbone.
    """

    def __init__(self, layers: int, formulas: dict[str, LayerCost] | None = None) -> None:
        super().__init__()
        self.formulas = formulas or {}
        self.flops, self.dense_flops, self.tokens, self.sequences = (SumMetric() for _ in range(4))
        self.kept = nn.ModuleList(SumMetric() for _ in range(layers))
        self.published = nn.ModuleDict({n: nn.ModuleList((SumMetric(), SumMetric())) for n in self.formulas})

    def update(self, trace: Trace) -> None:
        """Add one forward."""
        self.flops.update(trace.flops().sum().float())
        self.dense_flops.update(trace.dense_flops.sum().float())
        for name, formula in self.formulas.items():
            run, dense = cast(nn.ModuleList, self.published[name])
            run.update(trace.flops(formula).sum().float())
            dense.update(trace.dense(formula).sum().float())
        self.tokens.update(trace.lengths.sum())
        self.sequences.update(len(trace.lengths))
        for metric, count in zip(self.kept, trace.counts().sum(1), strict=True):
            metric.update(count)

    def compute(self) -> dict[str, Tensor]:
        """``relative_flops``, ``gflops`` and ``baseline_gflops`` per sequence, ``keep_ratio``, also per layer.

        The first three also as ``formula/<name>/...``.
        """
        tokens = self.tokens.compute()
        layers = {f"keep_ratio/layer_{i}": metric.compute() / tokens for i, metric in enumerate(self.kept)}
        counts = {"": (self.flops, self.dense_flops)}
        counts |= {f"formula/{name}/": tuple(self.published[name]) for name in self.formulas}  # type: ignore[arg-type, misc]
        values = {}
        for prefix, (run, dense) in counts.items():
            values[f"{prefix}relative_flops"] = run.compute() / dense.compute()
            values[f"{prefix}gflops"] = run.compute() / self.sequences.compute() / 1e9
            values[f"{prefix}baseline_gflops"] = dense.compute() / self.sequences.compute() / 1e9
        return {**values, "keep_ratio": torch.stack(list(layers.values())).mean(), **layers}

    def reset(self) -> None:
        """Forget everything; called after each evaluation."""
        for metric in self.modules():
            if isinstance(metric, SumMetric):
                metric.reset()


class Scores(nn.Module):
    """Sums over an evaluation: the task's metrics, its loss, counts by class, and what was spent.

    Args:
        task: knows its metrics and how to update them.
        walk: of the model that is evaluated.
        formulas: names of published FLOPs formulas to count by as well, see :data:`skim.flops.FORMULAS`.

    Attributes:
        classes: the last evaluation class by class, see :meth:`tasks.base.Task.table`; ``None`` without classes.
    """

    def __init__(self, task: Task, walk: Any, formulas: Sequence[str] = ()) -> None:
        super().__init__()
        self.task = task
        self.metrics = task.metrics()
        self.counts = task.counts()
        self.loss = MeanMetric()
        self.spending = Spending(len(walk.costs), {name: FORMULAS[name](walk.base.config) for name in formulas})
        self.classes: dict[str, Any] | None = None

    def update(self, output: Any, batch: dict[str, Tensor], trace: Trace) -> None:
        """Add one forward; rows without labels only count for what was spent."""
        self.spending.update(trace)
        labels = self.task.labelled(batch)
        if not labels:
            return
        for metric in (self.metrics, self.counts):
            if metric is not None:
                self.task.update(metric, output, batch)
        self.loss.update(output.loss, weight=labels)

    def compute(self) -> dict[str, Tensor]:
        """Every number by its name, and :attr:`classes`."""
        if self.counts is not None:
            self.classes = self.task.table(self.counts.compute().cpu())
        values = {**self.metrics.compute(), "loss": self.loss.compute(), **self.spending.compute()}
        return {name: value.float() for name, value in values.items()}

    def reset(self) -> None:
        """Forget everything but :attr:`classes`; called after each evaluation."""
        for metric in (self.metrics, self.counts, self.loss, self.spending):
            if metric is not None:
                metric.reset()
