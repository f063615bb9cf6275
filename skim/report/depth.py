"""Mean depth by kind of token: a table, and a bar chart of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from skim.report.fitted import plain
from skim.report.picture import write_picture

SECTIONS = {"tokens": "", "corrupted": "corrupted", "tags": "tag"}
WIDTH = 20  # characters of the longest bar


def rows(depth: dict[str, Any]) -> list[tuple[str, str, float, int]]:
    """List section, kind, mean and count; tags by falling mean, the rest as they come."""
    found = []
    for section in SECTIONS:
        kinds = depth.get(section, {})
        order = sorted(kinds, key=lambda kind: -kinds[kind]["mean"]) if section == "tags" else list(kinds)
        found += [(section, kind, kinds[kind]["mean"], kinds[kind]["count"]) for kind in order]
    return found


def depth_table(depth: dict[str, Any]) -> Table:
    """Make a table of one line per kind of token: mean layers, a bar, and the count."""
    table = plain(f"layers that tokens went through, of {depth['layers']}; a word's is the mean over its tokens")
    for name, justify in (("tokens", "left"), ("layers", "right"), ("", "left"), ("count", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    last = None
    for section, kind, mean, count in rows(depth):
        if last is not None and section != last:
            table.add_section()
        last = section
        table.add_row(kind, f"{mean:.2f}", "━" * round(WIDTH * mean / depth["layers"]), str(count))
    return table


def write_depth(depth: dict[str, Any], folder: Path) -> list[Path]:
    """Draw the bar chart as ``depth.png`` and ``depth.svg``.

    Returns:
        The files written.
    """
    from matplotlib.figure import Figure  # not pyplot: no backend is chosen, and nothing is left open

    found = rows(depth)
    figure = Figure(figsize=(6.4, 0.8 + 0.24 * len(found)), layout="constrained")
    axes = figure.add_subplot()
    colors = {"tokens": "#1f6fb4", "corrupted": "#d1495b", "tags": "#2a9d6f"}
    heights = range(len(found))
    axes.barh(heights, [mean for *_, mean, _ in found], color=[colors[section] for section, *_ in found])
    axes.set_yticks(heights, [kind for _, kind, *_ in found])
    axes.invert_yaxis()
    axes.set_xlim(0, depth["layers"])
    axes.set_xlabel("mean number of layers")
    for height, (*_, mean, _) in zip(heights, found, strict=True):
        axes.annotate(f"{mean:.2f}", (mean, height), xytext=(3, 0), textcoords="offset points", va="center", size=8)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return write_picture(figure, folder, "depth")
