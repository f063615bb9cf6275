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


def column_of(rows: Dataset, name: str) -> ChunkedArray:
    """One column, as it lies on disk."""
    return rows.select_columns([name]).with_format("arrow")[:].column(name)


def first_row(column: ChunkedArray, wrong: Callable[[Any], bool]) -> int:
    """Number of the first row whose value is wrong, from 1."""
    return next(row for row, value in enumerate(column.to_pylist(), start=1) if wrong(value))


def check_texts(rows: Dataset, name: str, where: str) -> None:
    """A text in every row; it may be empty."""
    import pyarrow.types as kinds

    if name not in rows.column_names:
        raise SkimError(
            f"{where} has no text column '{name}'. Its columns: {', '.join(rows.column_names)}.\n"
            "Choose with task.text_columns=[<column>] or, for pairs, [<first>,<second>]."
        )
    column = column_of(rows, name)
    if column.null_count:
        raise SkimError(f"{where}, row {first_row(column, lambda v: v is None)}, column '{name}': there is no text.")
    if not (kinds.is_string(column.type) or kinds.is_large_string(column.type)):
        raise SkimError(f"{where}, column '{name}' holds {column.type} and not texts.")


def is_labeled(rows: Dataset, name: str, where: str, needed: bool) -> bool:
    """Whether a split has labels; the hub marks those that are withheld with -1 in every row.

    Args:
        rows: the split.
        name: of the label column.
        where: the file or split, for errors.
        needed: whether a split without labels is an error.
    """
    if name not in rows.column_names:
        if needed:
            raise SkimError(
                f"{where} has no label column '{name}'. Its columns: {', '.join(rows.column_names)}.\n"
                "Choose with task.label_column=<column>."
            )
        return False
    import pyarrow.types as kinds

    column = column_of(rows, name)
    known = (kinds.is_string, kinds.is_large_string, kinds.is_integer, kinds.is_floating, kinds.is_boolean)
    if not any(is_kind(column.type) for is_kind in known):
        raise SkimError(f"{where}, column '{name}' holds {column.type}: neither names nor numbers, or a mixture.")
    values = column.unique().to_pylist()
    if None in values or "" in values:
        row = first_row(column, lambda value: value is None or value == "")
        raise SkimError(f"{where}, row {row}, column '{name}': there is no label.")
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
    values = column.unique().to_pylist()
    if all(isinstance(value, str) for value in values):
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
        row = first_row(column, lambda v: not isinstance(v, (int, float)) or not float(v).is_integer() or v < 0)
        raise SkimError(
            f"{where}, row {row}, column '{name}': {column[row - 1].as_py()!r} is no class (a name, or 0, 1, 2, ...).\n"
            "For numbers to predict, set task.head=regression."
        )
    if len(found) < 2:
        raise SkimError(f"{where}, column '{name}': every row has the label '{found[0]}'; there is nothing to learn.")
    return found


def label_ids(rows: Dataset, name: str, label_names: list[str], where: str) -> np.ndarray:
    """Label ids, (rows,) int64, of a column of ids, names or class labels."""
    feature, column = rows.features[name], column_of(rows, name)
    values = column.unique().to_pylist()
    named = feature.names if hasattr(feature, "names") else label_names
    by_name = {label: i for i, label in enumerate(label_names)}
    # class labels in another order than ours keep their names, not their numbers
    by_number = {i: by_name[label] for i, label in enumerate(named) if label in by_name}
    ids: dict[Any, int] = {**by_name, **by_number}
    for value in values:
        if value not in ids:
            row = first_row(column, lambda v, value=value: v == value or v != v)  # NaN equals nothing
            shown = named[value] if hasattr(feature, "names") and value in range(len(named)) else value
            raise SkimError(
                f"{where}, row {row}, column '{name}': {shown!r} is no label of this task.\n"
                f"Labels: {', '.join(f'{i} ({label})' for i, label in enumerate(label_names))}."
            )
    return np.fromiter((ids[value] for value in column.to_pylist()), np.int64, len(column))


def numbers(rows: Dataset, name: str, where: str) -> np.ndarray:
    """Finite numbers, (rows,) float32."""
    column = column_of(rows, name)

    def wrong(value: Any) -> bool:
        return not isinstance(value, (int, float)) or not math.isfinite(value)

    if any(wrong(value) for value in column.unique().to_pylist()):
        row = first_row(column, wrong)
        raise SkimError(f"{where}, row {row}, column '{name}': {column[row - 1].as_py()!r} is no number.")
    return column.to_numpy().astype(np.float32)
