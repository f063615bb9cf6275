"""Options of a sweep by W&B's agents, ``conf/sweep/wandb.yaml``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from skim.options.kinds import Count
from skim.options.run import Options


@dataclass(frozen=True, kw_only=True)
class Agents(Options):
    """Options of a sweep whose jobs W&B hands to its agents."""

    file: str = "sweep.yaml"
    """file to write"""
    search: Literal["grid", "random", "bayes"] = "grid"
    """grid: all combinations of the values; random, bayes: also within intervals, without an end unless runs has one"""
    metric: str = "metric"
    """number of a run's summary that bayes goes by, and that W&B sorts by: metric is the one that counts for the task;
    val/relative_flops and latency/batch_32/ms are others"""
    goal: Literal["maximize", "minimize"] = "maximize"
    """maximize or minimize it"""
    runs: Count | None = None
    """runs after which the sweep ends; null: when a grid is through"""
