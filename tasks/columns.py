"""Checks of text and label columns before anything is tokenised; every error names the file or split, row and column.

Rows are counted from 1, a csv file's header not among them. Columns are looked at as a whole, in Arrow: a check of
67,000 rows costs milliseconds and is made at every start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skim.errors import SkimError
from tasks.cells import UTF8, Problem

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import ChunkedArray


class Rejects:
    """Rows that cannot be used: the first is an error, or all are left out and counted.

    Args:
        where: the file or split, for errors.
        skip: whether they are left out.
        problems: what the reading of the file found.

    Attributes:
        bad: row numbers from 0, of the table that is checked.
        first: what is wrong with the one that was found first.
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
            column: of what is wrong.
            why: ends in no full stop.
            advice: what to do about it, for the error.
        """
        number = row if self._numbers is None else int(self._numbers[row])
        known = self._known.get((number, column))  # why there is nothing
        if known is not None:
            why, advice = known.why, known.advice
        self._refuse(f"{self.where}, row {number + 1}, column '{column}': {why}.", advice)
        self.bad.add(row)

    def readable(self, rows: Dataset) -> Dataset:
        """Those of a file's rows of which something could be read; before any check."""
        unusable = sorted(row for row, column in self._known if column is None)
        for row in unusable:
            problem = self._known[row, None]
            self._refuse(f"{self.where}, row {row + 1}: {problem.why}.", problem.advice)
        if not unusable:
            return rows
        self.lost = len(unusable)
        self._numbers = np.delete(np.arange(len(rows)), unusable)
        return self._left(rows, self._numbers)

    def without(self, rows: Dataset) -> Dataset:
        """The rows that are left.

        Raises:
            SkimError: none is.
        """
        return self._left(rows, np.delete(np.arange(len(rows)), sorted(self.bad))) if self.bad else rows

    def _refuse(self, said: str, advice: str) -> None:
        if not self.skip:
            raise SkimError("\n".join(line for line in (said, advice, SKIPPING) if line))
        self.first = self.first or said

    def _left(self, rows: Dataset, numbers: np.ndarray) -> Dataset:
        if not len(numbers):
            raise SkimError(
                f"{self.where}: task.on_bad_row=skip leaves no rows; the first was bad because\n{self.first}"
            )
        return rows.select(numbers)


TEXTS = "task.text_columns=[<column>] or, for pairs, [<first>,<second>]"
LABELS = "task.label_column=<column>"
MISSING = (None, "")
REGRESSION = "For numbers to predict, set task.head=regression."
SKIPPING = "task.on_bad_row=skip leaves such rows out, and counts them."


def column_of(rows: Dataset, name: str) -> ChunkedArray:
    """One column, as it lies on disk."""
    return rows.select_columns([name]).with_format("arrow")[:].column(name)


def rows_of(column: ChunkedArray, wrong: Callable[[Any], bool]) -> list[int]:
    """Numbers, from 0, of the rows whose value is wrong."""
    return [row for row, value in enumerate(column.to_pylist()) if wrong(value)]


def check_column(rows: Dataset, name: str, what: str, option: str, where: str) -> None:
    """A column of this name must be there.

    Args:
        rows: the split.
        name: of the column.
        what: it is, for the error: ``text column``.
        option: by which the user chooses it: ``task.text_columns=[<column>]``.
        where: the file or split, for errors.
    """
    if name not in rows.column_names:
        headless = {".csv", ".tsv"} & set(Path(where).suffixes[-2:])
        raise SkimError(
            f"{where} has no {what} '{name}'. Its columns: {', '.join(rows.column_names)}.\nChoose with {option}."
            + (
                "\nIf the first line is no header, name the columns: task.file_columns=[label,text]."
                if headless
                else ""
            )
        )


def check_texts(rows: Dataset, name: str, rejects: Rejects, option: str = TEXTS) -> None:
    """A text in every row; it may be empty."""
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


def is_labeled(rows: Dataset, name: str, rejects: Rejects, needed: bool, option: str = LABELS) -> bool:
    """Whether a split has labels; the hub marks those that are withheld with -1 in every row.

    Args:
        rows: the split.
        name: of the label column.
        rejects: what a row without a label goes to.
        needed: whether a split without labels is an error.
        option: by which the user chooses the column.
    """
    import pyarrow.types as kinds

    where = rejects.where
    if name not in rows.column_names and not needed:
        return False
    check_column(rows, name, "label column", option, where)
    column = column_of(rows, name)
    if not needed and column.null_count == len(column):
        return False
    known = (kinds.is_string, kinds.is_large_string, kinds.is_integer, kinds.is_floating, kinds.is_boolean)
    if not any(is_kind(column.type) for is_kind in known):
        raise SkimError(f"{where}, column '{name}' holds {column.type}: neither names nor numbers, or a mixture.")
    values = column.unique().to_pylist()
    if None in values or "" in values:
        if not needed and all(value in MISSING for value in values):
            return False
        for row in rows_of(column, lambda value: value in MISSING):
            rejects.add(row, name, "there is no label")
    withheld = values == [-1]
    if withheld and needed:
        raise SkimError(f"{where}: all labels are -1, which means withheld; it can be predicted and nothing else.")
    return not withheld


def infer_label_names(rows: Dataset, name: str, rejects: Rejects) -> list[str]:
    """The classes of a label column: a parquet file's own, names in alphabetical order, or numbers without a gap.

    Numbers are 0, 1, 2, ... or 1, 2, 3, ...; the name of a class is its number as a text.
    """
    import pyarrow as pa

    feature, where = rows.features[name], rejects.where
    if hasattr(feature, "names"):
        return list(feature.names)
    column = column_of(rows, name)
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        found = _names(column, name, rejects)
    else:
        values = [value for value in column.unique().to_pylist() if value is not None]
        ids = sorted({int(value) for value in values if is_class(value)})
        if not all(map(is_class, values)):
            for row in rows_of(column, lambda value: value is not None and not is_class(value)):
                rejects.add(row, name, f"{column[row].as_py()!r} is no class (a name, or 0, 1, 2, ...)", REGRESSION)
        if len(ids) > 1 and ids not in (list(range(len(ids))), list(range(1, len(ids) + 1))):
            shown = ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")
            wanted = "0, 1" if len(ids) == 2 else f"0 to {len(ids) - 1}"
            raise SkimError(
                f"{where}, column '{name}': the labels are {shown} and not {wanted}.\n"
                "Number the classes from 0 or 1 or write names; if some have no rows here, list all in "
                f"task.label_names.\n{REGRESSION}"
            )
        found = [str(i) for i in ids]
    if not found:
        raise SkimError(f"{where}, column '{name}': no row has a label. The first: {rejects.first or 'it is empty'}")
    if len(found) < 2:
        raise SkimError(f"{where}, column '{name}': every row has the label '{found[0]}'; there is nothing to learn.")
    return found


def is_class(value: float) -> bool:
    """Whether a number may be one of a class."""
    return value >= 0 and float(value).is_integer()


def _names(column: ChunkedArray, name: str, rejects: Rejects) -> list[str]:
    """The names in a column of texts, sorted; one word among numbers, or the reverse, is a mistake."""
    counts = {entry["values"]: entry["counts"] for entry in column.value_counts().to_pylist()}
    counts = {value: count for value, count in counts.items() if value not in MISSING}
    figures = {value for value in counts if value.isdecimal()}
    if len(figures) in (0, len(counts)):
        return sorted(counts, key=int) if figures else sorted(counts)
    words = set(counts) - figures
    fewer, kind = words, "names a class, and most rows number theirs"
    if sum(counts[value] for value in words) > sum(counts[value] for value in figures):
        fewer, kind = figures, "numbers a class, and most rows name theirs"
    for row in rows_of(column, lambda value: value in fewer):
        advice = "If all of them are names, list them in task.label_names."
        rejects.add(row, name, f"{column[row].as_py()!r} {kind}", advice)
    left = set(counts) - fewer
    return sorted(left, key=int) if left == figures else sorted(left)


def label_ids(rows: Dataset, name: str, label_names: list[str], rejects: Rejects) -> np.ndarray:
    """Label ids, (rows,) int64, of a column of ids, names or class labels; 0 for a bad row.

    Where all names are numbers, a number is a name: of the names 1 to 5, 1 is the first, and 0 is none. Elsewhere it is
    an id. A csv file knows no types, so a number may be written as a text.
    """
    feature, column = rows.features[name], column_of(rows, name)
    named = feature.names if hasattr(feature, "names") else label_names
    by_name: dict[Any, int] = {label: i for i, label in enumerate(label_names)}
    numbered = named is label_names and all(label.isdecimal() for label in label_names)
    # class labels in another order than ours keep their names, not their numbers
    by_number = {int(label) if numbered else i: by_name[label] for i, label in enumerate(named) if label in by_name}
    ids: dict[Any, int] = {**{str(number): i for number, i in by_number.items()}, **by_name, **by_number}
    if any(value not in ids for value in column.unique().to_pylist()):
        known = ", ".join(label_names if numbered else (f"{i} ({label})" for i, label in enumerate(label_names)))
        for row in rows_of(column, lambda value: value not in ids and value not in MISSING):
            value = column[row].as_py()
            shown = named[value] if hasattr(feature, "names") and value in range(len(named)) else value
            rejects.add(row, name, f"{shown!r} is no label of this task", f"Labels: {known}.")
    return by_value(column, lambda value: ids.get(value, 0), np.int64)


def numbers(rows: Dataset, name: str, rejects: Rejects) -> np.ndarray:
    """Finite numbers, (rows,) float32; 0 for a bad row."""
    column = column_of(rows, name)

    def number(value: Any) -> float | None:
        try:  # one word in a csv file makes texts of all its numbers
            return float(value) if not isinstance(value, bool) and math.isfinite(float(value)) else None
        except (TypeError, ValueError):
            return None

    if any(number(value) is None for value in column.unique().to_pylist()):
        for row in rows_of(column, lambda value: number(value) is None and value not in MISSING):
            rejects.add(row, name, f"{column[row].as_py()!r} is no number")
    return by_value(column, lambda value: number(value) or 0.0, np.float32)


def by_value(column: ChunkedArray, function: Callable[[Any], float], dtype: Any) -> np.ndarray:
    """A function of every row's value, (rows,), called once for each value that occurs."""
    coded = column.combine_chunks().dictionary_encode(null_encoding="encode")
    found = np.asarray([function(value) for value in coded.dictionary.to_pylist()], dtype=dtype)
    return found[coded.indices.to_numpy()]
