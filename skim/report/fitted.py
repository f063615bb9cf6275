"""Tables that show every number at any width: names are shortened first, then columns go on in a table below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

WIDE = 100_000  # characters: at which nothing is folded


class Column(NamedTuple):
    """Column of a table: a title, which may have two lines, and a cell for each row."""

    title: str
    cells: list[str]


class Naming(NamedTuple):
    """Way to name the rows.

    Attributes:
        columns: at the left of the table.
        key: explanations below it, by abbreviation.
    """

    columns: list[Column]
    key: dict[str, str]


class Fitted:
    """Table of numbers that are never cut or left out: a ``rich`` renderable.

    Args:
        namings: ways to name the rows, the most telling first; the first that leaves room for all numbers is taken. If
            none does, the last one, and the columns of numbers go on in further tables below.
        numbers: the columns of numbers.
        dim: which rows are in the background.
        notes: lines under the table.
    """

    def __init__(
        self, namings: Sequence[Naming], numbers: Sequence[Column], dim: Sequence[bool] = (), notes: Sequence[str] = ()
    ) -> None:
        self.namings, self.numbers, self.dim, self.notes = namings, numbers, dim, notes

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        def fits(names: list[Column], numbers: Sequence[Column]) -> bool:
            wanted = console.measure(self._table(names, numbers), options=options.update_width(WIDE)).maximum
            return wanted <= options.max_width

        names, key = next((naming for naming in self.namings if fits(naming.columns, self.numbers)), self.namings[-1])
        rest = list(self.numbers)
        while rest:
            count = next((count for count in range(len(rest), 1, -1) if fits(names, rest[:count])), 1)
            yield self._table(names, rest[:count])
            rest = rest[count:]
            if rest:
                yield ""
        if key:
            yield ""
            yield keyed(key)
        if self.notes:
            yield Text("\n".join(self.notes), style="dim italic")

    def _table(self, names: list[Column], numbers: Sequence[Column]) -> Table:
        table = plain()
        for column in names:
            table.add_column(column.title, no_wrap=True, overflow="ellipsis")
        for column in numbers:
            table.add_column(column.title, justify="right", no_wrap=True, min_width=_width(column))
        for row, cells in enumerate(zip(*(column.cells for column in (*names, *numbers)), strict=True)):
            table.add_row(*map(Text, cells), style="dim" if self.dim and self.dim[row] else "")
        return table


def keyed(key: dict[str, str]) -> Table:
    """Explain abbreviations, a line or more each, the text indented behind them."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for short, text in key.items():
        table.add_row(Text(short), Text(text))
    return table


def letters(count: int) -> list[str]:
    """Count off abbreviations: a, b, ..., z, aa, ab, ..."""
    found: list[str] = []
    for number in range(1, count + 1):
        text = ""
        while number:
            number, place = divmod(number - 1, 26)
            text = chr(ord("a") + place) + text
        found.append(text)
    return found


def plain(caption: str | None = None) -> Table:
    """Make an empty table in the style of all of them."""
    return Table(
        caption=caption, box=SIMPLE_HEAD, caption_justify="left", show_edge=False, pad_edge=False, padding=(0, 1, 0, 0)
    )


def _width(column: Column) -> int:
    return max(len(line) for text in (column.title, *column.cells) for line in text.splitlines() or [""])
