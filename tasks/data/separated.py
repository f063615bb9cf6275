"""Rows of csv and tsv files: the header line, and cells that are texts."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from skim.errors import SkimError
from tasks.data.cells import UTF8, Columns, Problem, shown

# GLUE's tsv files hold single quotation marks: in a tsv file they quote nothing
SEPARATED: dict[str, dict[str, Any]] = {".csv": {}, ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE}}
QUOTES = "A cell with a comma in it stands in quotation marks, and a quotation mark in such a cell is doubled."


def take_separated(columns: Columns, file: Path, kind: str, stream: IO[str], names: Sequence[str] | None) -> None:
    """Read all rows of a csv or tsv file into columns.

    Args:
        columns: to add them to.
        file: for errors.
        kind: one of ``SEPARATED``.
        stream: the file's text.
        names: of the columns of a file without a header line.
    """
    lines = csv.reader(stream, strict=True, **SEPARATED[kind])
    limit = csv.field_size_limit(sys.maxsize)  # a document may be longer than the default of 128 KiB
    try:
        header = _header(file, lines) if names is None else list(names)
        columns.take(_separated(file, lines, header, names is not None), header)
    finally:
        csv.field_size_limit(limit)


def _header(file: Path, lines: Any) -> list[str]:
    try:
        names: list[str] = next((cells for cells in lines if cells), [])
    except csv.Error as error:
        raise SkimError(f"{file}: the header line cannot be read ({error}).") from error
    if not names:
        raise SkimError(f"{file} has no rows.")
    try:
        "".join(names).encode()
    except UnicodeError as error:
        raise SkimError(f"{file}: the header line is not UTF-8. {UTF8}") from error
    names = [name.strip() or f"column {i}" for i, name in enumerate(names, 1)]  # pandas leaves its index unnamed
    for name in names:
        if names.count(name) > 1:
            raise SkimError(f"{file}: the header line names column '{name}' {names.count(name)} times.")
    return names


def _separated(file: Path, lines: Any, names: list[str], by_option: bool) -> Iterator[list[str] | Problem]:
    """Yield rows of cells; empty lines do not count."""
    row, width = 0, len(names)
    while True:
        begin = lines.line_num + 1
        try:
            cells = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end" in str(error):  # the cell goes on to the file's end, whatever rows it swallows
                raise SkimError(
                    f"{file}, row {row + 1} (line {begin}): a quotation mark is opened there and never closed."
                ) from error
            yield Problem(row, None, "a quotation mark inside a quoted cell is not doubled", QUOTES)
        else:
            if not cells:
                continue
            if len(cells) == width:
                yield cells
            elif by_option and row == 0:
                raise SkimError(f"{file}, row 1 has {len(cells)} cells; task.file_columns names {width}: {names}.")
            elif len(cells) < width:
                why = f"it has {len(cells)} of {width} cells: column '{names[len(cells)]}' is missing"
                yield Problem(row, None, why, QUOTES)
            else:
                why = f"it has {len(cells)} cells for {width} columns: after '{names[-1]}' comes {shown(cells[width])}"
                yield Problem(row, None, why, QUOTES)
        row += 1
