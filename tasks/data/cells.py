"""Arrow columns of a user's cells: a column has one type, and each cell that does not fit it is a problem of its row.

Cells of a csv or tsv file are texts, and stay so: types that are guessed from a file's rows would differ between the
files of a task. A task that needs a number reads it from the text.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import pyarrow as pa

UTF8 = "Save the file as UTF-8."
CHUNK = 10_000  # rows turned into Arrow at once
KINDS = {str: "a text", int: "a number", float: "a number", bool: "true or false", list: "a list", dict: "an object"}


class Problem(NamedTuple):
    """Fault of a row as a whole, or of one of its cells; such cells are null in the table."""

    row: int  # from 0
    column: str | None  # None: the row cannot be used, whatever the task reads of it
    why: str  # ends in no full stop
    advice: str = ""  # what to do about it


class Columns:
    """Columns made of rows, ``CHUNK`` rows at a time: only one chunk is ever held as Python objects.

    A column takes the kind of most of its cells (texts, numbers, ...). The others become null and a problem each: they
    matter only if the task reads that column.

    Attributes:
        problems: of the rows so far.
    """

    def __init__(self) -> None:
        self.problems: list[Problem] = []
        self._sizes: list[int] = []
        # by column, by chunk: kind -> array with nulls where another kind stands; nearly always one kind
        self._parts: dict[str, list[dict[str, pa.Array]]] = {}

    def take(self, rows: Iterable[list[Any] | Problem], names: list[str]) -> None:
        """Add rows of a table whose header is known: a value for each name, or the row's problem."""
        unusable = [None] * len(names)
        for chunk in chunks(rows):
            usable = [unusable if isinstance(row, Problem) else row for row in chunk]
            self.problems += [row for row in chunk if isinstance(row, Problem)]
            self._add(dict(zip(names, map(list, zip(*usable, strict=True)), strict=True)), len(chunk))

    def take_objects(self, rows: Iterable[dict[str, Any] | Problem]) -> None:
        """Add rows that name their columns, each as it likes."""
        for chunk in chunks(rows):
            self.problems += [row for row in chunk if isinstance(row, Problem)]
            usable: list[dict[str, Any]] = [{} if isinstance(row, Problem) else row for row in chunk]
            names = dict.fromkeys(name for row in usable for name in row)
            self._add({name: [row.get(name) for row in usable] for name in names}, len(chunk))

    def table(self) -> pa.Table:
        """Make the table of all rows."""
        import pyarrow as pa

        # of a name that is not UTF-8, the bytes are written out: a task that wants the column will not find it
        names = {name: name.encode("utf-8", "backslashreplace").decode() for name in self._parts}
        return pa.table({names[name]: self._column(name, parts) for name, parts in self._parts.items()})

    def _add(self, columns: dict[str, list[Any]], count: int) -> None:
        for name in columns:
            self._parts.setdefault(name, [{} for _ in self._sizes])
        start = sum(self._sizes)
        for name, parts in self._parts.items():
            values = columns.get(name, [])
            present = {KINDS[kind] for kind in set(map(type, values)) if kind is not type(None)}
            split: dict[str, pa.Array] = {}
            for kind in sorted(present):
                mine = values if len(present) == 1 else [v if KINDS.get(type(v)) == kind else None for v in values]
                split[kind] = self._array(name, mine, start)
            parts.append(split)
        self._sizes.append(count)

    def _array(self, name: str, values: list[Any], start: int) -> pa.Array:
        """Make an array of cells of one kind; those that Arrow cannot hold become null and a problem."""
        import pyarrow as pa

        try:
            return pa.array(values)
        except (pa.ArrowException, UnicodeError, OverflowError):
            pass  # now find out which
        common, held = pa.null(), list(values)
        for i, value in enumerate(values):
            try:
                common = merged(common, pa.array([value]).type)
            except (pa.ArrowException, UnicodeError, OverflowError) as error:
                self.problems.append(Problem(start + i, name, *reason(value, error)))
                held[i] = None
        return pa.array(held, type=common)

    def _column(self, name: str, parts: list[dict[str, pa.Array]]) -> pa.ChunkedArray:
        import pyarrow as pa

        counts: Counter[str] = Counter()
        for split in parts:
            counts.update({kind: len(array) - array.null_count for kind, array in split.items()})
        if not counts:
            return pa.nulls(sum(self._sizes))
        main = counts.most_common(1)[0][0]
        common, arrays, start = pa.null(), [], 0
        for size, split in zip(self._sizes, parts, strict=True):
            for kind, array in split.items():
                fits = kind == main
                if fits:
                    try:
                        common = merged(common, array.type)
                    except pa.ArrowException:  # lists of numbers in one chunk, lists of texts in another
                        fits = False
                if not fits:
                    self._odd(name, array, start, f"is {kind}, and other rows hold {main}")
            fit = split.get(main)
            arrays.append(pa.nulls(size) if fit is None or not mergeable(common, fit.type) else fit)
            start += size
        return pa.chunked_array([cast(array, common) for array in arrays], type=common)

    def _odd(self, name: str, array: pa.Array, start: int, why: str) -> None:
        for i, value in enumerate(array.to_pylist()):
            if value is not None:
                self.problems.append(Problem(start + i, name, f"{shown(value)} {why}"))


def chunks(rows: Iterable[Any]) -> Iterator[list[Any]]:
    """Yield lists of ``CHUNK`` rows."""
    rows = iter(rows)
    while chunk := list(islice(rows, CHUNK)):
        yield chunk


def merged(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Find the type that holds both; an ArrowException if there is none."""
    import pyarrow as pa

    if one == other:
        return one
    schemas = [pa.schema([("x", kind)]) for kind in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field("x").type


def mergeable(one: pa.DataType, other: pa.DataType) -> bool:
    """Tell whether the first type holds the other's values as well."""
    import pyarrow as pa

    try:
        return merged(one, other) == one
    except pa.ArrowException:
        return False


def cast(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Convert values to a wider type."""
    import pyarrow as pa

    if array.type == kind:
        return array
    nested = pa.types.is_nested(kind)  # what Arrow casts of nested types depends on its version
    return pa.array(array.to_pylist(), type=kind) if nested else array.cast(kind)


def reason(value: Any, error: Exception) -> tuple[str, str]:
    """Explain, in a few words, why a value cannot be held, and what to do."""
    if isinstance(value, str):
        for place, letter in enumerate(value, 1):
            if 0xDC80 <= ord(letter) <= 0xDCFF:  # how Python marks a byte that does not decode
                return f"the text is not UTF-8 (byte 0x{ord(letter) - 0xDC00:02X} at character {place})", UTF8
        return "the text holds half a character (an unpaired surrogate)", ""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return f"{shown(value)} does not fit the rows before it ({first.rstrip('.')})", ""


def shown(value: Any) -> str:
    """Write a value as a user would, cut to some length."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 40 else f"{text[:37]}..."
