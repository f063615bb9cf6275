"""Results of runs, averaged over the seeds of one setting."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from skim.errors import SkimError
from skim.options.words import budgets

OWN = ("packed", "narrowed", "masked")  # the model that was timed goes by the name of its execution
BASELINES = {"packed_dense": "dense", "padded_hf": "padded"}  # baselines that were timed beside it, and their names
Results = dict[str, Any]  # a results.json; skim.results writes it
SHIFTED = "shifted_from"  # set on points of a curve.json: the target that their model was trained for, in words
MOVED = (
    "moved"  # in points of a curve.json over a grid of shifts: what was added to the shift that the run was saved with
)
FOLDER = "folder"  # set on what was loaded: where its file lies
OPTIONS = "options"  # set on what is aggregated: the options of its configuration that make a setting, by dotted path
# of a run's config: the parts in which two runs of one setting may differ
INCIDENTAL = (
    *("seed", "paths", "init_from", "resume", "sweep", "tags", "print_config", "trust_modules"),
    *("hardware", "trainer", "logger", "callbacks", "benchmark"),
)
DECIDING = (  # of these all the same: which weights were measured, and how much was trained
    *("callbacks.patience", "callbacks.export"),
    *(f"trainer.{name}" for name in ("gradient_clip_algorithm", "limit_train_batches", "overfit_batches")),
    *(f"trainer.{name}" for name in ("max_epochs", "min_epochs", "min_steps", "max_time", "fast_dev_run")),
)
# the Trainer's arguments that have an option of the training's in place of their own, unless they were given both
FOLLOWING = {
    "trainer.max_steps": "train.max_steps",
    "trainer.gradient_clip_val": "train.clip",
    "trainer.accumulate_grad_batches": "train.accumulate",
}


@dataclass(frozen=True)
class Spread:
    """Mean of ``n`` values and their sample standard deviation, which one value does not have."""

    mean: float
    std: float | None
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Compute the spread of at least one value."""
        return cls(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))

    def text(self, digits: int = 3) -> str:
        """Write ``0.912`` of one value, ``0.912±.003`` of more."""
        spread = "" if self.std is None else "±" + f"{self.std:.{digits}f}".removeprefix("0")
        return f"{self.mean:.{digits}f}{spread}"


@dataclass(frozen=True)
class Setting:
    """Finished runs that differ in their seed alone: equal task, method, backbone, target and configuration.

    Attributes:
        moved: what was added to the shift that the run was saved with, for a point of a grid of shifts.
        variant: difference from other settings of this task, method and backbone; empty where the target does.
        line: the same of settings that a figure joins, which differ in the target, or the option that stands for it.
        seeds: of the runs, one each; a seed that stands here twice was run twice.
        monitor: the task metric that counts, and ``metric`` its values.
        keep_ratio: mean over layers.
        times: by (batch size, baseline): median time of the model / median time of the baseline, ``packed_dense`` or
            ``padded_hf``. A ratio within each run, where both were measured in turns.
        speedups: the inverse, averaged on its own.
        runs: the ``results.json`` behind these numbers, the one of the best metric first.
    """

    task: str
    method: str
    backbone: str
    target: float | tuple[float, float] | None
    moved: float | None
    variant: str
    line: str
    seeds: tuple[int, ...]
    monitor: str
    metric: Spread | None
    relative_flops: Spread
    keep_ratio: Spread | None
    times: dict[tuple[int, str], Spread]
    speedups: dict[tuple[int, str], Spread]
    runs: tuple[Results, ...]

    @property
    def asked(self) -> str:
        """Method, with its target or shift if it has one: ``transkimmer 0.45``."""
        name = self.method if self.target is None else f"{self.method} {budgets(self.target)}"
        return name if self.moved is None else f"{name} shift {self.moved:+g}"

    @property
    def name(self) -> str:
        """Name that no other setting of its task and backbone has: ``transkimmer 0.45, bottleneck=96``."""
        return f"{self.asked}, {self.variant}" if self.variant else self.asked

    @property
    def parameters(self) -> Spread | None:
        """Number of parameters that run; ``None`` of runs from before they were counted."""
        counted = [run["parameters"] for run in self.runs if run.get("parameters")]
        return Spread.of(counted) if counted else None

    @property
    def kept(self) -> list[float]:
        """Keep ratio of each layer, mean over seeds."""
        layers = zip(*(run["keep_ratio"] for run in self.runs if run["keep_ratio"]), strict=True)
        return [statistics.fmean(layer) for layer in layers]

    @property
    def by_length(self) -> list[dict[str, float]]:
        """Score and cost by the length of the inputs, mean over seeds, which see the same inputs; maybe empty."""
        found: dict[tuple[float, float], list[dict[str, float]]] = {}
        for run in self.runs:
            for bucket in run.get("by_length") or []:
                found.setdefault((bucket["from"], bucket["to"]), []).append(bucket)
        return [
            {name: statistics.fmean(one[name] for one in buckets) for name in buckets[0]}
            for _, buckets in sorted(found.items())
        ]


def aggregate(results: Sequence[Results]) -> list[Setting]:
    """Average equal settings over seeds; runs that failed are left out.

    Returns:
        By task and backbone, dense first, then by method and falling cost.
    """
    groups: dict[tuple[Any, ...], list[Results]] = {}
    done = _alike([{**run, OPTIONS: deciding(run["config"])} for run in results if run["status"] == "done"])
    for run in done:
        options = frozenset((name, _frozen(value)) for name, value in run[OPTIONS].items())
        groups.setdefault((*_line(run), target_of(run), run.get(MOVED), options), []).append(run)
    variants = _variants([runs[0] for runs in groups.values()])
    settings = [_setting(runs, *variant) for runs, variant in zip(groups.values(), variants, strict=True)]
    order = lambda s: (s.task, s.backbone, s.method != "dense", s.method, s.variant, -s.relative_flops.mean)  # noqa: E731
    return sorted(settings, key=order)


def _frozen(value: Any) -> Any:
    """Make an option's value a key: ``0`` and ``0.0``, as people type them, are one."""
    if isinstance(value, Mapping):
        return frozenset((name, _frozen(one)) for name, one in value.items())
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _alike(runs: list[Results]) -> list[Results]:
    """Give all runs that are compared the same options: one of an earlier version has the default of a later one."""
    lines: dict[tuple[Any, ...], list[Results]] = {}
    for run in runs:
        lines.setdefault(_line(run), []).append(run)
    for some in lines.values():
        if len({frozenset(run[OPTIONS]) for run in some}) > 1:
            from skim.options.defaults import filled  # which knows all methods

            flats = filled([run[OPTIONS] for run in some], [run["config"] for run in some])
            for run, flat in zip(some, flats, strict=True):
                run[OPTIONS] = flat
    return runs


def _line(run: Results) -> tuple[Any, ...]:
    """Return the names that runs at several targets share, whatever their configuration."""
    return run["task"], method_of(run), run["backbone"], run.get(SHIFTED)


def method_of(run: Results) -> str:
    """Name a run's method, a chain by its members: ``layer_drop+ltp``."""
    members = run["config"].get("method", {}).get("methods") if run["method"] == "chain" else None
    if not members:
        return str(run["method"])
    return "+".join(str(one["method"] if isinstance(one, Mapping) else one) for one in members)


def target_of(run: Results) -> float | tuple[float, float] | None:
    """Return what a run was trained for: relative FLOPs, or the smallest and largest of a range."""
    target = run["target"]
    return tuple(target) if isinstance(target, list) else target


def deciding(config: Mapping[str, Any], also: Collection[str] = ()) -> dict[str, Any]:
    """Flatten the options of a resolved configuration that make a setting: ``method.bottleneck`` -> 32.

    Args:
        config: of a run.
        also: options that count here, although runs of one setting may differ in them.
    """
    flat: dict[str, Any] = {}
    counted = {*DECIDING, *also}

    def walk(prefix: str, values: Mapping[str, Any]) -> None:
        for key, value in values.items():
            if isinstance(value, dict):
                walk(f"{prefix}{key}.", value)
            elif prefix + key == "method.methods" and isinstance(value, list):  # members of a chain
                walk(f"{prefix}{key}.", {str(place): member for place, member in enumerate(value)})
            elif (prefix + key).partition(".")[0] not in INCIDENTAL or prefix + key in counted:
                flat[prefix + key] = value

    walk("", config)
    trainer, training = config.get("trainer", {}), config.get("train", {})
    for key, source in FOLLOWING.items():
        value = trainer.get(key.partition(".")[2])
        if value != training.get(source.partition(".")[2]):
            flat[key] = value
    return flat


def _variants(runs: list[Results]) -> list[tuple[str, str]]:
    """Name the differences of settings, one run each, beyond method and target; and again for their lines.

    A method without a target may have another option that says what it costs, such as the layers that are kept: where
    its settings differ in one option of the method alone, that is the one, and lines run along it.

    A key in which two settings differ is named in all that could stand on one line of a figure with them.
    """
    keys: dict[tuple[Any, ...], set[str]] = {}
    first: dict[tuple[Any, ...], dict[str, Any]] = {}
    for run in runs:
        config = run[OPTIONS]
        other = first.setdefault((*_line(run), target_of(run)), config)
        differ = {key for key in {*config, *other} if config.get(key) != other.get(key)}
        keys.setdefault(_line(run), set()).update(differ)
    variants = []
    for run in runs:
        named = sorted(keys[_line(run)])
        last = [key.removesuffix("._target_").rpartition(".")[2] for key in named]
        config = run[OPTIONS]
        parts = [f"shifted from {run[SHIFTED]}"] if SHIFTED in run else []
        line = [*parts]
        own = [key for key in named if key.startswith("method.")]
        budget = own[0] if len(own) == 1 and run["target"] is None else None
        for key, short in zip(named, last, strict=True):
            value = "null" if config.get(key) is None else config[key]
            if key.endswith("._target_"):
                value = str(value).rpartition(".")[2]  # optimizer=SGD
            parts.append(f"{short if last.count(short) == 1 else key}={value}")
            line += [] if key == budget else parts[-1:]
        variants.append((", ".join(parts), ", ".join(line)))
    return variants


def _setting(runs: list[Results], variant: str, line: str) -> Setting:
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
        **{key: first[key] for key in ("task", "backbone", "monitor")},
        method=method_of(first),
        target=target_of(first),
        moved=first.get(MOVED),
        variant=variant,
        line=line,
        seeds=tuple(sorted(run["seed"] for run in runs)),
        metric=Spread.of(metric) if metric else None,
        relative_flops=Spread.of([run["relative_flops"] for run in runs]),
        keep_ratio=Spread.of(kept) if kept else None,
        times={key: Spread.of([1 / value for value in values]) for key, values in ratios.items()},
        speedups={key: Spread.of(values) for key, values in ratios.items()},
        runs=tuple(sorted(runs, key=_best_first)),
    )


def _best_first(run: Results) -> float:
    value = run["metrics"].get(run["monitor"], math.nan)
    return math.inf if math.isnan(value) else -value


def speedups(run: Results) -> dict[tuple[int, str], float]:
    """Compute ratios of medians of one run by (batch size, baseline); empty if latency was not measured."""
    found = {}
    for batch_size, timings in (run["latency"] or {}).items():
        for own in filter(timings.get, OWN):
            for baseline in filter(timings.get, BASELINES):
                found[int(batch_size), baseline] = timings[baseline]["median_ms"] / timings[own]["median_ms"]
    return found
