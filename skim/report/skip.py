"""Layers left out without training: a table of what is left of the metric, and a picture of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from skim.report.fitted import plain
from skim.report.picture import write_picture


def skip_table(skip: dict[str, Any]) -> Table:
    """Make a table of one line per set of layers: the metric, what it lost, and relative FLOPs.

    Args:
        skip: of a ``results.json``; see :mod:`skim.lightning.looks.skip`.
    """
    table = plain(f"layers counted from 0, of {skip['layers']}; nothing was trained without those that are left out")
    table.add_column("layers that run")
    for name in (skip["metric"], "change", "relative\nFLOPs"):
        table.add_column(name, justify="right")
    whole, last = skip["cases"][0]["score"], "all"
    for case in skip["cases"]:
        kind = case["case"].split()[0]
        if kind != last:
            table.add_section()
        last = kind
        cells = (f"{case['score']:.4f}", f"{case['score'] - whole:+.4f}", f"{case['relative_flops']:.3f}")
        table.add_row(case["case"], *cells)
    return table


def write_skip(skip: dict[str, Any], folder: Path) -> list[Path]:
    """Draw what each layer alone is worth, and what is left of the metric with the first and the last k layers.

    Returns:
        The files written, ``skip.png`` and ``skip.svg``.
    """
    from matplotlib.figure import Figure  # not pyplot: no backend is chosen, and nothing is left open

    scores = {case["case"]: case["score"] for case in skip["cases"]}
    layers, whole = skip["layers"], scores["all"]
    figure = Figure(figsize=(8.4, 3.2), layout="constrained")
    one, some = figure.subplots(1, 2)
    one.bar(range(layers), [whole - scores[f"without {i}"] for i in range(layers)], color="#1f6fb4")
    one.axhline(0, color="#444444", linewidth=0.8)
    one.set_xlabel("layer left out")
    one.set_ylabel(f"{skip['metric']} lost")
    for kind, color in (("first", "#1f6fb4"), ("last", "#d1495b")):
        line = [scores[f"{kind} {k}"] for k in range(1, layers)]
        some.plot(range(1, layers + 1), [*line, whole], marker="o", color=color, label=f"the {kind} ones")
    some.axhline(whole, color="#444444", linewidth=0.8, linestyle="--")
    some.set_xlabel("layers that run")
    some.set_ylabel(skip["metric"])
    some.legend(frameon=False)
    for axes in (one, some):
        axes.xaxis.get_major_locator().set_params(integer=True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    return write_picture(figure, folder, "skip")
