"""Pictures of the section ``redundancy``: similarity, scores and redundancy of layers, and the neurons that are kept.

Each is drawn once, for a file beside the results and for the page; its words and lines are read on light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from skim.files import replacing, write_text

Section = dict[str, Any]
COLORS = ("#1f6fb4", "#d1495b", "#2a9d6f", "#8a5fbf", "#c77f1a")
QUIET, LINE, INK = "#6b7588", "#8f9aab40", "#22304a"
SHADES = ("#e9f0f9", "#7fb0dc", "#1f6fb4", "#123a63")  # of 0 to 1
KINDS = {"minibatch": "linear, unbiased over batches", "debiased": "linear, debiased", "linear": "linear", "rbf": "RBF"}
NUMBERED = 14  # rows or columns of cells above which the numbers in them are left out


class Drawing(NamedTuple):
    """A matplotlib figure, and the line below it."""

    figure: Any
    caption: str


def drawings(section: Section) -> dict[str, Drawing]:
    """Draw what the section has, by the names of the files."""
    drawn = {"similarity": similarity(section), "layers": layers(section)}
    drawn |= {"clusters": clusters(section), "neurons": neurons(section)}
    return {name: drawing for name, drawing in drawn.items() if drawing is not None}


def save(drawing: Drawing, path: Path) -> list[Path]:
    """Write a picture as PNG and SVG."""
    paths = [path.with_suffix(".png"), path.with_suffix(".svg")]
    with replacing(paths[0]) as part:
        drawing.figure.savefig(part, dpi=160)
    write_text(paths[1], _svg(drawing.figure, path.name))
    return paths


def inline(drawing: Drawing, name: str) -> str:
    """Write a picture as an element of a page, which fetches nothing."""
    svg = _svg(drawing.figure, name)
    svg = re.sub(r' xmlns(:xlink)?="[^"]*"', "", svg[svg.index("<svg") :])
    return svg.replace("<svg", f'<svg class="drawing" role="img" aria-label="{name}"', 1)


def similarity(section: Section) -> Drawing | None:
    """Shade the similarity of every layer with every other."""
    found = {kind: matrix for kind in KINDS if (matrix := section["similarity"].get(kind))}
    if not found:
        return None
    kind, matrix = next(iter(found.items()))
    numbers, degenerate = section["layers"]["numbers"], section["similarity"]["degenerate"]
    values = np.array(matrix, dtype=float)  # null becomes NaN
    empty = [numbers.index(number) for number in degenerate]
    values[empty], values[:, empty] = np.nan, np.nan
    side = 1.2 + 0.38 * min(len(numbers), NUMBERED)
    figure, axes = _axes(side, side)
    _cells(axes, values, numbers, numbers, ".2f")
    axes.set(xlabel="layer", ylabel="layer", aspect="equal")
    caption = f"Similarity of layers by CKA ({KINDS[kind]}); layer 0 is the embeddings."
    if degenerate:
        caption += f" Layer {_listed(degenerate)}: states that are the same for all rows are similar to nothing."
    return Drawing(figure, caption)


def layers(section: Section) -> Drawing | None:
    """Plot the score of every layer alone, and of layers 0 to k together, beside that of all."""
    found = section["layers"]
    if not found["single"]:
        return None
    figure, axes = _axes(6.4, 3.2)
    oracle = found["oracle"]["dev"]
    axes.axhline(oracle, color=QUIET, linestyle="--", linewidth=1, label="all layers")
    lines = (("up_to", "layers 0 to k", COLORS[0], "o"), ("single", "layer k alone", COLORS[4], "s"))
    for name, label, color, marker in lines:
        x, y = [one["number"] for one in found[name]], [one["dev"] for one in found[name]]
        axes.plot(x, y, color=color, marker=marker, markersize=4.5, linewidth=1.6, label=label)
    if control := section["control"]:
        x, y = [one["number"] for one in control], [one["dev"] for one in control]
        axes.plot(x, y, color=COLORS[3], marker="x", markersize=4.5, linewidth=1, label="on the control task")
    if section["chance"] is not None:
        axes.axhline(section["chance"]["dev"], color=QUIET, linestyle=":", linewidth=1, label="most frequent label")
    chosen: dict[int, list[str]] = {}
    for one in sorted(found["selected"], key=lambda one: one["delta"]):
        chosen.setdefault(one["up_to"], []).append(f"{one['delta']:g}")
    for number, deltas in chosen.items():
        axes.axvline(number, color=COLORS[0], linestyle=":", linewidth=1)
        text = f"{', '.join(deltas)} %"
        axes.annotate(text, (number, 0), (4, 4), axes.get_xaxis_transform(), "offset points", color=COLORS[0])
    axes.set(xlabel="layer k", ylabel=f"{section['metric']} on dev", xticks=found["numbers"])
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    _legend(axes)
    return Drawing(figure, "Scores of probes; dotted: the first k that suffices at a delta.")


def clusters(section: Section) -> Drawing | None:
    """Shade the share of redundant neurons, by layer and over the whole network, at every threshold."""
    found = section["clustering"]
    if not found["thresholds"]:
        return None
    rows = [layer["redundant"] for layer in found["layers"]] + [[at["redundant"] for at in found["network"]]]
    names = [*(layer["number"] for layer in found["layers"]), "all"]
    thresholds = [f"{threshold:g}" for threshold in found["thresholds"]]
    figure, axes = _axes(1.4 + 0.42 * len(thresholds), 0.9 + 0.3 * len(rows))
    _cells(axes, np.array(rows, dtype=float), names, thresholds, ".2f")
    axes.axhline(len(rows) - 1, color=QUIET, linewidth=1)
    axes.set(xlabel="threshold of distance, 1 - |correlation|", ylabel="neurons of layer")
    constant = len(section["constant"]["neurons"])
    alone = f" {constant:,} neurons are constant, and each is a cluster of its own." if constant else ""
    return Drawing(figure, f"Share of redundant neurons.{_windows(found['network'])}{alone}")


def fewest(section: Section, delta: float) -> dict[str, Any] | None:
    """Find the smallest set of neurons that suffices at a delta beside all layers, over all thresholds of clusters."""
    found = [one for one in section["neurons"] if one["delta"] == delta and one.get("suffices", True)]
    return min(found, key=lambda one: len(one["neurons"]), default=None)


def neurons(section: Section) -> Drawing | None:
    """Plot how many neurons each layer keeps, in the smallest set at each delta."""
    deltas = {one["delta"] for one in section["neurons"]}
    best = {delta: found for delta in deltas if (found := fewest(section, delta)) is not None}
    if not best:
        return None
    numbers = section["layers"]["numbers"]
    figure, axes = _axes(6.4, 2.8)
    wide = 0.8 / len(best)
    for place, (delta, one) in enumerate(sorted(best.items())):
        count = len(one["neurons"])
        left = np.arange(len(numbers)) + (place - (len(best) - 1) / 2) * wide
        label = f"at {delta:g} %: {count:,} neuron{'s' * (count != 1)}"
        axes.bar(left, one["by_layer"], width=0.92 * wide, color=COLORS[place % len(COLORS)], label=label)
    axes.set_xticks(range(len(numbers)), numbers)
    axes.set(xlabel="layer", ylabel=f"neurons kept, of {section['layers']['width']:,}")
    axes.grid(axis="y", color=LINE, linewidth=0.6)
    _legend(axes)
    return Drawing(figure, "Neurons kept by layer: the smallest set that suffices at a delta.")


def _axes(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib as mpl
    from matplotlib.figure import Figure  # not pyplot: no backend is chosen, and nothing is left open

    frame: Any = dict.fromkeys(("axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), QUIET)
    with mpl.rc_context({**frame, "font.size": 9, "axes.axisbelow": True}):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _legend(axes: Any) -> None:
    """Name the lines or bars above the axes, where none of them is."""
    axes.legend(frameon=False, labelcolor=QUIET, loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0)


def _cells(axes: Any, values: np.ndarray, rows: Sequence[object], columns: Sequence[object], digits: str) -> None:
    """Draw numbers of about 0 to 1 as shaded cells, from the top; NaN is an empty one."""
    from matplotlib.colors import LinearSegmentedColormap

    shades = LinearSegmentedColormap.from_list("", SHADES)
    axes.pcolormesh(np.ma.masked_invalid(values), cmap=shades, vmin=0, vmax=1, edgecolors="#ffffff30", linewidth=0.5)
    for (row, column), value in np.ndenumerate(values):
        if max(values.shape) <= NUMBERED and np.isfinite(value):
            text = format(value, digits).replace("0.", ".", 1)
            color = "#ffffff" if value > 0.45 else INK
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=color, fontsize=7.5)
    axes.set_facecolor(LINE)
    axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
    axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
    axes.invert_yaxis()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)


def _windows(network: Sequence[dict[str, Any]]) -> str:
    """Say over how many layers clusters stretch, at the threshold nearest to the published 0.3."""
    at = min(network, key=lambda one: abs(one["threshold"] - 0.3))
    spans = {int(span): count for span, count in at["widths"].items()}
    total = sum(spans.values())
    if not total:
        return ""
    near = sum(count for span, count in spans.items() if span <= 2)
    return (
        f" At {at['threshold']:g} there are {total:,} clusters; {spans.get(1, 0) / total:.0%} lie within a layer, "
        f"{near / total:.0%} within two neighbours."
    )


def _listed(numbers: Sequence[int]) -> str:
    return " and ".join(filter(None, (", ".join(map(str, numbers[:-1])), str(numbers[-1]))))


def _svg(figure: Any, name: str) -> str:
    """Write a figure as SVG, its words as text, the same bytes each time."""
    import matplotlib as mpl

    buffer = io.StringIO()
    unnamed = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True, metadata=unnamed)
    return buffer.getvalue()
