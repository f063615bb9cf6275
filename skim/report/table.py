"""Tables for terminals: runs side by side, layers, latencies. Every number is read from a ``results.json``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from skim.report.runs import MOVED, OWN, Results, Setting, Spread, aggregate

Latency = dict[str, dict[str, dict[str, float]]]  # batch size -> candidate -> a Timing; see skim.benchmark.compare
CANDIDATES = {
    "padded_hf": "padded Hugging Face",
    "packed_dense": "packed dense",
    "packed": "this model",
    "narrowed": "this model, narrowed",
    "masked": "this model, masked",
}
COUNTED = {"skipped": "bad rows skipped", "left_out": "rows left out by length", "truncated": "texts truncated"}
BASELINES = {"packed_dense": "dense", "padded_hf": "padded"}


def runs_table(results: Sequence[Results]) -> Table:
    """One line per setting, mean ± standard deviation where it has several seeds.

    Speedup is measured: the median time of the packed dense model, or of padded Hugging Face, over the median time of
    the model, at a batch size. One task with two batch sizes fits 80 columns.
    """
    settings = aggregate(results)
    table = plain()
    columns = _columns(settings)
    for name in columns:
        words = name in ("task", "backbone", "method")
        table.add_column(name, justify="left" if words else "right", no_wrap=words, overflow="fold")
    for setting in settings:
        cells = (Text(cell(setting)) for cell in columns.values())
        table.add_row(*cells, style="dim" if setting.method == "dense" else "")
    table.caption = "\n".join(_notes(settings, failed=sum(run["status"] != "done" for run in results))) or None
    return table


def _columns(settings: list[Setting]) -> dict[str, Callable[[Setting], str]]:
    """What the settings differ in and what was measured: a column's title, and what stands in its cells."""
    columns: dict[str, Callable[[Setting], str]] = {
        "task": lambda s: s.task,
        "backbone": lambda s: s.backbone,
        "method": lambda s: s.name,
        "seeds": lambda s: ",".join(map(str, s.seeds)),
    }
    for name in ("task", "backbone", "seeds"):
        if len({getattr(setting, name) for setting in settings}) < 2:
            del columns[name]
    monitors = {setting.monitor for setting in settings}
    if len(monitors) == 1:
        columns[monitors.pop()] = lambda s: _text(s.metric, 4)
    else:
        columns["metric"] = lambda s: f"{s.monitor} {_text(s.metric, 4)}"
    columns["keep\nratio"] = lambda s: "-" if s.keep_ratio is None else f"{s.keep_ratio.mean:.3f}"
    columns["relative\nFLOPs"] = lambda s: _text(s.relative_flops)
    for size, baseline in sorted({key for setting in settings for key in setting.speedups}):
        key = (size, baseline)
        cell = lambda s, key=key: f"{s.speedups[key].mean:.2f}" if key in s.speedups else "-"  # noqa: E731
        columns[f"b{size} vs\n{BASELINES[baseline]}"] = cell
    return columns


def _notes(settings: list[Setting], failed: int) -> list[str]:
    """What a reader needs to know to read the columns."""
    notes = []
    seeds = {setting.seeds for setting in settings}
    if len(seeds) == 1 and len(settings[0].seeds) > 1:
        notes.append(f"mean ± standard deviation over seeds {', '.join(map(str, settings[0].seeds))}")
    if any(setting.speedups for setting in settings):
        notes.append("b1 vs dense: measured speedup at batch 1 over packed dense; padded: Hugging Face")
    if failed:
        notes.append(f"runs that failed, left out: {failed}")
    return notes


def layers_table(keep_ratio: Sequence[float]) -> Table:
    """Keep ratio layer by layer, with a bar each."""
    table = plain()
    table.add_column("layer", justify="right")
    table.add_column("keep ratio", justify="right")
    table.add_column("")
    for layer, kept in enumerate(keep_ratio, 1):
        table.add_row(str(layer), f"{kept:.3f}", Text("━" * round(32 * kept), style="blue"))
    return table


def latency_table(latency: Latency) -> Table:
    """Measured times: every candidate at every batch size, as milliseconds and as a ratio to the two baselines."""
    table = plain(caption="one pass over the same batches, in turns; ratios are of medians")
    for name in ("batch", "model", "median ms", "min - max", "runs", "time /\ndense", "time /\npadded"):
        table.add_column(name, justify="left" if name == "model" else "right", no_wrap=True)
    for row in latency_rows(latency):
        table.add_row(*row)
    return table


def latency_rows(latency: Latency) -> list[list[str]]:
    """The cells of :func:`latency_table`: batch size, model, median, range, runs, and time over either baseline."""
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


def training_table(training: dict[str, Any]) -> Table:
    """Training side by side: samples per second, as a ratio to padded Hugging Face too, and the time of one pass.

    Args:
        training: of a ``results.json``; see :func:`skim.lightning.evaluation.throughput`.
    """
    timings = training["timings"]
    size, samples = training["batch_size"], training["samples"]
    table = plain(caption=f"{samples} samples per pass in batches of {size}, in turns; ratios are of medians")
    for name in ("training", "samples\n/ s", "/ padded", "median ms", "min - max", "runs"):
        table.add_column(name, justify="left" if name == "training" else "right", no_wrap=True)
    for name in filter(timings.get, CANDIDATES):
        ms = timings[name]
        speed = ms["samples_per_second"]
        ratio = speed / timings["padded_hf"]["samples_per_second"]
        spread = f"{ms['min_ms']:.1f} - {ms['max_ms']:.1f}"
        cells = (f"{speed:.1f}", f"{ratio:.2f}", f"{ms['median_ms']:.1f}", spread, str(ms["runs"]))
        table.add_row(CANDIDATES[name], *cells)
    return table


def curve_table(points: Sequence[Results]) -> Table:
    """One trained model at several budgets, a line each, with times where they were measured.

    Args:
        points: of one ``curve.json``, at least one.
    """
    sizes = sorted(points[0]["latency"] or {}, key=int)
    notes = [note for point in points for note in point["notes"]]
    if sizes:
        notes.append(
            "b1 ms: median of one pass at batch size 1, in turns; / dense: over packed dense; / padded: over HF"
        )
    table = plain(caption="\n".join(notes) or None)
    first = "target" if points[0].get(MOVED) is None else "shift by"
    metrics = sorted(points[0]["metrics"], key=lambda name: name != points[0]["monitor"])
    times = (name for size in sizes for name in (f"b{size}\nms", "/\ndense", "/\npadded"))
    for name in (first, "relative\nFLOPs", *metrics, *times):
        table.add_column(name, justify="right", no_wrap=True)
    for point in points:
        asked = f"{point['target']:g}" if point.get(MOVED) is None else f"{point[MOVED]:+g}"
        cells = [f"{asked} *" if point["notes"] else asked, f"{point['relative_flops']:.3f}"]
        cells += [f"{point['metrics'][name]:.4f}" for name in metrics]
        for size in sizes:
            times_of = {name: timing["median_ms"] for name, timing in point["latency"][size].items()}
            ms = next(times_of[own] for own in OWN if own in times_of)
            cells.append(f"{ms:.1f}" if ms < 1000 else f"{ms:.0f}")  # two batch sizes shall fit 80 columns
            cells += [f"{ms / times_of[base]:.2f}" for base in BASELINES]
        table.add_row(*cells)
    return table


def print_run(results: Results, folder: Path, console: Console | None = None) -> None:
    """What a run came to, and where it left its files."""
    console = console or Console()
    console.print()
    if results["status"] == "done":
        console.print(runs_table([results]))
    else:
        console.print(Text("This run did not finish.", style="bold red"))
    others = {name: value for name, value in results["metrics"].items() if name != results["monitor"]}
    if others:
        console.print(Text(", ".join(f"{name} {value:.4f}" for name, value in others.items()), style="dim"))
    for name, what in COUNTED.items():
        if results.get(name):
            counts = ", ".join(f"{count:,} ({part})" for part, count in results[name].items())
            console.print(Text(f"{what}: {counts}", style="dim"))
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
    for name in ("results.json", "report.html"):
        if (Path(folder) / name).is_file():
            console.print(Text(str(Path(folder) / name)), soft_wrap=True)


def masked_gap(results: Results) -> float | None:
    """The monitored metric in masked execution minus the same as it runs; 0 where nothing leaks past the mask."""
    masked, monitor = results["masked_metrics"] or {}, results["monitor"]
    if monitor not in masked or monitor not in results["metrics"]:
        return None
    return masked[monitor] - results["metrics"][monitor]


def plain(caption: str | None = None) -> Table:
    """An empty table in the look of all of them."""
    return Table(
        caption=caption, box=SIMPLE_HEAD, caption_justify="left", show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )


def _text(spread: Spread | None, digits: int = 3) -> str:
    return "-" if spread is None else spread.text(digits)
