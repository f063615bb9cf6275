"""Results of runs: find them, and put the seeds of one setting together."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skim.errors import SkimError

SCHEMA = 1
Results = dict[str, Any]  # a results.json; skim.lightning.results writes it


@dataclass(frozen=True)
class Spread:
    """Mean of ``n`` values and their sample standard deviation, which one value does not have."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def text(self, digits: int = 3) -> str:
        """``0.912`` of one value, ``0.912±.003`` of more."""
        spread = "" if self.std is None else "±" + f"{self.std:.{digits}f}".removeprefix("0")
        return f"{self.mean:.{digits}f}{spread}"


@dataclass(frozen=True)
class Setting:
    """Finished runs that differ in their seed alone: equal task, method, backbone and target.

    Attributes:
        seeds: of the runs, one each; a seed that stands here twice was run twice.
        monitor: the task metric that counts, and ``metric`` its values.
        keep_ratio: mean over layers.
        times: by (batch size, baseline): median time of the model / median time of the baseline, ``packed_dense`` or
            ``padded_hf``. A ratio within each run, where both were measured in turns.
        speedups: the inverse, averaged on its own.
    """

    task: str
    method: str
    backbone: str
    target: float | None
    seeds: tuple[int, ...]
    monitor: str
    metric: Spread | None
    relative_flops: Spread
    keep_ratio: Spread | None
    times: dict[tuple[int, str], Spread]
    speedups: dict[tuple[int, str], Spread]

    @property
    def name(self) -> str:
        """The method, with its target if it has one."""
        return self.method if self.target is None else f"{self.method} {self.target:g}"


def aggregate(results: Sequence[Results]) -> list[Setting]:
    """Mean and spread over seeds, for equal (task, method, backbone, target); runs that failed are left out.

    Returns:
        By task and backbone, dense first, then by method and falling cost.
    """
    groups: dict[tuple[Any, ...], list[Results]] = {}
    for run in results:
        if run["status"] == "done":
            groups.setdefault((run["task"], run["method"], run["backbone"], run["target"]), []).append(run)
    settings = [_setting(runs) for runs in groups.values()]
    return sorted(settings, key=lambda s: (s.task, s.backbone, s.method != "dense", s.method, -s.relative_flops.mean))


def _setting(runs: list[Results]) -> Setting:
    first = runs[0]
    monitors = {run["monitor"] for run in runs}
    if len(monitors) > 1:
        raise SkimError(
            f"Runs of task {first['task']} disagree on the metric that counts: {', '.join(sorted(monitors))}."
        )
    ratios: dict[tuple[int, str], list[float]] = {}
    for run in runs:
        for key, speedup in speedups(run).items():
            ratios.setdefault(key, []).append(speedup)
    metric = [run["metrics"][run["monitor"]] for run in runs if run["monitor"] in run["metrics"]]
    kept = [statistics.fmean(run["keep_ratio"]) for run in runs if run["keep_ratio"]]
    return Setting(
        **{key: first[key] for key in ("task", "method", "backbone", "target", "monitor")},
        seeds=tuple(sorted(run["seed"] for run in runs)),
        metric=Spread.of(metric) if metric else None,
        relative_flops=Spread.of([run["relative_flops"] for run in runs]),
        keep_ratio=Spread.of(kept) if kept else None,
        times={key: Spread.of([1 / value for value in values]) for key, values in ratios.items()},
        speedups={key: Spread.of(values) for key, values in ratios.items()},
    )


def speedups(run: Results) -> dict[tuple[int, str], float]:
    """Ratios of medians of one run by (batch size, baseline); empty if latency was not measured."""
    found = {}
    for batch_size, timings in (run["latency"] or {}).items():
        for baseline in ("packed_dense", "padded_hf"):
            if baseline in timings and "packed" in timings:
                found[int(batch_size), baseline] = timings[baseline]["median_ms"] / timings["packed"]["median_ms"]
    return found


def collect(folders: Sequence[Path]) -> list[Results]:
    """Every ``results.json`` in or under the folders.

    Raises:
        SkimError: a folder that is not there, a file that cannot be read, or none found.
    """
    paths: dict[Path, None] = {}
    for folder in map(Path, folders):
        if not folder.exists():
            raise SkimError(f"There is no folder {folder}.")
        found = [folder] if folder.is_file() else sorted(folder.rglob("results.json"))
        paths.update(dict.fromkeys(path.resolve() for path in found))
    if not paths:
        where = ", ".join(map(str, folders))
        raise SkimError(f"No results.json under {where}: no run has finished there.\nTrain one: python train.py")
    return [load(path) for path in paths]


def load(path: Path) -> Results:
    """One ``results.json``; a SkimError if it is none, or of a schema that this version does not read."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise SkimError(f"{path} cannot be read as JSON: {error}.") from None
    schema = run.get("schema") if isinstance(run, dict) else None
    if schema != SCHEMA:
        raise SkimError(f"{path} has schema {schema}; this version of skim reads {SCHEMA}.")
    return run
