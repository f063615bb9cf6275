"""Lines of the table, from the process that makes them to the one that prints them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.box import SIMPLE_HEAD
from rich.table import Table

MARK = "ROW "  # before a line of a part's output that is a row


@dataclass(frozen=True)
class Row:
    """One line: a law, a kernel, or a candidate of one shape.

    Attributes:
        part: of the command.
        name: of the law or candidate.
        verdict: ``passed``, ``met``, or the reason why not; empty where nothing is asked.
        ms: median of a forward.
        ratio: time / padded Hugging Face.
        flops: relative.
        busy_ms: time in which the GPU computes.
        kernels: launched by the host or by graphs.
        reads: places at which the host waits for the device.
        graphs: captured.
        bound: asked of it, in words.
    """

    part: str
    name: str
    verdict: str = ""
    ms: float = math.nan
    ratio: float = math.nan
    flops: float = math.nan
    busy_ms: float = math.nan
    kernels: int = -1
    reads: int = -1
    graphs: int = -1
    bound: str = ""

    def line(self) -> str:
        """For the other process."""
        return MARK + json.dumps(asdict(self))

    @classmethod
    def of(cls, line: str) -> Row:
        """Back from :meth:`line`."""
        return cls(**json.loads(line[len(MARK) :]))

    @property
    def good(self) -> bool:
        """True if what was asked of it holds, or nothing was."""
        return self.verdict in ("", "met", "passed")


def table(rows: Sequence[Row], title: str) -> Table:
    """All rows, in the order in which they were made."""
    made = Table(title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("part", "what"):
        made.add_column(column, no_wrap=True)
    for column in ("ms", "/ padded", "FLOPs", "busy ms", "kernels", "reads", "graphs"):
        made.add_column(column, justify="right", no_wrap=True)
    for column in ("asked", "verdict"):
        made.add_column(column)
    part = ""
    for row in rows:
        numbers = [number(row.ms, 2), number(row.ratio, 3), number(row.flops, 3), number(row.busy_ms, 2)]
        counts = ["" if count < 0 else str(count) for count in (row.kernels, row.reads, row.graphs)]
        made.add_row(row.part if row.part != part else "", row.name, *numbers, *counts, row.bound, row.verdict)
        part = row.part
    return made


def number(value: float, digits: int) -> str:
    """A number for the table, empty where there is none."""
    return "" if math.isnan(value) else f"{value:.{digits}f}"
