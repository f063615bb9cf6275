"""Several labels, or none, for each row: lists, texts with a separator, or a column of 0 and 1 for each label.

A text or list without any label is an answer; a row where there is no text or list has none, and is bad.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from skim.errors import SkimError
from tasks.data.columns import Rejects, as_names, check_column, column_of
from tasks.data.labels import FIGURE, LABELS, finder, label_text, label_texts, shown_label, whole
from tasks.data.lists import tag_names

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import Array

COLUMNS = "task.label_column=[<column>,<column>]"
FLAGS = {"true": 1, "false": 0}


class Sets(NamedTuple):
    """Column of lists of labels, laid out.

    Attributes:
        texts: that occur, ``None`` for a label that is null.
        codes: number of the text of each label, all rows one after the other.
        rows: of each label.
        missing: rows without a list.
    """

    texts: list[str | None]
    codes: np.ndarray
    rows: np.ndarray
    missing: list[int]


def label_sets(
    rows: Dataset, column: str | list[str], separator: str, names: list[str] | None, rejects: Rejects, needed: bool
) -> Array | None:
    """Make lists of 1 and 0, one for each label (float32); ``None`` for a split without labels.

    Args:
        rows: the split.
        column: of lists or texts; or columns of 0 and 1, which then are the names.
        separator: between the labels of a text.
        names: by label id.
        rejects: takes bad rows.
        needed: whether a split without labels is an error.
    """
    import pyarrow as pa

    columns = [column] if isinstance(column, str) else column
    if not needed and not {*columns} <= {*rows.column_names}:
        return None
    for name in columns:
        check_column(rows, name, "label column", LABELS if isinstance(column, str) else COLUMNS, rejects.where)
    if not needed and all(column_of(rows, name).null_count == len(rows) for name in columns):
        return None
    assert names is not None
    if isinstance(column, str):
        found = _of_lists(rows, column, separator, names, rejects)
    else:
        found = np.stack([_flags(rows, name, rejects) for name in column], axis=1)
    offsets = np.arange(len(found) + 1, dtype=np.int32) * len(names)
    return pa.ListArray.from_arrays(offsets, found.astype(np.float32).ravel())


def infer_set_names(rows: Dataset, column: str, separator: str, rejects: Rejects) -> list[str]:
    """Find the labels of a column of lists or texts: a parquet file's own, or those that occur, by the alphabet."""
    check_column(rows, column, "label column", LABELS, rejects.where)
    named = tag_names(rows, column)
    if named is not None:
        return as_names(named, f"{rejects.where}, column '{column}'")
    found = {text for text in _sets_of(rows, column, separator, rejects.where).texts if text is not None}
    if len(found) < 2:
        raise SkimError(
            f"{rejects.where}, column '{column}': there are fewer than two labels, so there is nothing to learn.\n"
            f"Texts are cut at task.label_separator='{separator}'; classes: task.head=classification."
        )
    figures = all(map(FIGURE.fullmatch, found))
    return sorted(found, key=(lambda text: (float(text), text)) if figures else None)


def _of_lists(rows: Dataset, column: str, separator: str, names: list[str], rejects: Rejects) -> np.ndarray:
    """Mark the labels of each row by 1, (rows, C)."""
    sets = _sets_of(rows, column, separator, rejects.where)
    for row in sets.missing:
        rejects.add(row, column, "there are no labels", "A text without any has an empty list, or an empty cell.")
    ids = [*map(finder(names), sets.texts)]
    for code, (text, one) in enumerate(zip(sets.texts, ids, strict=True)):
        if one is None:
            for row in np.unique(sets.rows[sets.codes == code]).tolist():
                why = "a label is null" if text is None else f"{shown_label(text)} is not a label of this task"
                rejects.add(row, column, why, "" if text is None else f"Labels: {', '.join(names)}.")
    found = np.zeros((len(rows), len(names)))
    known = np.asarray([-1 if one is None else one for one in ids], dtype=np.int64)[sets.codes]
    found[sets.rows[known >= 0], known[known >= 0]] = 1
    return found


def _flags(rows: Dataset, name: str, rejects: Rejects) -> np.ndarray:
    """Read a column of 0 and 1, or of true and false, (rows,)."""
    texts, codes = label_texts(rows, name)
    flags = [None if text is None else FLAGS.get(text.lower(), whole(text)) for text in texts]
    for code, (text, flag) in enumerate(zip(texts, flags, strict=True)):
        if flag not in (0, 1):
            for row in np.flatnonzero(codes == code).tolist():
                why = "there is not a label" if text is None else f"{shown_label(text)} is neither 0 nor 1"
                rejects.add(row, name, why)
    return np.asarray([flag if flag in (0, 1) else 0 for flag in flags])[codes]


def _sets_of(rows: Dataset, name: str, separator: str, where: str) -> Sets:
    import pyarrow as pa
    import pyarrow.types as kinds

    column = column_of(rows, name).combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    missing = np.flatnonzero(column.is_null().to_numpy(zero_copy_only=False)).tolist()
    if kinds.is_string(column.type) or kinds.is_large_string(column.type):
        parts = [_parts(text, separator) for text in column.to_pylist()]
        column = pa.array(parts, pa.list_(pa.string()))
    if not any(kind(column.type) for kind in (kinds.is_list, kinds.is_large_list, kinds.is_fixed_size_list)):
        raise SkimError(
            f"{where}, column '{name}' holds {column.type}: neither lists of labels nor texts.\n"
            f"Columns of 0 and 1: {COLUMNS}. One class: task.head=classification."
        )
    lengths = column.value_lengths().fill_null(0).to_numpy(zero_copy_only=False)
    coded = column.flatten().dictionary_encode(null_encoding="encode")
    named = tag_names(rows, name)
    texts = [label_text(value, named) for value in coded.dictionary.to_pylist()]
    return Sets(texts, coded.indices.to_numpy(), np.repeat(np.arange(len(lengths)), lengths), missing)


def _parts(text: Any, separator: str) -> list[str] | None:
    return None if text is None else [part.strip() for part in text.split(separator) if part.strip()]
