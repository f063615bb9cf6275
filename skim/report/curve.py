"""Curve of quality against cost: relative FLOPs on one side, measured time on the other."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from skim.report.found import load_curve
from skim.report.pareto import Axis, axes, front
from skim.report.picture import write_picture
from skim.report.runs import Results, Setting, Spread, aggregate

DENSE = "#7d8798"  # of the baselines
DROPPED = "layer_drop"
INK, GRID = "#6b7588", "#8f9aab40"  # legible on white and on black
ACROSS = 2  # panels in a row
# ten that differ not by red and green alone, and each with a marker of its own; then the lines' dashes change, and the
# markers, by which a setting that is alone on its line is told apart
COLORS = (
    *("#1f6fb4", "#d1495b", "#2a9d6f", "#8a5fbf", "#c77f1a"),
    *("#17a2b8", "#8c4a2f", "#e377c2", "#8f9a1a", "#14213d"),
)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p", "<", "h")
SHAPES = ("circle", "triangle", "diamond", "down", "cross", "left", "right")  # of the same, in a browser
DASHES = ("-", "--", ":", "-.")
LEGEND = 34  # characters of a line in the legend; longer ones are broken


def write_curves(results: Sequence[Results], folder: Path) -> list[Path]:
    """Write one figure per task, as ``curve-<task>.png`` and ``.svg``.

    Returns:
        The files written.
    """
    settings = aggregate(results)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for task in sorted({setting.task for setting in settings}):
        name = f"curve-{re.sub(r'[^A-Za-z0-9_.-]+', '_', task)}"
        written += write_picture(draw([setting for setting in settings if setting.task == task]), folder, name)
    return written


def write_curve(path: Path) -> list[Path]:
    """Draw the points of one ``curve.json`` as ``curve.png`` and ``.svg`` beside it.

    Returns:
        The files written.

    Raises:
        SkimError: a file that is not a ``curve.json`` of this version.
    """
    return write_picture(draw(aggregate(load_curve(path))), path.parent, path.stem)


def draw(settings: Sequence[Setting], costs: Sequence[Axis] = ()) -> Any:
    """Draw the settings of one task: a panel for each kind of cost, relative FLOPs first, two to a row.

    The costs are those given, or else all that are known, times over packed dense.

    Points of one line (see :class:`skim.report.runs.Setting`) and backbone are joined in the order of their cost; bars
    are standard deviations over seeds. The dense model is a star with a dashed line at its height, and grey as the
    other baseline, dropped layers. The stepped line is the Pareto front. A legend stands beside the panels, and all is
    read on light and dark.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure  # not pyplot: no backend is chosen, and nothing is left open

    found = costs or axes(settings, ("packed_dense",))
    lines = sorted({_line(s) for s in settings}, key=lambda line: (line[0] != "dense", line))
    labels = _labels(lines)
    texts = sum(label.count("\n") + 1 for label in labels) + 1
    down, across = -(-len(found) // ACROSS), min(len(found), ACROSS)
    height = max(3.6 * down, 0.7 + 0.2 * texts)  # inches: a line of the legend takes a fifth of one
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK)
    with mpl.rc_context({**ink, "figure.facecolor": "none", "axes.facecolor": "none"}):  # type: ignore[arg-type, dict-item]
        figure = Figure(figsize=(4.4 * across + 0.9 + 0.085 * _longest(labels), height), layout="constrained")
        panels = figure.subplots(down, across, squeeze=False, sharey=True).flatten()
        looks = list(map(Look.of, *_places(lines)))
        for panel, axis in zip(panels, found, strict=False):
            for line, label, look in zip(lines, labels, looks, strict=True):
                _plot(panel, [s for s in settings if _line(s) == line], axis.cost, label, look)
            best = [
                (cost.mean, s.metric.mean) for s in front(settings, axis.cost) if (cost := axis.cost(s)) and s.metric
            ]
            if best:
                panel.step(*zip(*best, strict=True), where="post", color=INK, linewidth=2.4, alpha=0.4, label="front")
            panel.set_xlabel(axis.title)
            panel.set_xlim(
                0, 1.03 * panel.get_xlim()[1]
            )  # the margin is of the range of the points, which may be small
            panel.grid(color=GRID, linewidth=0.6)
            panel.set_axisbelow(True)
            panel.spines[["top", "right"]].set_visible(False)
        for panel in panels[len(found) :]:
            panel.remove()
        for panel in panels[::across]:
            panel.set_ylabel(settings[0].monitor)
        named = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
        order = sorted(named, key=lambda label: label == "front")
        figure.legend([named[label] for label in order], order, loc="outside right upper", frameon=False, fontsize=9)
        figure.suptitle(settings[0].task, x=0.01, ha="left", fontweight="bold")
    return figure


def styles(methods: Sequence[str]) -> dict[str, dict[str, str]]:
    """Choose color and shape of each method, by name; the baselines are grey."""
    fixed = {"dense": {"color": DENSE, "shape": "star"}, DROPPED: {"color": DENSE, "shape": "square"}}
    others = [method for method in sorted({*methods}) if method not in fixed]
    chosen = {name: look for name, look in fixed.items() if name in methods}
    for place, method in enumerate(others):
        chosen[method] = {"color": COLORS[place % len(COLORS)], "shape": SHAPES[place % len(SHAPES)]}
    return chosen


class Look(NamedTuple):
    """Marker, color and dash that distinguish a line from the others."""

    marker: str
    color: str
    dash: str

    @classmethod
    def of(cls, place: int, method: str) -> Look:
        """Choose the look of the line at this place, counted among the dense ones, dropped layers, or all others."""
        if method == "dense":
            return cls("*", (DENSE, *COLORS)[place % (len(COLORS) + 1)], "none")
        times, place = divmod(place, len(COLORS))
        if method == DROPPED:
            return cls(MARKERS[(place + 1) % len(MARKERS)], DENSE, DASHES[1])
        return cls(MARKERS[(place + 3 * times) % len(MARKERS)], COLORS[place], DASHES[times % len(DASHES)])


def _places(lines: Sequence[tuple[str, str, str]]) -> tuple[list[int], list[str]]:
    """Count each line's place among those that look alike; returns also their methods."""
    kinds = [method if method in ("dense", DROPPED) else "" for method, *_ in lines]
    return [kinds[:i].count(one) for i, one in enumerate(kinds)], kinds


def _labels(lines: Sequence[tuple[str, str, str]]) -> list[str]:
    """Write the labels of the legend: the lines' differences, broken into lines of text."""
    several = len({backbone for *_, backbone in lines}) > 1
    labels = [", ".join(filter(None, (method, variant, backbone * several))) for method, variant, backbone in lines]
    wrap = textwrap.TextWrapper(LEGEND, subsequent_indent="  ", break_on_hyphens=False, break_long_words=False)
    return list(map(wrap.fill, labels))


def _longest(labels: Sequence[str]) -> int:
    """Count the characters of the longest line of text."""
    return max(len(line) for label in labels for line in label.splitlines())


def _line(setting: Setting) -> tuple[str, str, str]:
    """Name a setting's line: settings of equal lines are joined."""
    return setting.method, setting.line, setting.backbone


def _plot(
    panel: Any, settings: list[Setting], cost: Callable[[Setting], Spread | None], label: str, look: Look
) -> None:
    found = [(spent, s.metric) for s in settings if (spent := cost(s)) is not None and s.metric is not None]
    if not found:
        return
    found.sort(key=lambda point: point[0].mean)
    x, y = [spent.mean for spent, _ in found], [metric.mean for _, metric in found]
    bars = {"xerr": [spent.std or 0 for spent, _ in found], "yerr": [metric.std or 0 for _, metric in found]}
    marker, color, dash = look
    dense = dash == "none"
    style = {"marker": marker, "markersize": 12 if dense else 6, "color": color, "linewidth": 1.4, "elinewidth": 0.9}
    panel.errorbar(x, y, **bars, **style, linestyle=dash, label=label, capsize=2)
    if dense:
        for height in y:
            panel.axhline(height, color=color, linestyle="--", linewidth=0.8, zorder=0)
