"""Checks of text and label columns before anything is tokenised; every error names the file or split, row and column.

Rows are counted from 1, a csv file's header not among them. Columns are looked at as a whole, in Arrow: a check of
67,000 rows costs milliseconds and is made at every start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from skim.errors import SkimError

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import ChunkedArray


class Rejects:
    """Rows that cannot be used: the first is an error, or all are left out and counted.

    Args:
        where: the file or split, for errors.
        skip: whether they are left out.

    Attributes:
        bad: row numbers from 0.
        first: what is wrong with the one that was found first.
    """

    def __init__(self, where: str, skip: bool = False) -> None:
        self.where, self.skip = where, skip
        self.bad: set[int] = set()
        self.first = ""

    def add(self, row: int, column: str, why: str, advice: str = "") -> None:
        """Refuse a row, or note that it is to be left out.

        Args:
            row: its number from 0.
            column: of what is wrong.
            why: ends in no full stop.
            advice: what to do about it, for the error.
        """
        said = f"{self.where}, row {row + 1}, column '{column}': {why}."
        if not self.skip:
            raise SkimError("\n".join(line for line in (said, advice, SKIPPING) if line))
        self.first = self.first or said
        self.bad.add(row)

    def without(self, rows: Dataset) -> Dataset:
        """The rows that are left.

        Raises:
            SkimError: none is.
        """
        if not self.bad:
            return rows
        if len(self.bad) == len(rows):
            raise SkimError(
                f"{self.where}: task.on_bad_row=skip leaves no rows; the first was bad because\n{self.first}"
            )
        return rows.select([row for row in range(len(rows)) if row not in self.bad])


TEXTS = "task.text_columns=[<column>] or, for pairs, [<first>,<second>]"
LABELS = "task.label_column=<column>"
MISSING = (None, "")
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
        raise SkimError(
            f"{where} has no {what} '{name}'. Its columns: {', '.join(rows.column_names)}.\nChoose with {option}."
        )


def check_texts(rows: Dataset, name: str, rejects: Rejects, option: str = TEXTS) -> None:
    """A text in every row; it may be empty."""
    import pyarrow.types as kinds

    check_column(rows, name, "text column", option, rejects.where)
    column = column_of(rows, name)
    if not (kinds.is_string(column.type) or kinds.is_large_string(column.type)):
        raise SkimError(f"{rejects.where}, column '{name}' holds {column.type} and not texts.")
    if column.null_count:
        for row in np.flatnonzero(column.is_null().to_numpy()):
            rejects.add(int(row), name, "there is no text")


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


def infer_label_names(rows: Dataset, name: str, where: str) -> list[str]:
    """The classes of a label column: a parquet file's own, names in alphabetical order, or 0, 1, 2 without a gap."""
    feature = rows.features[name]
    if hasattr(feature, "names"):
        return list(feature.names)
    column = column_of(rows, name)
    values = [value for value in column.unique().to_pylist() if value not in MISSING]
    if values and all(isinstance(value, str) for value in values):
        found = sorted(values)
    elif all(isinstance(value, (int, float)) and float(value).is_integer() and value >= 0 for value in values):
        ids = sorted({int(value) for value in values})
        if len(ids) > 1 and ids != list(range(len(ids))):
            shown = ", ".join(map(str, ids[:5])) + (", ..." if len(ids) > 5 else "")
            wanted = "0, 1" if len(ids) == 2 else f"0 to {len(ids) - 1}"
            raise SkimError(
                f"{where}, column '{name}': the labels are {shown} and not {wanted}.\n"
                "Number the classes from 0 or write names; if some have no rows here, list all in task.label_names.\n"
                "For numbers to predict, set task.head=regression."
            )
        found = [str(i) for i in ids]
    else:
        row = 1 + rows_of(column, lambda v: not isinstance(v, (int, float)) or not float(v).is_integer() or v < 0)[0]
        raise SkimError(
            f"{where}, row {row}, column '{name}': {column[row - 1].as_py()!r} is no class (a name, or 0, 1, 2, ...).\n"
            "For numbers to predict, set task.head=regression."
        )
    if len(found) < 2:
        raise SkimError(f"{where}, column '{name}': every row has the label '{found[0]}'; there is nothing to learn.")
    return found


def label_ids(rows: Dataset, name: str, label_names: list[str], rejects: Rejects) -> np.ndarray:
    """Label ids, (rows,) int64, of a column of ids, names or class labels; 0 for a bad row."""
    feature, column = rows.features[name], column_of(rows, name)
    values = column.unique().to_pylist()
    named = feature.names if hasattr(feature, "names") else label_names
    by_name = {label: i for i, label in enumerate(label_names)}
    # class labels in another order than ours keep their names, not their numbers
    by_number = {i: by_name[label] for i, label in enumerate(named) if label in by_name}
    ids: dict[Any, int] = {**by_name, **by_number}
    if any(value not in ids for value in values):
        known = ", ".join(f"{i} ({label})" for i, label in enumerate(label_names))
        for row in rows_of(column, lambda value: value not in ids and value not in MISSING):
            value = column[row].as_py()
            shown = named[value] if hasattr(feature, "names") and value in range(len(named)) else value
            rejects.add(row, name, f"{shown!r} is no label of this task", f"Labels: {known}.")
    return np.fromiter((ids.get(value, 0) for value in column.to_pylist()), np.int64, len(column))


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
    return np.asarray([number(value) or 0.0 for value in column.to_pylist()], dtype=np.float32)
