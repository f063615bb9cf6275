"""Checks of columns whose rows are lists: words, and a tag for each; every error names file or split, row and column.

As in :mod:`tasks.data.columns`, a column is checked as a whole. In csv and tsv files a cell is a text, and the list
its parts between spaces.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from skim.errors import SkimError
from tasks.data.cells import UTF8
from tasks.data.columns import Rejects, column_of
from tasks.data.labels import finder, label_text

if TYPE_CHECKING:
    from datasets import Dataset
    from pyarrow import Array, ChunkedArray

NO_TAG = -1  # id of a word without a tag


def parts_of(value: str | list[str]) -> list[str]:
    """Return a row's list, be it a list already or a text of parts between spaces."""
    return value if isinstance(value, list) else [part for part in value.split(" ") if part]


class Lists(NamedTuple):
    """Column of lists, laid out.

    Attributes:
        values: of all rows, one after the other.
        rows: number of the row that each value is of.
        counts: values of each row, 0 for a row without a list.
    """

    values: Array
    rows: np.ndarray
    counts: np.ndarray

    def first_of(self, wrong: np.ndarray) -> list[tuple[int, int]]:
        """Find each row's first value that a mask of the values marks: row and place in it, both from 0."""
        where = np.flatnonzero(wrong)
        rows, first = np.unique(self.rows[where], return_index=True)
        starts = np.cumsum(self.counts) - self.counts
        return [(int(row), int(place)) for row, place in zip(rows, where[first] - starts[rows], strict=True)]


def lists_of(rows: Dataset, name: str, where: str) -> Lists:
    """Lay out one column of lists, or of texts: then of their parts.

    Raises:
        SkimError: it holds neither.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    column = column_of(rows, name).combine_chunks()
    column = column.chunk(0) if isinstance(column, pa.ChunkedArray) else column
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        texts = column.to_pylist()
        column = pa.array([None if text is None else parts_of(text) for text in texts], pa.list_(pa.string()))
    kinds = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_null)
    if not any(is_kind(column.type) for is_kind in kinds):
        raise SkimError(f"{where}, column '{name}' holds {column.type} and not lists, or texts with spaces in between.")
    if pa.types.is_null(column.type):
        column = column.cast(pa.list_(pa.string()))
    counts = pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    values = column.flatten()
    if str(values.type) == "string_view":
        values = values.cast(pa.large_string())
    return Lists(values, np.repeat(np.arange(len(counts)), counts), counts)


def is_of_texts(values: Array | ChunkedArray) -> bool:
    """Tell whether values are texts, or all null."""
    import pyarrow.types as kinds

    return any(is_kind(values.type) for is_kind in (kinds.is_string, kinds.is_large_string, kinds.is_null))


def check_words(rows: Dataset, name: str, rejects: Rejects) -> Lists:
    """Check that every row has at least one word."""
    words = lists_of(rows, name, rejects.where)
    if not is_of_texts(words.values):
        raise SkimError(f"{rejects.where}, column '{name}' holds lists of {words.values.type} and not of words.")
    for row in np.flatnonzero(words.counts == 0).tolist():
        rejects.add(row, name, "there are no words")
    for row, place in words.first_of(words.values.is_null().to_numpy(zero_copy_only=False)):
        line = line_of(rows, row, place)
        if line is not None:
            rejects.add(row, name, f"word {place + 1} (line {line}) is not UTF-8", UTF8)
        else:
            rejects.add(row, name, f"word {place + 1} is null")
    return words


def line_of(rows: Dataset, row: int, place: int) -> int | None:
    """Look up the line of a word in a file of columns; other files may have a column of the same name."""
    lines = rows[row]["line"] if "line" in rows.column_names else None
    return lines[place] if isinstance(lines, list) and place < len(lines) else None


def tags_of(rows: Dataset, name: str, where: str) -> Lists:
    """Lay out one column of tags: names, ids, or class labels."""
    import pyarrow.types as kinds

    tags = lists_of(rows, name, where)
    if not is_of_texts(tags.values) and not kinds.is_integer(tags.values.type):
        raise SkimError(f"{where}, column '{name}' holds lists of {tags.values.type}: neither names nor ids.")
    return tags


def tag_names(rows: Dataset, name: str) -> list[str] | None:
    """Return the names of a column's class labels; ``None`` without."""
    feature = rows.features[name]
    inner = getattr(feature, "feature", feature[0] if isinstance(feature, list) else None)
    return list(inner.names) if hasattr(inner, "names") else None


def infer_tags(rows: Dataset, name: str, untagged: Collection[Any], where: str) -> list[str]:
    """Find the labels of a column of tags: a parquet file's own, names (O first, then by the alphabet), or 0, 1, 2."""
    nothing = {label_text(value) for value in untagged}
    names = tag_names(rows, name)
    if names is None:
        values = tags_of(rows, name, where).values.unique().to_pylist()
        values = [value for value in values if label_text(value) not in {*nothing, None}]
        numbered = any(isinstance(value, int) for value in values)
        if numbered and sorted(values) != list(range(len(values))):
            shown = ", ".join(map(str, sorted(values)[:5]))
            raise SkimError(
                f"{where}, column '{name}': the tags are {shown}, ...: neither names nor 0, 1, 2 and so on.\n"
                "Write names, or list the labels in task.label_names; words without a tag: task.untagged=[-1]."
            )
        texts = {str(label_text(value)) for value in values}
        names = sorted(texts, key=int if numbered else lambda value: (value != "O", value))
    names = [value for value in names if label_text(value) not in nothing]
    if len(names) < 2:
        raise SkimError(f"{where}, column '{name}': there are fewer than two tags, so there is nothing to learn.")
    return names


def tag_ids(
    rows: Dataset,
    name: str,
    words: Lists,
    label_names: list[str],
    untagged: Collection[Any],
    other: int | None,
    rejects: Rejects,
) -> Array:
    """Make lists of label ids, one for each word, ``NO_TAG`` for a word without, of names, ids or class labels.

    Texts are names, whatever they look like; numbers are names too, if there are such, and else ids.

    Args:
        rows: the split; a column ``line`` with the line of each word goes into errors.
        name: of the column of tags.
        words: the column of words.
        label_names: by label id.
        untagged: tags that stand for none.
        other: id of tags that are not among the labels; ``None`` if that is an error.
        rejects: takes bad rows.
    """
    import pyarrow as pa

    tags = tags_of(rows, name, rejects.where)
    for row in np.flatnonzero(tags.counts != words.counts).tolist():
        why = f"there are {words.counts[row]} words and {tags.counts[row]} tags"
        rejects.add(row, name, why, "Each word needs one tag.")
    named = tag_names(rows, name)
    numbered = named is None and pa.types.is_integer(tags.values.type)
    values = tags.values.dictionary_encode()
    shown: list[Any] = values.dictionary.to_pylist()
    if named is not None:  # class labels in another order than ours keep their names, not their numbers
        shown = [named[value] if value in range(len(named)) else value for value in shown]
    shown.append(None)
    nothing = {label_text(value) for value in untagged}
    by_name = {label: i for i, label in enumerate(label_names)}
    find = finder(label_names) if numbered else by_name.get
    wrong = -2

    def id_of(text: str | None) -> int:
        if text in nothing:
            return NO_TAG
        found = None if text is None else find(text)
        return found if found is not None else wrong if other is None or text is None else other

    ids_of = np.asarray([id_of(label_text(value)) for value in shown], dtype=np.int32)
    places = values.indices.fill_null(len(shown) - 1).to_numpy(zero_copy_only=False)
    ids = ids_of[places]
    for row, place in tags.first_of(ids == wrong):
        value = shown[places[int(tags.counts[:row].sum()) + place]]
        why = f"{shown_word(rows, words, row, place)} has "
        if label_text(value) is None:
            rejects.add(row, name, why + "no tag", NONE if line_of(rows, row, place) is None else NO_COLUMN)
        else:
            some = ", ".join(label_names[:40]) + (", ..." if len(label_names) > 40 else "")
            rejects.add(row, name, why + f"the tag {value!r}, which is not a label of this task", f"Labels: {some}.")
    tagged = np.bincount(tags.rows[ids != NO_TAG], minlength=len(tags.counts))
    for row in np.flatnonzero((tagged == 0) & (tags.counts > 0)).tolist():
        rejects.add(row, name, "no word has a tag")
    return pa.ListArray.from_arrays(np.concatenate([[0], np.cumsum(tags.counts)]).astype(np.int32), ids)


NONE = "Words that have none: task.untagged=[null]."
NO_COLUMN = "A line has as many columns as the file's first; task.columns=[<word>,<tag>] names the two that are read."


def shown_word(rows: Dataset, words: Lists, row: int, place: int) -> str:
    """Write a word for errors."""
    if place >= words.counts[row]:
        return f"word {place + 1}"
    word = words.values[int(words.counts[:row].sum()) + place].as_py()
    line = line_of(rows, row, place)
    return f"word {place + 1} ({word!r}{'' if line is None else f', line {line}'})"
