"""Rows of json files: an object per line, a list of objects, or an object with such a list."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from skim.errors import SkimError
from tasks.data.cells import Columns, Problem, shown

DEPTH = 50  # of lists and objects in a row; Arrow's files hold no more than 64
LINES = 'A row is an object with its columns: {"text": "...", "label": "..."}.'


def take_objects(columns: Columns, file: Path, kind: str, stream: IO[str]) -> None:
    """Read all rows of a json or jsonl file into columns.

    Args:
        columns: to add them to.
        file: for errors.
        kind: ``.json`` or ``.jsonl``.
        stream: the file's text.
    """
    columns.take_objects(_lines(stream) if kind == ".jsonl" or _is_lines(stream) else _whole(file, stream))


def _is_lines(stream: IO[str]) -> bool:
    """Tell whether a .json file holds an object per line, as a .jsonl file does; rewinds the stream."""
    filled = (line.strip() for line in stream)
    filled = (line for line in filled if line)
    first, second = next(filled, ""), next(filled, None)
    stream.seek(0)
    return first.startswith("{") and first.endswith("}") and second is not None


def _lines(stream: IO[str]) -> Iterator[dict[str, Any] | Problem]:
    """Yield an object per line; empty lines do not count."""
    row = 0
    for line in stream:
        if not line.strip():
            continue
        try:
            value = json.loads(line.strip())
        except (ValueError, RecursionError) as error:
            where = f" at character {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            yield Problem(row, None, f"it is not JSON ({_why(error)}{where})", LINES)
        else:
            yield _object(row, value)
        row += 1


def _whole(file: Path, stream: IO[str]) -> Iterator[dict[str, Any] | Problem]:
    """Yield the objects of a list, or of an object with such a list."""
    text = stream.read()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise SkimError(
            f"{file}, row {_broken(text)}: it is not JSON ({_why(error)}{where}).\n"
            "The rows after it cannot be separated; in a file of one object per line (.jsonl) such rows can be skipped."
        ) from error
    if isinstance(value, dict):
        value = value["data"] if isinstance(value.get("data"), list) else [value]
    if not isinstance(value, list):
        raise SkimError(f"{file} holds {shown(value)}, not a list of objects.")
    for row, one in enumerate(value):
        yield _object(row, one)


def _object(row: int, value: Any) -> dict[str, Any] | Problem:
    if not isinstance(value, dict):
        return Problem(row, None, f"it is {shown(value)}, not an object with columns", LINES)
    return Problem(row, None, "it is nested too deeply", LINES) if _is_deeper(value, DEPTH) else value


def _is_deeper(value: dict[str, Any] | list[Any], depth: int) -> bool:
    """Tell whether lists and objects are nested deeper than that."""
    inner = value.values() if isinstance(value, dict) else value
    return not depth or any(isinstance(one, dict | list) and _is_deeper(one, depth - 1) for one in inner)


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(getattr(error, "msg", error)).removesuffix(" at")


def _broken(text: str) -> int:
    """Find the row, from 1, at which a list of objects breaks off."""
    decoder, space, row = json.JSONDecoder(), re.compile(r"[\s,]*"), 1
    place = text.find("[") + 1
    while True:
        try:
            _, place = decoder.raw_decode(text, space.match(text, place).end())  # type: ignore[union-attr]
        except (ValueError, RecursionError):
            return row
        row += 1
