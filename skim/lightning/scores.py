"""Numbers of an evaluation, summed over batches and ranks: metrics, loss, FLOPs, kept tokens, scores by length."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric, SumMetric

from skim.engine.trace import Trace
from skim.flops import FORMULAS, LayerCost
from tasks.base import Task

BUCKETS = 5  # groups of inputs by length


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


class ByLength(Metric):
    """Sums by the length of an input: what came of the short ones, and what of the long ones.

    Args:
        longest: real tokens; those of longer inputs are counted with them.
    """

    def __init__(self, longest: int = 4096) -> None:
        super().__init__()
        self.sums: Tensor
        # inputs, their scores, FLOPs, dense FLOPs; of a fixed size, so that ranks with other lengths add up
        self.add_state("sums", torch.zeros(longest + 1, 4), "sum")

    def update(self, trace: Trace, scores: Tensor) -> None:
        """Add one forward: scores (B,) of its inputs, each of one sequence or several; nan counts for nothing."""
        measured = torch.stack((trace.lengths, trace.flops(), trace.dense_flops)).float()
        tokens, *flops = measured.view(3, len(scores), -1).sum(-1)
        known = ~scores.isnan()
        columns = torch.stack((torch.ones_like(scores), scores.nan_to_num(), *flops), 1) * known[:, None]
        self.sums.index_add_(0, tokens.long().clamp(max=len(self.sums) - 1), columns.to(self.sums))

    def compute(self) -> list[dict[str, float]]:
        """Divide the inputs by length into at most :data:`BUCKETS` groups of about as many, the shortest first.

        Each has ``from`` and ``to`` (real tokens), ``rows``, ``tokens`` (their mean), ``score`` (theirs) and
        ``relative_flops``. Inputs of one length are all in one group.
        """
        sums = self.sums.cpu().double()
        lengths = sums[:, 0].nonzero()[:, 0]
        rows = sums[lengths, 0]
        middle = (rows.cumsum(0) - rows / 2) / rows.sum()
        found = []
        for bucket in (middle * BUCKETS).long().unique().tolist():
            some = lengths[(middle * BUCKETS).long() == bucket]
            count, score, flops, dense = sums[some].sum(0).tolist()
            tokens = float((some * sums[some, 0]).sum()) / count
            ends = {"from": int(some[0]), "to": int(some[-1]), "rows": int(count), "tokens": tokens}
            found.append({**ends, "score": score / count, "relative_flops": flops / dense})
        return found


class Scores(nn.Module):
    """Sums over an evaluation: the task's metrics, its loss, counts by class, scores by length, and what was spent.

    Args:
        task: knows its metrics and how to update them.
        walk: of the model that is evaluated.
        formulas: names of published FLOPs formulas to count by as well, see :data:`skim.flops.FORMULAS`.

    Attributes:
        classes: the last evaluation class by class, see :meth:`tasks.base.Task.table`; ``None`` without classes.
        by_length: the same by the length of the inputs, see :meth:`ByLength.compute`; empty without scores of each.
    """

    def __init__(self, task: Task, walk: Any, formulas: Sequence[str] = ()) -> None:
        super().__init__()
        self.task = task
        self.metrics = task.metrics()
        self.counts = task.counts()
        self.lengths = ByLength()
        self.loss = MeanMetric()
        self.spending = Spending(len(walk.costs), {name: FORMULAS[name](walk.base.config) for name in formulas})
        self.classes: dict[str, Any] | None = None
        self.by_length: list[dict[str, float]] = []

    def update(self, output: Any, batch: dict[str, Tensor], trace: Trace) -> None:
        """Add one forward; rows without labels only count for what was spent."""
        self.spending.update(trace)
        labels = self.task.labelled(batch)
        if not labels:
            return
        for metric in (self.metrics, self.counts):
            if metric is not None:
                self.task.update(metric, output, batch)
        scores = self.task.scored(output, batch)
        loss = self.task.loss_of(output, batch)
        self.lengths.update(trace, torch.full_like(loss, torch.nan).view(1) if scores is None else scores)
        self.loss.update(loss, weight=labels)

    def compute(self) -> dict[str, Tensor]:
        """Every number by its name, and :attr:`classes` and :attr:`by_length`."""
        if self.counts is not None:
            self.classes = self.task.table(self.counts.compute().cpu())
        self.by_length = self.lengths.compute()
        values = {**self.metrics.compute(), "loss": self.loss.compute(), **self.spending.compute()}
        return {name: value.float() for name, value in values.items()}

    def reset(self) -> None:
        """Forget everything but :attr:`classes` and :attr:`by_length`; called after each evaluation."""
        for metric in (self.metrics, self.counts, self.lengths, self.loss, self.spending):
            if metric is not None:
                metric.reset()
