"""Tables for terminals: layers, latencies, curves, and a run's results. Every number is read from its results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from skim.report.compared import runs_table
from skim.report.fitted import Column, Fitted, Naming, plain
from skim.report.runs import BASELINES, MOVED, OWN, Results

Latency = dict[str, dict[str, dict[str, float]]]  # batch size -> candidate -> a Timing; see skim.benchmark.compare
CANDIDATES = {
    "padded_hf": "padded Hugging Face",
    "packed_dense": "packed dense",
    "packed": "this model",
    "narrowed": "this model, narrowed",
    "masked": "this model, masked",
}
COUNTED = {"skipped": "bad rows skipped", "left_out": "rows left out by length", "truncated": "texts truncated"}


def layers_table(keep_ratio: Sequence[float]) -> Table:
    """Make a table of the keep ratio layer by layer, with a bar each."""
    table = plain()
    table.add_column("layer", justify="right")
    table.add_column("keep ratio", justify="right")
    table.add_column("")
    for layer, kept in enumerate(keep_ratio, 1):
        table.add_row(str(layer), f"{kept:.3f}", Text("━" * round(32 * kept), style="blue"))
    return table


def latency_table(latency: Latency) -> Table:
    """Make a table of times: every candidate at every batch size, in milliseconds and as ratios to two baselines."""
    table = plain(caption="one pass over the same batches, in turns; ratios are of medians")
    for name in ("batch", "model", "median ms", "min - max", "runs", "time /\ndense", "time /\npadded"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    for row in latency_rows(latency):
        table.add_row(*row)
    return table


def latency_rows(latency: Latency) -> list[list[str]]:
    """List the cells of :func:`latency_table`: batch size, model, median, range, runs, time over either baseline."""
    rows = []
    for batch_size, timings in sorted(latency.items(), key=lambda item: int(item[0])):
        for name in filter(timings.get, CANDIDATES):
            ms = timings[name]
            spread = f"{ms['min_ms']:.1f} - {ms['max_ms']:.1f}"
            row = [str(batch_size), CANDIDATES[name], f"{ms['median_ms']:.1f}", spread, str(ms["runs"])]
            for base in BASELINES:
                row.append(f"{ms['median_ms'] / timings[base]['median_ms']:.3f}" if base in timings else "-")
            rows.append(row)
    return rows


TRAINING_HEADS = ("training", "samples\n/ s", "/ padded", "median ms", "min - max", "runs")


def training_rows(training: dict[str, Any]) -> list[tuple[str, ...]]:
    """List speeds of training: samples per second, their ratio to padded Hugging Face, and the time of one pass.

    Args:
        training: of a ``results.json``; see :func:`skim.lightning.looks.timing.throughput`.
    """
    timings = training["timings"]
    found: list[tuple[str, ...]] = []
    for name in filter(timings.get, CANDIDATES):
        ms = timings[name]
        speed = ms["samples_per_second"]
        ratio = speed / timings["padded_hf"]["samples_per_second"]
        spread = f"{ms['min_ms']:.1f} - {ms['max_ms']:.1f}"
        cells = (f"{speed:.1f}", f"{ratio:.2f}", f"{ms['median_ms']:.1f}", spread, str(ms["runs"]))
        found.append((CANDIDATES[name], *cells))
    return found


def training_about(training: dict[str, Any]) -> str:
    """Describe how training was measured."""
    size, samples = training["batch_size"], training["samples"]
    return f"{samples} samples per pass in batches of {size}, in turns; ratios are of medians"


def training_table(training: dict[str, Any]) -> Table:
    """Make a table of :func:`training_rows` for a terminal."""
    table = plain(caption=training_about(training))
    for name in TRAINING_HEADS:
        table.add_column(name, justify="left" if name == "training" else "right", no_wrap=True)
    for row in training_rows(training):
        table.add_row(*row)
    return table


def curve_table(points: Sequence[Results]) -> Fitted:
    """Make a table of one trained model at several budgets, a line each, with times where they were measured.

    Args:
        points: of one ``curve.json``, at least one.
    """
    sizes = sorted(points[0]["latency"] or {}, key=int)
    notes = [note for point in points for note in point["notes"]]
    if sizes:
        notes.append(
            "b1 ms: median of one pass at batch size 1, in turns; / dense: over packed dense; / padded: over HF"
        )
    by = MOVED if points[0].get(MOVED) is not None else "target"
    asked = [f"{point[by]:+g}" if by == MOVED else f"{point[by]:g}" for point in points]
    marked = [f"{value} *" if point["notes"] else value for value, point in zip(asked, points, strict=True)]
    columns = [Column("relative\nFLOPs", [f"{point['relative_flops']:.3f}" for point in points])]
    for name in sorted(points[0]["metrics"], key=lambda name: name != points[0]["monitor"]):
        columns.append(Column(name, [f"{point['metrics'][name]:.4f}" for point in points]))
    for size in sizes:
        medians = [{name: timing["median_ms"] for name, timing in point["latency"][size].items()} for point in points]
        own = [next(times[name] for name in OWN if name in times) for times in medians]
        # two batch sizes shall fit 80 columns
        columns.append(Column(f"b{size}\nms", [f"{ms:.1f}" if ms < 1000 else f"{ms:.0f}" for ms in own]))
        for base, title in BASELINES.items():
            ratios = [ms / times[base] for ms, times in zip(own, medians, strict=True)]
            columns.append(Column(f"/\n{title}", [f"{ratio:.2f}" for ratio in ratios]))
    first = "shift by" if by == MOVED else "target"
    return Fitted([Naming([Column(first, marked)], {})], columns, notes=notes)


def print_run(
    results: Results,
    folder: Path,
    console: Console | None = None,
    files: Sequence[str] = ("results.json", "report.html"),
) -> None:
    """Print a run's results, and the files of its folder that hold them."""
    console = console or Console()
    console.print()
    if results["status"] == "done":
        console.print(runs_table([results]))
    else:
        console.print(Text("This run did not finish.", style="bold red"))
    others = {name: value for name, value in results["metrics"].items() if name != results["monitor"]}
    if others:
        console.print(Text(", ".join(f"{name} {value:.4f}" for name, value in others.items()), style="dim"))
    for line in ending(results):
        console.print(Text(line, style="dim"))
    positive = (results.get("classes") or {}).get("positive")
    if positive is not None and "f1" in results["metrics"]:
        console.print(Text(f"f1 is that of '{positive}'", style="dim"))
    for name, title in COUNTED.items():
        if results.get(name):
            counts = ", ".join(f"{count:,} ({part})" for part, count in results[name].items())
            console.print(Text(f"{title}: {counts}", style="dim"))
    leak = masked_gap(results)
    if leak is not None:
        console.print(Text(f"masked execution - packed execution: {leak:+.4f} {results['monitor']}", style="dim"))
    if results["method"] != "dense" and results["keep_ratio"]:
        console.print(layers_table(results["keep_ratio"]))
    if results["latency"]:
        console.print(latency_table(results["latency"]))
    if results.get("training"):
        console.print(training_table(results["training"]))
    for note in results.get("notes", []):
        console.print(Text(note, style="yellow"))
    for name in files:
        if (Path(folder) / name).is_file():
            console.print(Text(str(Path(folder) / name)), soft_wrap=True)


def ending(results: Results) -> list[str]:
    """Write lines on where training stopped early, and which of its weights were exported."""
    lines, monitor = [], results["monitor"]
    stopped, checkpoints = results.get("stopped_early"), results.get("checkpoints") or {}
    if stopped:
        lines.append(
            f"stopped early at step {stopped['step']:,} of {stopped['of']:,}: {monitor} had not risen for "
            f"{stopped['patience']} evaluation{'s' if stopped['patience'] > 1 else ''}"
        )
    if len(checkpoints) > 1:
        steps = (f"{name} (step {one['step']:,}) {one['metric']:.4f}" for name, one in checkpoints.items())
        lines.append(f"exported: {results['exported']}.ckpt; {monitor} of {', of '.join(steps)}")
    return lines


def masked_gap(results: Results) -> float | None:
    """Subtract the monitored metric from the same in masked execution; 0 where nothing leaks past the mask."""
    masked, monitor = results["masked_metrics"] or {}, results["monitor"]
    if monitor not in masked or monitor not in results["metrics"]:
        return None
    return masked[monitor] - results["metrics"][monitor]
