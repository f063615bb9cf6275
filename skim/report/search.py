"""Front of a search over the lengths of layers: a table of it, and a picture of all that was rated."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from skim.report.fitted import plain
from skim.report.picture import write_picture

BY = {"agreement": "minus the distance to its own answers with all tokens", "metric": "the task's metric"}


def search_table(search: dict[str, Any]) -> Table:
    """Make a table of the front, a line each: relative FLOPs, metric, score, and the share that stays in each layer.

    Args:
        search: of a ``search.json``; see :mod:`skim.lightning.looks.search`.
    """
    by = BY[search["options"]["by"]]
    table = plain(
        f"metric and FLOPs on the evaluation split; score, by which the {search['rated']} were searched: {by}, on "
        f"{search['rows']}"
    )
    for name in ("relative\nFLOPs", search["metric"], "score"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("share of the tokens that leaves each layer, in %")
    for point in search["points"]:
        shares = " ".join(f"{100 * share:.0f}" for share in point["lengths"])
        table.add_row(f"{point['relative_flops']:.3f}", f"{point['metric']:.4f}", f"{point['score']:.4f}", shares)
    return table


def write_search(search: dict[str, Any], rated: Sequence[tuple[float, float]], folder: Path) -> list[Path]:
    """Draw all that was rated with the first generation and the front, and the lengths of the front by layer.

    Args:
        search: of a ``search.json``.
        rated: relative FLOPs and score of each, in their order.
        folder: to write into.

    Returns:
        The files written, ``search.png`` and ``search.svg``.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # not pyplot: no backend is chosen, and nothing is left open

    figure = Figure(figsize=(9.2, 3.6), layout="constrained")
    cloud, layers = figure.subplots(1, 2)
    first = rated[: search["first_generation"]]
    cloud.scatter(*zip(*rated, strict=True), color="#8f9aab", s=8, label="rated")
    cloud.scatter(*zip(*first, strict=True), color="#d1495b", s=14, label="first generation")
    line = [(point["relative_flops_where_searched"], point["score"]) for point in search["points"]]
    cloud.plot(*zip(*line, strict=True), color="#1f6fb4", marker="o", markersize=4, label="front")
    cloud.set_xlabel(f"relative FLOPs, {search['rows']}")
    cloud.set_ylabel("score")
    cloud.legend(frameon=False, fontsize=8)
    for point in search["points"]:
        shares = [1.0, *point["lengths"]]
        color = colormaps["viridis"](0.95 * (1 - point["relative_flops"]))
        layers.step(range(len(shares)), shares, where="post", color=color, label=f"{point['relative_flops']:.2f}")
    layers.set_xlabel("behind so many layers")
    layers.set_ylabel("share of the tokens that stays")
    layers.xaxis.get_major_locator().set_params(integer=True)
    layers.legend(title="relative FLOPs", frameon=False, fontsize=8, title_fontsize=8)
    for axes in (cloud, layers):
        axes.spines[["top", "right"]].set_visible(False)
    return write_picture(figure, folder, "search")
