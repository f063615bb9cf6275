"""``what=curve``: one trained model at several budgets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from omegaconf import DictConfig
from rich.console import Console
from rich.text import Text
from torch import nn

from skim.benchmark import machine
from skim.budgets import write_times
from skim.calibration import EXTREME, TOLERANCE, Batches, calibrate, spend
from skim.compression import walk_of
from skim.errors import SkimError
from skim.files import write_json
from skim.lightning.looks.loaded import Loaded, load, trainer_of
from skim.lightning.looks.metrics import measured
from skim.lightning.recipe import latency
from skim.methods import Method
from skim.report.curve import write_curve
from skim.report.found import CURVE
from skim.report.runs import MOVED, OWN
from skim.report.table import curve_table

SAMPLES = 512  # evaluation inputs on which decisions are moved to a target; as many as train.calibrate takes

TARGETS = (0.3, 0.4, 0.5, 0.6, 0.8)  # of a model for one budget
POINTS = 6  # of a range, from its smallest budget to its largest
SLACK = 0.001  # relative FLOPs within which a floor or a ceiling still is the target


def look(cfg: DictConfig, console: Console) -> None:
    """One trained model at several budgets, without training again: its decisions are shifted.

    A model for a range of budgets knows their shifts; what another then spends is found on evaluation inputs.

    Writes ``curve.json``, a list of results, and a picture of it, ``curve.png`` and ``curve.svg``.

    Raises:
        SkimError: a method whose decisions cannot be moved.
    """
    loaded = load(cfg)
    method = walk_of(loaded.parts.model).method
    if method.shift is None:
        raise SkimError(f"what=curve moves a method's decisions, and {method.name} takes none that could be moved.")
    points = along(loaded, cfg, console)
    path = loaded.folder / CURVE
    write_json(path, points)
    if cfg.timed and method.adapting.table is not None and cfg.shifts is None:
        console.print(Text(str(write_times(loaded.folder / "model", *times_of(points, loaded, cfg)))), soft_wrap=True)
    console.print()
    console.print(curve_table(points))
    for file in (path, *write_curve(path)):
        console.print(Text(str(file)), soft_wrap=True)


def along(loaded: Loaded, cfg: DictConfig, console: Console) -> list[dict[str, Any]]:
    """The points of a curve, each as a ``results.json``; the method is left as it was.

    At each target (:func:`targets_of`), or with each of ``cfg.shifts`` added to the shift that the run was saved with.
    What comes to the same as an earlier point is left out: at both, the model takes the same decisions.
    """
    model = loaded.parts.model
    method = walk_of(model).method
    trainer = trainer_of(loaded, console)
    precision = trainer.precision_plugin.forward_context
    inputs = loaded.parts.sampled(cfg.batch_size, SAMPLES)
    shift = method.shift
    assert shift is not None
    saved, standing = float(shift), method.aims_at
    grid = cfg.shifts is not None
    values = [float(value) for value in (cfg.shifts if grid else targets_of(cfg, method))]
    points: list[dict[str, Any]] = []
    seen: dict[float, str] = {}  # what was spent, and by which point
    try:
        with precision():
            before = spend(model, inputs)
        for i, value in enumerate(values, 1):
            name = f"shift {value:+g}" if grid else f"target {value:g}"
            note = None
            # the spinner turns in a thread of its own, so it ends before anything is timed
            with console.status(f"{name}, {i} of {len(values)}"), precision():
                if grid:
                    shift.fill_(saved + value)
                elif method.table is not None:
                    method.meet(value)
                else:
                    note = move(model, inputs, value)
                spent = spend(model, inputs)
            if spent in seen:
                said = f"{note or name}; left out, it comes to the same as {seen[spent]}"
                console.print(said, highlight=False, soft_wrap=True)
                continue
            seen[spent] = name
            point = measured(loaded, f"python evaluate.py ckpt={cfg.ckpt} what=curve", trainer)
            point.target = None if grid else value
            point.calibration = {"relative_flops_before": before, "shift": float(shift)}
            point.notes += [note] if note else []
            if cfg.timed:
                with precision():
                    point.latency = latency(loaded.parts, cfg.benchmark)
            points.append({**point.to_dict(), **({MOVED: value} if grid else {})})
            found = ", ".join(f"{metric} {score:.4f}" for metric, score in point.metrics.items())
            said = f"{note or name}: relative FLOPs {point.relative_flops:.3f}, {found}"
            console.print(said, highlight=False, soft_wrap=True)
    finally:
        if method.table is not None:
            method.meet(standing)
        shift.fill_(saved)
    return points


def times_of(
    points: Sequence[dict[str, Any]], loaded: Loaded, cfg: DictConfig
) -> tuple[str, dict[int, list[tuple[float, float]]]]:
    """The machine, and by batch size what a batch takes at each budget: milliseconds, the mean of a pass."""
    times = {}
    for size in map(int, cfg.benchmark.batch_sizes):
        batches = len(loaded.parts.sampled(size, cfg.benchmark.samples))
        own = [next(found for name, found in point["latency"][str(size)].items() if name in OWN) for point in points]
        pairs = zip(points, own, strict=True)
        times[size] = [(point["target"], found["median_ms"] / batches) for point, found in pairs]
    return machine(next(loaded.parts.model.parameters()).device), times


def targets_of(cfg: DictConfig, method: Method) -> Sequence[float]:
    """The targets that were asked for, else the usual ones, of a model for a range evenly spaced ones in it."""
    if cfg.targets is not None:
        return list(cfg.targets)
    if method.table is None:
        return TARGETS
    return [float(budget) for budget in np.linspace(method.table.low, method.table.high, POINTS).round(6)]


def move(model: nn.Module, inputs: Batches, target: float) -> str | None:
    """Shift the method's decisions to spend ``target``, or as near as they go; returns what is to be said of a miss."""
    method = walk_of(model).method
    assert method.shift is not None
    spent = calibrate(model, inputs, target)
    if abs(spent - target) <= SLACK:
        return None
    landed, above = float(method.shift), spent > target
    method.shift.fill_(-EXTREME if above else EXTREME)
    limit = spend(model, inputs)
    if (limit - target if above else target - limit) > SLACK:
        return f"target {target:g} cannot be reached, the {'floor' if above else 'ceiling'} is {limit:.3f}"
    method.shift.fill_(landed)
    return f"target {target:g} was missed, at {spent:.3f}" if abs(spent - target) > TOLERANCE else None
