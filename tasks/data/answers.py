"""Answers of questions: the forms in which files hold them, and their places in the text."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from skim.errors import SkimError
from tasks.data.cells import chunks, shown

if TYPE_CHECKING:
    import pyarrow as pa

FORMS = "{text: [...], answer_start: [...]}, a list of {text, answer_start}, a text, or a list of texts"
NO_START = "answer_start is {}, not the number of a character"
COUNTED = "Characters are counted from 0."


class Given(NamedTuple):
    """Answers of some rows, laid out.

    Attributes:
        texts: of all rows, one after the other.
        counts: texts of each row, (rows,).
        starts: first characters, one after the other; ``None``: of no row.
        start_counts: of each row, (rows,); -1: they are not given, and each answer stands where it first occurs.
    """

    texts: pa.Array
    counts: np.ndarray
    starts: pa.Array | None
    start_counts: np.ndarray


def given(column: pa.ChunkedArray, where: str) -> Given:
    """Lay out a column of answers, whichever form it has.

    Args:
        column: of a split.
        where: file or split and column, for errors.

    Raises:
        SkimError: it has another form.
    """
    import pyarrow as pa
    import pyarrow.types as kinds

    array = column.combine_chunks()
    array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    of_texts = (kinds.is_string, kinds.is_large_string, kinds.is_null)
    if any(is_kind(array.type) for is_kind in of_texts):
        return _without_starts(*_laid_out(array))
    fields: dict[str, pa.Array] = {}
    if kinds.is_struct(array.type):
        fields = _fields(array)
    elif _is_list(array.type):
        values, counts = _laid_out(array)
        if any(is_kind(values.type) for is_kind in of_texts):
            return _without_starts(values, counts)
        fields = _fields(values) if kinds.is_struct(values.type) else {}
        if "text" in fields:
            texts, starts = fields["text"], fields.get("answer_start")
            if not (_is_list(texts.type) or (starts is not None and _is_list(starts.type))):
                return _without_starts(texts, counts) if starts is None else Given(texts, counts, starts, counts)
            fields = {}
    if "text" not in fields:
        raise SkimError(f"{where} holds {column.type}.\nWrite answers as {FORMS}.")
    texts, counts = _laid_out(fields["text"])
    if "answer_start" not in fields:
        return _without_starts(texts, counts)
    starts, start_counts = _laid_out(fields["answer_start"])
    missing = fields["answer_start"].is_null().to_numpy(zero_copy_only=False)
    return Given(texts, counts, starts, np.where(missing, -1, start_counts))


def _without_starts(texts: pa.Array, counts: np.ndarray) -> Given:
    return Given(texts, counts, None, np.full(len(counts), -1))


def _fields(array: pa.StructArray) -> dict[str, pa.Array]:
    """Split a column of structs into fields by name, null where the struct is."""
    return {field.name: values for field, values in zip(array.type, array.flatten(), strict=True)}


def _is_list(kind: pa.DataType) -> bool:
    import pyarrow.types as kinds

    return any(is_kind(kind) for is_kind in (kinds.is_list, kinds.is_large_list, kinds.is_fixed_size_list))


def _laid_out(array: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Split a column into values and how many each row has: those of its list, or the one that is there."""
    import pyarrow.compute as pc

    if not _is_list(array.type):
        return array.drop_null(), array.is_valid().to_numpy(zero_copy_only=False).astype(np.int64)
    counts = pc.fill_null(pc.list_value_length(array), 0)
    return array.flatten(), counts.to_numpy(zero_copy_only=False).astype(np.int64)


def golds(answers: Given) -> pa.Array:
    """List the texts of each row that are not blank, (rows,)."""
    import pyarrow as pa
    import pyarrow.compute as pc

    texts = answers.texts
    if not (pa.types.is_string(texts.type) or pa.types.is_large_string(texts.type)):
        texts = pa.nulls(len(texts), pa.string())
    blank = pc.or_(pc.utf8_is_space(texts), pc.equal(texts, ""))
    kept = pc.fill_null(pc.invert(blank), False).to_numpy(zero_copy_only=False)
    counts = np.bincount(np.repeat(np.arange(len(answers.counts)), answers.counts)[kept], minlength=len(answers.counts))
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, texts.filter(pa.array(kept)).cast(pa.string()))


def places(contexts: pa.ChunkedArray, answers: Given) -> Iterator[tuple[int, int] | str]:
    """:func:`place` of each row; only some rows are ever held as Python objects."""
    row = text = start = 0
    for some in chunks(range(len(contexts))):
        counts, start_counts = (each[row : row + len(some)] for each in (answers.counts, answers.start_counts))
        texts = iter(answers.texts.slice(text, counts.sum()).to_pylist())
        begun = np.maximum(start_counts, 0).sum()
        starts = iter([] if answers.starts is None else answers.starts.slice(start, begun).to_pylist())
        lists = zip(contexts.slice(row, len(some)).to_pylist(), counts.tolist(), start_counts.tolist(), strict=True)
        for context, many, begins in lists:
            answers_here = list(islice(texts, many))
            yield place(context or "", answers_here, None if begins < 0 else list(islice(starts, begins)))
        row, text, start = row + len(some), text + int(counts.sum()), start + int(begun)


def place(context: str, texts: list[Any], starts: list[Any] | None) -> tuple[int, int] | str:
    """Find the first answer in its text.

    Args:
        context: the text.
        texts: the answers.
        starts: their first characters; ``None``: each stands where it first occurs.

    Returns:
        Its first and last character (exclusive), (-1, -1) without any answer; or what is wrong.
    """
    if starts is not None and len(starts) != len(texts):
        return f"{len(texts)} answers have {len(starts)} answer_start"
    found = (-1, -1)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            return f"{shown(text)} is not an answer"
        bare = text.strip()
        if not bare:  # as some say that there is none
            continue
        start = context.find(text) if starts is None else starts[i]
        if type(start) is float and start == start // 1:  # pandas makes such numbers of a column with gaps
            start = int(start)
        if type(start) is not int:
            return NO_START.format(shown(start))
        if start < 0 or not context.startswith(text, start):
            at = "" if starts is None else f" at character {start}"
            return f"the answer {shortened(text)} does not stand in the context{at}"
        if found[0] < 0:  # no token holds the spaces around an answer
            begin = start + len(text) - len(text.lstrip())
            found = (begin, begin + len(bare))
    return found


def shortened(text: str) -> str:
    """Shorten a text for an error."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
