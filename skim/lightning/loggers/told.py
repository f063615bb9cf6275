"""Contents of a run's log, the same for every logger: its config, shaded sentences, and what it has come to."""

from __future__ import annotations

import html
import os
import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean
from typing import Any, Protocol, runtime_checkable

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from skim.errors import SkimError
from skim.methods import method_name
from skim.report.heatmap import SkimmedText, terminal
from skim.report.runs import BASELINES, speedups
from skim.results import Results


@runtime_checkable
class Shows(Protocol):
    """A logger that shows what is more than a number."""

    def log_sentences(self, texts: Sequence[SkimmedText], step: int) -> None:
        """Show sentences with each token shaded by the layers that computed it, as they are at a step of training."""

    def conclude(self, results: Results) -> None:
        """Show what the run has come to, or how it failed, and end the log."""


def require(package: str, logger: str, extra: str) -> None:
    """Refuse a logger whose package is not installed.

    Raises:
        SkimError: the extra that brings it.
    """
    if find_spec(package) is None:
        raise SkimError(
            f'logger={logger} needs {package}, which is not installed.\nInstall it: pip install "skim[{extra}]", or '
            "leave this logger out."
        )


def flat(config: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten a config as it is typed: ``method.target`` is a number of its own that plots can have an axis for.

    Lists are texts; ``method.name`` is added to ``task.name`` and ``backbone.name``.
    """
    found: dict[str, Any] = {}

    def walk(prefix: str, tree: Mapping[str, Any]) -> None:
        for key, value in tree.items():
            if isinstance(value, Mapping):
                walk(f"{prefix}{key}.", value)
            else:
                found[f"{prefix}{key}"] = str(value) if isinstance(value, (list, tuple)) else value

    walk("", config)
    return {**found, "method.name": method_name(found["method._target_"])}


def sweep() -> str | None:
    """The name of the sweep that this job is of, if it is of one: that of its folder, or its id among W&B's."""
    if not HydraConfig.initialized() or HydraConfig.get().mode != RunMode.MULTIRUN:
        return os.environ.get("WANDB_SWEEP_ID")
    return Path(HydraConfig.get().sweep.dir).name


def numbers(results: Results) -> dict[str, float]:
    """Final numbers of a run, under the names of its curves where it has some.

    ``metric`` is the one that counts for the task, so that runs of several tasks fit into one plot.
    """
    found: dict[str, float] = {"steps": results.steps, "wall_seconds": results.wall_seconds}
    if results.metrics:
        spent = {name: getattr(results, name) for name in ("relative_flops", "gflops", "baseline_gflops")}
        layers = {f"keep_ratio/layer_{i}": ratio for i, ratio in enumerate(results.keep_ratio)}
        spent["keep_ratio"] = fmean(results.keep_ratio)
        readings = {f"method/{name}": value for name, value in results.readings.items()}
        found |= {f"val/{name}": value for name, value in {**results.metrics, **spent, **layers, **readings}.items()}
        found["metric"] = results.metrics[results.monitor]
    found |= {f"masked/{name}": value for name, value in (results.masked_metrics or {}).items()}
    found |= {f"calibration/{name}": value for name, value in (results.calibration or {}).items()}
    for batch, timings in (results.latency or {}).items():
        found |= {f"latency/batch_{batch}/{name}_ms": ms["median_ms"] for name, ms in timings.items()}
        own = [ms["median_ms"] for name, ms in timings.items() if name not in BASELINES]
        found |= {f"latency/batch_{batch}/ms": ms for ms in own[:1]}
    for (size, baseline), ratio in speedups(results.to_dict()).items():
        found[f"latency/batch_{size}/speedup_over_{baseline}"] = ratio
    return found


def times(results: Results) -> tuple[list[str], list[list[Any]]]:
    """The latency table of a run: its columns and its rows, none if latency was not measured."""
    columns = ["batch size", "model", "median ms", "speedup of the model over it"]
    over = speedups(results.to_dict())
    rows = [
        [int(batch), name, ms["median_ms"], over.get((int(batch), name))]
        for batch, timings in (results.latency or {}).items()
        for name, ms in timings.items()
    ]
    return columns, rows


def sentences(texts: Sequence[SkimmedText]) -> tuple[list[str], list[list[Any]]]:
    """A table of sentences: its columns and its rows, where ``⁴`` behind a token says in how many layers it took part.

    Unmarked tokens took part in all of them.
    """
    columns = ["sentence", "prediction", "tokens", "keep ratio"]
    rows = [
        [terminal(text, marks=True).plain, text.prediction, len(text.tokens), fmean(text.rows) / len(text.tokens)]
        for text in texts
    ]
    return columns, rows


def markdown(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown, in which texts are texts whatever they hold."""

    def cell(value: Any) -> str:
        text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
        return re.sub(r"([\\`*_|~\[\]])", r"\\\1", html.escape(" ".join(text.split())))

    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(map(cell, line))} |" for line in lines)
