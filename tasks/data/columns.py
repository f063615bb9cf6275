"""Checks of columns before anything is tokenised; every error names the file or split, row and column.

Rows are counted from 1, without a csv file's header. Columns are checked as a whole, in Arrow: a check of 67,000 rows
costs milliseconds and is made at every start.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import numpy as np
from pydantic import BeforeValidator, Field

from skim.errors import SkimError
from tasks.data.cells import UTF8, Problem

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import ChunkedArray


def text_of(name: Any) -> Any:
    """Turn a number or boolean into its text: YAML reads some names as such."""
    return str(name) if isinstance(name, int | float) else name


# a label, or a column, as an option: YAML reads some names as numbers
Name: TypeAlias = Annotated[str, BeforeValidator(text_of), Field(json_schema_extra={"numbers": True})]


class Rejects:
    """Rows that cannot be used: the first is an error, or all are left out and counted.

    Args:
        where: the file or split, for errors.
        skip: whether they are left out.
        problems: found when the file was read.

    Attributes:
        bad: row numbers from 0, of the table that is checked.
        first: the fault of the row that was found first.
        lost: how many rows were left out before, because nothing of them could be read.
    """

    def __init__(self, where: str, skip: bool = False, problems: Sequence[Problem] = ()) -> None:
        self.where, self.skip = where, skip
        self.bad: set[int] = set()
        self.first = ""
        self.lost = 0
        self._known = {(problem.row, problem.column): problem for problem in problems}
        self._numbers: np.ndarray | None = None  # of the table's rows, in the file

    def __len__(self) -> int:
        return self.lost + len(self.bad)

    def add(self, row: int, column: str, why: str, advice: str = "") -> None:
        """Refuse a row, or note that it is to be left out.

        Args:
            row: its number from 0.
            column: that is wrong.
            why: ends in no full stop.
            advice: what to do about it, for the error.
        """
        if row in self.bad:
            return
        number = row if self._numbers is None else int(self._numbers[row])
        known = self._known.get((number, column))  # why there is nothing
        if known is not None:
            why, advice = known.why, known.advice
        self._refuse(f"{self.where}, row {number + 1}, column '{column}': {why}.", advice)
        self.bad.add(row)

    def strict(self) -> Rejects:
        """Copy these rejects, with the rows that are bad so far; the next one is an error."""
        other = copy.copy(self)
        other.skip = False
        return other

    def readable(self, rows: Dataset) -> Dataset:
        """Keep those of a file's rows of which something could be read; before any check."""
        unusable = sorted(row for row, column in self._known if column is None)
        for row in unusable:
            problem = self._known[row, None]
            self._refuse(f"{self.where}, row {row + 1}: {problem.why}.", problem.advice)
        if not unusable:
            return rows
        self.lost = len(unusable)
        self._numbers = np.delete(np.arange(len(rows)), unusable)
        return self._left(rows, self._numbers)

    def numbers(self, count: int) -> np.ndarray:
        """Number, as in the file, from 1, those of ``count`` checked rows that :meth:`without` leaves."""
        return np.delete(self._in_file(count), sorted(self.bad)) + 1

    def unread(self, column: str, count: int) -> list[Problem]:
        """List the null cells of a column that could not be read; ``row`` is among the ``count`` checked rows."""
        numbers = self._in_file(count)
        cells = [problem for problem in self._known.values() if problem.column == column]
        rows = np.searchsorted(numbers, [problem.row for problem in cells]).tolist()
        return [
            problem._replace(row=row)
            for problem, row in zip(cells, rows, strict=True)
            if row < count and numbers[row] == problem.row
        ]

    def without(self, rows: Dataset) -> Dataset:
        """Leave the bad rows out.

        Raises:
            SkimError: no row is left.
        """
        return self._left(rows, np.delete(np.arange(len(rows)), sorted(self.bad))) if self.bad else rows

    def _in_file(self, count: int) -> np.ndarray:
        """Number ``count`` checked rows as in the file, from 0."""
        return np.arange(count) if self._numbers is None else self._numbers

    def _refuse(self, why: str, advice: str) -> None:
        if not self.skip:
            raise SkimError("\n".join(line for line in (why, advice, SKIPPING) if line))
        self.first = self.first or why

    def _left(self, rows: Dataset, numbers: np.ndarray) -> Dataset:
        if not len(numbers):
            raise SkimError(
                f"{self.where}: task.on_bad_row=skip leaves no rows; the first was bad because\n{self.first}"
            )
        return rows.select(numbers)


TEXTS = "task.text_columns=[<column>] or, for pairs, [<first>,<second>]"
SKIPPING = "task.on_bad_row=skip leaves such rows out, and counts them."


def as_names(names: Sequence[str], option: str = "task.label_names") -> list[str]:
    """Take names of labels without the spaces around them; a name that stands there twice is refused."""
    bare = [name.strip() for name in names]
    twice = [name for name, count in Counter(bare).items() if count > 1]
    if twice:
        raise SkimError(f"{option} names {twice[0]!r} twice; each label has one name.")
    return bare


def kept(name: str) -> str:
    """Name a column of texts beside the task's own ``labels``."""
    return f"{name} (text)" if name == "labels" else name


def column_of(rows: Dataset, name: str) -> ChunkedArray:
    """Read one column as it lies on disk; texts of Arrow's newer layouts, and coded ones, as plain texts."""
    import pyarrow as pa

    column = rows.select_columns([name]).with_format("arrow")[:].column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.cast(pa.large_string()) if str(column.type) == "string_view" else column


def rows_of(column: ChunkedArray, wrong: Callable[[Any], bool]) -> list[int]:
    """List the numbers, from 0, of the rows whose value is wrong."""
    return [row for row, value in enumerate(column.to_pylist()) if wrong(value)]


def check_column(rows: Dataset, name: str, what: str, option: str, where: str) -> None:
    """Refuse a table without a column of this name.

    Args:
        rows: the split.
        name: of the column.
        what: kind of column, for the error: ``text column``.
        option: by which the user chooses it: ``task.text_columns=[<column>]``.
        where: the file or split, for errors.
    """
    if name not in rows.column_names:
        headless = {".csv", ".tsv"} & set(Path(where).suffixes[-2:])
        raise SkimError(
            f"{where} has no {what} '{name}'. Its columns: {', '.join(rows.column_names)}.\nChoose with {option}."
            + (
                "\nIf the first line is not a header, name the columns: task.file_columns=[label,text]."
                if headless
                else ""
            )
        )


def check_texts(rows: Dataset, name: str, rejects: Rejects, option: str = TEXTS) -> None:
    """Check that every row has a text; it may be empty."""
    import pyarrow as pa
    import pyarrow.types as kinds

    check_column(rows, name, "text column", option, rejects.where)
    column = column_of(rows, name)
    if not (kinds.is_string(column.type) or kinds.is_large_string(column.type)):
        raise SkimError(f"{rejects.where}, column '{name}' holds {column.type} and not texts.")
    if column.null_count:
        for row in np.flatnonzero(column.is_null().to_numpy()).tolist():
            rejects.add(row, name, "there is no text")
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:  # what other programs write into a parquet file
        for row, value in enumerate(column.cast(pa.large_binary()).to_pylist()):
            try:
                (value or b"").decode()
            except UnicodeDecodeError as error:
                place = f"byte 0x{value[error.start]:02X} at byte {error.start + 1}"
                rejects.add(row, name, f"the text is not UTF-8 ({place})", UTF8)


def is_missing(value: Any) -> bool:
    """Tell whether a cell is empty."""
    return value is None or (isinstance(value, str) and not value.strip())
