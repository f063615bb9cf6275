"""Rows of a file of texts, read as a stream: each with the share of the file that is read by then."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from skim.errors import SkimError, first_line

READ = 64  # rows of a Parquet file at a time


def rows_of(name: str) -> Iterator[tuple[float, Any]]:
    """Open a file of texts: each row, with the share of the file that is read.

    Raises:
        SkimError: it is not there, or of a kind that is not read.
    """
    if name == "-":
        return ((0.0, line.rstrip("\r\n")) for line in sys.stdin)
    path = Path(name)
    if not path.is_file():
        raise SkimError(f"There is no file {path}.")
    readers: dict[str, Callable[[Path], Iterator[tuple[float, Any]]]] = {
        ".txt": lines,
        ".jsonl": records,
        ".csv": cells,
        ".parquet": columns,
    }
    if path.suffix not in readers:
        raise SkimError(f"{path} is not read by its ending; {', '.join(readers)} and - (lines of stdin) are.")
    return readers[path.suffix](path)


def lines(path: Path) -> Iterator[tuple[float, str]]:
    """Read a text per line."""
    size, read = max(path.stat().st_size, 1), 0
    try:
        with path.open("rb") as file:
            for raw in file:
                read += len(raw)
                # spreadsheets put a mark in front of the first line
                text = raw.decode("utf-8-sig" if read == len(raw) else "utf-8")
                yield read / size, text.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise SkimError(f"{path} is not UTF-8 after byte {read}: {error.reason}.") from error


def records(path: Path) -> Iterator[tuple[float, Any]]:
    """Read a JSON object per line."""
    for number, (share, line) in enumerate(lines(path), 1):
        try:
            yield share, json.loads(line)
        except json.JSONDecodeError as error:
            raise SkimError(f"{path}, line {number}, is not JSON: {error}.") from error


def cells(path: Path) -> Iterator[tuple[float, dict[str, str]]]:
    """Read rows of a CSV file with a header."""
    share = 0.0

    def texts() -> Iterator[str]:
        nonlocal share
        for share, line in lines(path):  # noqa: B007 (told beside each row)
            yield f"{line}\n"

    for row in csv.DictReader(texts()):
        yield share, row


def columns(path: Path) -> Iterator[tuple[float, dict[str, Any]]]:
    """Read rows of a Parquet file, some at a time."""
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
        read = 0
        for batch in file.iter_batches(READ):
            for row in batch.to_pylist():
                read += 1
                yield read / file.metadata.num_rows, row
    except (ArrowException, OSError) as error:
        raise SkimError(f"{path} cannot be read as Parquet: {first_line(error)}.") from error
