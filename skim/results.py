"""``results.json``: the one schema that tables, sweeps and reports read."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from skim.files import read_json, write_json

SCHEMA = 1
PACKAGES = ("torch", "pytorch-lightning", "transformers", "hydra-core", "datasets", "torchmetrics")
NO_METRICS = ("keep_ratio/", "formula/", "method/")  # what else an evaluation logs
SPENT = ("relative_flops", "gflops", "baseline_gflops", "keep_ratio")


@dataclass
class Results:
    """The results of one run, as ``results.json`` holds them.

    Attributes:
        target: relative FLOPs that were asked for: a number, the smallest and the largest of a range, or ``None``; of a
            range, all numbers here are of the budget that was set.
        metrics: the task's, on the evaluation split, as the model will run.
        classes: the same class by class: ``positive`` is the one that f1 is of, ``confusion`` by label and prediction,
            or, of several labels, for each by whether it is given and said. ``None`` for a task without classes.
        by_length: the same by the length of the inputs, in groups of about as many: ``from`` and ``to`` (real tokens),
            ``rows``, ``tokens`` (their mean), ``score`` (mean share of a row that is right) and ``relative_flops``;
            empty for a task whose score is of all rows together.
        masked_metrics: the same in masked execution; ``None`` for dense. A gap between the two is a leak.
        parameters: that run, the method's too; ``None`` of runs from before they were counted.
        relative_flops: FLOPs / FLOPs of the dense backbone on the same real tokens.
        gflops: mean GFLOPs per sequence, ``baseline_gflops`` those of the dense backbone.
        keep_ratio: alive real tokens / real tokens entering each layer.
        latency: per batch size and candidate, milliseconds per pass; ``None`` if not measured.
        timed_on: ``machine`` and ``precision`` that latency is of, and the ``command`` if it was not the run's own;
            ``None`` if not measured.
        samples, truncated: rows of each part, and how many of them were longer than ``task.max_length``.
        skipped: bad rows of each part that ``task.on_bad_row=skip`` left out.
        left_out: rows of each part that ``task.length_min`` and ``task.length_max`` kept out.
        machine: device, threads and precision that metrics were taken with.
        calibration: relative FLOPs as training left them and after it, and the shift that landed on the target.
        formulas: ``relative_flops``, ``gflops`` and ``baseline_gflops`` by each published formula that was asked for.
        readings: the method's state at the end, such as LTP's thresholds.
        training: training throughput beside dense padded training; ``None`` if not measured.
        depth: mean layers by kind of token, see :class:`skim.analysis.depth.Depths`; ``None`` if not measured.
        redundancy: layers and neurons that suffice, see :mod:`skim.analysis.redundancy.analysis`; likewise.
        skip: the metric with layers left out, see :mod:`skim.lightning.looks.skip`; ``None`` if not measured.
        steps: optimizer steps that were trained.
        steps_skipped: how many of them a loss or gradient that is not finite kept from being made, see
            ``train.nonfinite``.
        stopped_early: ``step`` at which ``callbacks.patience`` ended the training, ``of`` how many it would have had,
            and that ``patience``, in evaluations; ``None`` if it did not.
        exported: the checkpoint whose weights were measured and are in ``model/``: ``best`` or ``last``.
        checkpoints: by that name ``step``, ``metric`` (the monitored one) and ``relative_flops``, each on its target;
            ``best`` is there if it is of another step than ``last``, and was not ruled out by ``callbacks.export``.
        notes: what a reader must know, such as a missed target.
        status: ``done``, or ``failed`` with the reason in ``notes``.
    """

    task: str
    method: str
    backbone: str
    seed: int
    target: float | list[float] | None
    command: str
    config: dict[str, Any]
    status: str = "failed"
    monitor: str = ""
    metrics: dict[str, float] = field(default_factory=dict)
    classes: dict[str, Any] | None = None
    by_length: list[dict[str, float]] = field(default_factory=list)
    masked_metrics: dict[str, float] | None = None
    parameters: int | None = None
    relative_flops: float = 1.0
    gflops: float = 0.0
    baseline_gflops: float = 0.0
    keep_ratio: list[float] = field(default_factory=list)
    latency: dict[str, Any] | None = None
    timed_on: dict[str, str] | None = None
    samples: dict[str, int] = field(default_factory=dict)
    truncated: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    calibration: dict[str, float] | None = None
    formulas: dict[str, dict[str, float]] = field(default_factory=dict)
    readings: dict[str, float] = field(default_factory=dict)
    training: dict[str, Any] | None = None
    depth: dict[str, Any] | None = None
    redundancy: dict[str, Any] | None = None
    skip: dict[str, Any] | None = None
    steps: int = 0
    steps_skipped: int = 0
    stopped_early: dict[str, int] | None = None
    exported: str = "last"
    checkpoints: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    wall_seconds: float = 0.0
    schema: int = SCHEMA
    versions: dict[str, str] = field(default_factory=dict)
    git_commit: str | None = None

    @classmethod
    def of(cls, cfg: DictConfig, task: str, command: str) -> Results:
        """Results with all that is known before the run."""
        from skim.methods import method_name  # here: reports read results without torch

        config: Any = OmegaConf.to_container(cfg, resolve=True)
        return cls(
            task=task,
            method=method_name(cfg.method._target_),
            backbone=cfg.backbone.name,
            seed=cfg.seed,
            target=config["method"].get("target"),
            command=command,
            config=config,
            versions=versions(),
            git_commit=git_commit(),
        )

    @staticmethod
    def metrics_of(values: Mapping[str, float]) -> dict[str, float]:
        """The task's metrics among what Lightning logged."""
        named = {name.split("/", 1)[1]: value for name, value in values.items()}
        return {name: value for name, value in named.items() if name not in SPENT and not name.startswith(NO_METRICS)}

    def take(self, values: Mapping[str, float], monitor: str) -> None:
        """Read an evaluation's logged values, ``val/...`` or ``test/...``."""
        named = {name.split("/", 1)[1]: value for name, value in values.items()}
        self.monitor = monitor
        self.metrics = self.metrics_of(values)
        self.relative_flops = named["relative_flops"]
        self.gflops, self.baseline_gflops = named["gflops"], named["baseline_gflops"]
        self.readings = {name[7:]: value for name, value in named.items() if name.startswith("method/")}
        for name, value in named.items():
            if name.startswith("formula/"):
                _, formula, what = name.split("/")
                self.formulas.setdefault(formula, {})[what] = value
        layers = sum(name.startswith("keep_ratio/layer_") for name in named)
        self.keep_ratio = [named[f"keep_ratio/layer_{i}"] for i in range(layers)]

    def count(self, report: Mapping[str, Mapping[str, int]]) -> None:
        """Read what a task reports of its rows."""
        self.samples = dict(report["rows"])
        self.truncated = {part: count for part, count in report["truncated"].items() if count}
        self.skipped = {part: count for part, count in report["skipped"].items() if count}
        self.left_out = {part: count for part, count in report["left_out"].items() if count}

    def to_dict(self) -> dict[str, Any]:
        """As JSON's types."""
        return asdict(self)

    @classmethod
    def read(cls, folder: Path) -> Results:
        """The results that a finished run has left in its folder."""
        content = read_json(folder / "results.json")
        return cls(**{one.name: content[one.name] for one in fields(cls) if one.name in content})

    def write(self, folder: Path) -> None:
        """Write ``results.json`` at once or not at all: a sweep that is resumed trusts what it finds."""
        write_json(folder / "results.json", self.to_dict())


def versions() -> dict[str, str]:
    """Versions of Python and the packages that matter, and the machine's architecture."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for package in ("skim", *PACKAGES):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the code that runs, ``-dirty`` behind it if files were changed; ``None`` outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():  # an installed package may lie in somebody else's repository
        return None
    try:
        head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
        status = subprocess.run(
            ["git", "status", "--porcelain", "-uno"], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("-dirty" if status.stdout.strip() else "")
