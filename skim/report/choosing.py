"""Choose a setting: the cheapest within so many points of dense, or the best within a budget of FLOPs or time.

A point is 0.01 of the task's metric. How far a setting is below dense is the mean of (dense - setting) over the seeds
that both have, with the standard error of these differences, which one seed does not have. Without a seed in common it
is the difference of the two means, with the standard error of that, if both have several seeds.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from skim.errors import SkimError
from skim.report.fitted import Column, Fitted, Naming
from skim.report.runs import Results, Setting, Spread

POINT = 0.01  # of the metric
BASELINE = "padded_hf"  # that time is told as a share of


@dataclass(frozen=True)
class Bounds:
    """Bounds that a choice must keep.

    Attributes:
        drop: points below dense; ``None``: any.
        flops: relative FLOPs; likewise.
        time: time / time of padded Hugging Face, at this batch size; likewise.
        batch_size: of that time.
    """

    drop: float | None = None
    flops: float | None = None
    time: float | None = None
    batch_size: int = 32


@dataclass(frozen=True)
class Candidate:
    """A setting, compared with dense.

    Attributes:
        drop: points below dense; negative above it.
        error: standard error of that, in points; ``None`` where one seed tells none.
        paired: seeds that both have.
        time: time / time of padded Hugging Face; ``None`` if it was not measured.
        excess: by how much each bound is missed, by name, as a share of it; infinite where it was not measured.
    """

    setting: Setting
    drop: float
    error: float | None
    paired: int
    time: Spread | None
    excess: dict[str, float]

    def below(self) -> str:
        """Write how far below dense: ``0.80 ± 0.21 points below dense``."""
        error = "" if self.error is None else f" ± {self.error:.2f}"
        return f"{abs(self.drop):.2f}{error} points {'below' if self.drop >= 0 else 'above'} dense"

    def about(self, bounds: Bounds) -> str:
        """Write cost and score on a line."""
        cost = f"relative FLOPs {self.setting.relative_flops.text()}"
        if self.time is not None:
            cost += f", time {self.time.text(2)} of padded at batch size {bounds.batch_size}"
        return f"{cost}, {self.below()}"


def compared(settings: Sequence[Setting], bounds: Bounds) -> tuple[Setting, list[Candidate]]:
    """Compare the settings of one task and backbone with its dense one, the best if there are several.

    Raises:
        SkimError: settings of several tasks or backbones, or none that is dense, or nothing else.
    """
    groups = sorted({(setting.task, setting.backbone) for setting in settings})
    if len(groups) > 1:
        named = ", ".join(f"{task} with {backbone}" for task, backbone in groups)
        raise SkimError(
            f"These runs are of several tasks or backbones: {named}.\nName one: task=<name> backbone=<name>"
        )
    scored = [setting for setting in settings if setting.metric is not None]
    dense = max((s for s in scored if s.method == "dense"), key=lambda s: s.metric.mean, default=None)
    if dense is None:
        raise SkimError("None of these runs is dense, so there is nothing to be below.\nTrain one: method=dense")
    others = [setting for setting in scored if setting.method != "dense"]
    if not others:
        raise SkimError("All of these runs are dense; there is nothing to choose from.")
    return dense, [_candidate(setting, dense, bounds) for setting in others]


def _candidate(setting: Setting, dense: Setting, bounds: Bounds) -> Candidate:
    drop, error, paired = difference(setting.runs, dense.runs)
    time = setting.times.get((bounds.batch_size, BASELINE))
    values = {"drop": drop, "flops": setting.relative_flops.mean, "time": math.inf if time is None else time.mean}
    excess = {}
    for name, value in values.items():
        bound = getattr(bounds, name)
        if bound is not None and value > bound + 1e-9:
            excess[name] = (value - bound) / max(bound, 1e-9 if name != "drop" else 0.1)
    return Candidate(setting, drop, error, paired, time, excess)


def difference(runs: Sequence[Results], dense: Sequence[Results]) -> tuple[float, float | None, int]:
    """Measure how far runs are below dense ones: points, their standard error, and seeds that both have."""
    own, base = (_by_seed(some) for some in (runs, dense))
    both = [seed for seed in own if seed in base]
    if both:
        each = [(base[seed] - own[seed]) / POINT for seed in both]
        error = statistics.stdev(each) / math.sqrt(len(each)) if len(each) > 1 else None
        return statistics.fmean(each), error, len(both)
    drop = (statistics.fmean(base.values()) - statistics.fmean(own.values())) / POINT
    if min(len(own), len(base)) < 2:
        return drop, None, 0
    variance = sum(statistics.variance(some.values()) / len(some) for some in (own, base))
    return drop, math.sqrt(variance) / POINT, 0


def _by_seed(runs: Sequence[Results]) -> dict[int, float]:
    found: dict[int, list[float]] = {}
    for run in runs:
        if run["monitor"] in run["metrics"]:
            found.setdefault(run["seed"], []).append(run["metrics"][run["monitor"]])
    return {seed: statistics.fmean(values) for seed, values in found.items()}


def choose(candidates: Sequence[Candidate], bounds: Bounds) -> Candidate:
    """Choose the cheapest within the bounds; with none on the drop, the one that is least below dense.

    Cheapest is by time if time is bounded, and else by FLOPs.

    Raises:
        SkimError: nobody is within them; says how near the nearest came.
    """
    within = [one for one in candidates if not one.excess]
    if within:
        if bounds.drop is None:
            return min(within, key=lambda one: (one.drop, one.setting.relative_flops.mean))
        cost = lambda one: (one.setting.relative_flops.mean if bounds.time is None else one.time.mean, one.drop)  # noqa: E731
        return min(within, key=cost)
    nearest = min(candidates, key=lambda one: sum(one.excess.values()))
    said = f"None of {len(candidates)} settings is within {asked(bounds)}."
    if not math.isfinite(sum(nearest.excess.values())):
        raise SkimError(
            f"{said} Time at batch size {bounds.batch_size} was not measured of any that could be.\n"
            f"Measure it: python evaluate.py ckpt=<run> what=latency benchmark.batch_sizes=[{bounds.batch_size}]"
        )
    raise SkimError(f"{said}\nThe nearest is {nearest.setting.name}: {nearest.about(bounds)}.")


def asked(bounds: Bounds) -> str:
    """Write the bounds as they are typed: ``max_drop=1 max_flops=0.5``."""
    given = {name: getattr(bounds, name) for name in ("drop", "flops", "time")}
    return " ".join(f"max_{name}={value:g}" for name, value in given.items() if value is not None)


def warnings_of(chosen: Candidate, dense: Setting, bounds: Bounds) -> list[str]:
    """Write what one should know of a choice: few seeds, or a bound that is within the noise."""
    notes = []
    if chosen.error is None:
        notes.append("one seed: how far below dense it is has no uncertainty, and may be chance")
    elif bounds.drop is not None and chosen.drop + chosen.error > bounds.drop:
        notes.append(f"max_drop={bounds.drop:g} is within one standard error of it: more seeds could say no")
    if not chosen.paired:
        notes.append("it has no seed in common with dense: two separate means are compared")
    return notes


def table(dense: Setting, candidates: Sequence[Candidate], chosen: Candidate | None, bounds: Bounds) -> Fitted:
    """Make the table of the candidates, the cheapest first, with dense above them and the chosen one marked."""
    rows = sorted(candidates, key=lambda one: one.setting.relative_flops.mean)
    settings = [dense, *(one.setting for one in rows)]
    time = dense.times.get((bounds.batch_size, BASELINE))
    names = [dense.name, *(f"{'→ ' if one is chosen else ''}{one.setting.name}" for one in rows)]
    numbers = [
        Column(dense.monitor, [s.metric.text(4) if s.metric else "-" for s in settings]),
        Column("points\nbelow", ["", *(f"{one.drop:.2f}" for one in rows)]),
        Column("std\nerror", ["", *("-" if one.error is None else f"{one.error:.2f}" for one in rows)]),
        Column("relative\nFLOPs", [s.relative_flops.text() for s in settings]),
        Column(
            f"b{bounds.batch_size} time\n/ padded",
            ["-" if t is None else t.text(2) for t in (time, *(one.time for one in rows))],
        ),
        Column("misses", ["", *(", ".join(f"max_{name}" for name in one.excess) for one in rows)]),
    ]
    seeds = Column("seeds", [",".join(map(str, s.seeds)) for s in settings])
    return Fitted([Naming([Column("setting", names), seeds], {})], numbers, [True, *(bool(one.excess) for one in rows)])
