"""The table that rows of a benchmark are printed as."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from skim.benchmark.rows import Row

Cell = Callable[[Row], float | int | None]


def rows_table(rows: Sequence[Row], title: str, left_out: Sequence[str], machine: str, clock: str = "wall") -> Group:
    """One line per candidate: cost, relative times, and work; below it who could not be timed, and the machine.

    Columns that no row has a number for are left away. Without a GPU's columns it fits 80 characters.

    Args:
        rows: of one :func:`~skim.benchmark.rows.measure`; the first two are padded Hugging Face and packed dense.
        title: of the table.
        left_out: lines on peers that could not be had.
        machine: that it was measured on.
        clock: that it was measured with.
    """
    padded, dense = rows[0].timing.median_ms, rows[1].timing.median_ms
    columns: list[tuple[str, str, Cell]] = [
        ("rel.\nFLOPs", ".3f", lambda row: row.relative_flops),
        ("time /\ndense", ".3f", lambda row: row.timing.median_ms / dense),
        ("time /\npadded", ".3f", lambda row: row.timing.median_ms / padded),
        ("/ FLOPs\nx dense", ".2f", lambda row: row.over_flops),
        ("median\nms", ".1f", lambda row: row.timing.median_ms),
        ("spread\n%", ".0f", lambda row: 100 * (row.timing.max_ms - row.timing.min_ms) / row.timing.median_ms),
        ("ops", "d", lambda row: row.operations),
        ("host\nreads", "d", lambda row: row.host_reads),
        ("kernels", "d", lambda row: row.kernels),
        ("busy\nms", ".2f", lambda row: row.busy_ms),
        ("score", ".4f", lambda row: row.score),
    ]
    table = Table(title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("candidate", overflow="fold")
    shown = [column for column in columns if any(column[2](row) is not None for row in rows)]
    for head, _, _ in shown:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        values = ((cell(row), form) for _, form, cell in shown)
        table.add_row(row.candidate, *("-" if value is None else format(value, form) for value, form in values))
    seconds = "CPU seconds of the process" if clock == "cpu" else "wall time"
    about = [
        f"{seconds} of one pass, in turns; ratios are of medians, spread is (max - min) / median",
        "/ FLOPs x dense: time / (relative FLOPs x packed dense's), 1 where every FLOP saved is time saved",
        "ops and host reads: of one forward, counted without views and allocations",
        machine,
        *(f"not timed: {line}" for line in left_out),
    ]
    return Group(table, Text("\n".join(about), style="dim italic"))
