"""FLOPs and kept tokens of an evaluation, summed over batches and ranks."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torchmetrics import SumMetric

from skim.engine.trace import Trace
from skim.flops import LayerCost


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
