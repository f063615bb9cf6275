"""The curve of quality against cost: relative FLOPs on one side, measured time on the other."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from skim.report.runs import Results, Setting, Spread, aggregate, load_curve

COLORS = ("#1f6fb4", "#d1495b", "#2a9d6f", "#8a5fbf", "#c77f1a", "#4a5568")  # told apart without red and green alone
MARKERS = ("o", "s", "^", "D", "v", "P")


def write_curves(results: Sequence[Results], folder: Path) -> list[Path]:
    """One figure per task, as ``curve-<task>.png`` and ``.svg``.

    Returns:
        The files written.
    """
    settings = aggregate(results)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for task in sorted({setting.task for setting in settings}):
        name = f"curve-{re.sub(r'[^A-Za-z0-9_.-]+', '_', task)}"
        written += _save(draw([setting for setting in settings if setting.task == task]), folder, name)
    return written


def write_curve(path: Path) -> list[Path]:
    """The points of one ``curve.json`` as ``curve.png`` and ``.svg`` beside it.

    Returns:
        The files written.

    Raises:
        SkimError: a file that is no ``curve.json`` of this version.
    """
    return _save(draw(aggregate(load_curve(path))), path.parent, path.stem)


def _save(figure: Any, folder: Path, name: str) -> list[Path]:
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths


def draw(settings: Sequence[Setting]) -> Any:
    """The settings of one task: a panel for relative FLOPs, and one per batch size at which time was measured.

    Points of one method, backbone and variant are joined in the order of their cost; bars are standard deviations
    over seeds.
    The dense model is a star with a dashed line at its height.
    """
    from matplotlib.figure import Figure  # not pyplot: no backend is chosen, and nothing is left open

    batch_sizes = sorted(
        {size for setting in settings for size, baseline in setting.times if baseline == "packed_dense"}
    )
    axes: list[tuple[str, Callable[[Setting], Spread | None]]] = [("relative FLOPs", lambda s: s.relative_flops)]
    for size in batch_sizes:
        axes.append((f"time / packed dense, batch {size}", lambda s, size=size: s.times.get((size, "packed_dense"))))
    figure = Figure(figsize=(5.2 * len(axes), 3.9), layout="constrained")
    panels = figure.subplots(1, len(axes), squeeze=False, sharey=True)[0]
    lines = sorted({_line(s) for s in settings}, key=lambda line: (line[0] != "dense", line))
    shades = list(dict.fromkeys((method, variant) for method, variant, _ in lines if method != "dense"))
    backbones = list(dict.fromkeys(backbone for *_, backbone in lines))
    for panel, (title, cost) in zip(panels, axes, strict=True):
        for line in lines:
            method, variant, backbone = line
            points = [s for s in settings if _line(s) == line]
            label = ", ".join(filter(None, (method, variant, backbone if len(backbones) > 1 else "")))
            dense = method == "dense"
            marker = "*" if dense else MARKERS[backbones.index(backbone) % len(MARKERS)]
            color = COLORS[-1] if dense else COLORS[shades.index((method, variant)) % (len(COLORS) - 1)]
            _plot(panel, points, cost, label, marker, color)
        panel.set_xlabel(title)
        panel.set_xlim(0, 1.03 * panel.get_xlim()[1])  # the margin is of the range of the points, which may be small
        panel.grid(color="#dde2ea", linewidth=0.6)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].set_ylabel(settings[0].monitor)
    panels[0].legend(frameon=False)
    figure.suptitle(settings[0].task, x=0.01, ha="left", fontweight="bold")
    return figure


def _line(setting: Setting) -> tuple[str, str, str]:
    """Settings of equal lines are joined."""
    return setting.method, setting.variant, setting.backbone


def _plot(
    panel: Any, settings: list[Setting], cost: Callable[[Setting], Spread | None], label: str, marker: str, color: str
) -> None:
    found = [(spent, s.metric) for s in settings if (spent := cost(s)) is not None and s.metric is not None]
    if not found:
        return
    found.sort(key=lambda point: point[0].mean)
    x, y = [spent.mean for spent, _ in found], [metric.mean for _, metric in found]
    bars = {"xerr": [spent.std or 0 for spent, _ in found], "yerr": [metric.std or 0 for _, metric in found]}
    dense = marker == "*"
    style = {"marker": marker, "markersize": 12 if dense else 6, "color": color, "linewidth": 1.4, "elinewidth": 0.9}
    panel.errorbar(x, y, **bars, **style, linestyle="none" if dense else "-", label=label, capsize=2)
    if dense:
        for height in y:
            panel.axhline(height, color=color, linestyle="--", linewidth=0.8, zorder=0)
