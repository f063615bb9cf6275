"""Options of a sweep, ``conf/sweep``: the jobs that ``-m`` runs, how many at a time, and going on with others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from skim.options.kinds import Count, NotNegative, Number
from skim.options.run import Folder, Options


@dataclass(frozen=True, kw_only=True)
class Sweep(Options):
    """Options of a sweep; a single run has none of them."""

    grids: tuple[str, ...] = ()
    """what is swept over, as one types it: a line for each grid. A grid is all combinations of its values, a sweep all
    its grids; what is typed beside it holds for each, and before what it says itself"""
    common: str = ""
    """options of every job, as one types them"""
    jobs: Count = 1
    """jobs side by side on this machine, by joblib; each has a share of the cores (hardware.threads), and its log in
    log.txt"""
    resume: bool | Folder = False
    """go on with a sweep: true for the newest one of the same command, or the folder of one, which needs no other
    word. Jobs that have finished are left alone, whatever their number; one that was interrupted goes on from its
    checkpoints/last.ckpt, and one that failed is tried once more"""
    trials: Count | None = None
    """runs of a search by Optuna, which draws from interval(), choice() and range() and looks for the front of metric
    and cost (sweep=pareto); null runs all combinations"""
    cost: Literal["flops", "time"] = "flops"
    """what a search makes small: flops are the relative FLOPs; time is that of a pass divided by padded Hugging Face's,
    at the largest of benchmark.batch_sizes"""
    random: Number = 8
    """trials that are drawn at random, before the sampler (TPE) learns from those that have finished"""
    seed: Number = 1
    """random seed of what a search draws"""
    prune: NotNegative | None = None
    """a search ends a run at an evaluation at which a finished trial was, after as many steps, better by more than this
    much of the metric and no dearer; null lets every run finish"""
