"""A user's own file as a ``datasets.Dataset``, memory-mapped and cached by content: the one door for all kinds.

Kinds are csv, tsv, json, jsonl, parquet, and those that a task reads in its own way, see :class:`Reader`. A row that
cannot be read stops nothing here: it becomes a row of nulls, and :func:`problems` says what is wrong. So the number of
a row in the table is its number in the file, and :class:`tasks.data.columns.Rejects` decides what happens.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import json
import logging
import os
import re
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, TypeAlias

from skim.errors import SkimError
from tasks.data.cells import UTF8, Columns, Problem, shown

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

log = logging.getLogger(__name__)

READING = 2  # counted up whenever the same file shall give another table; old caches are then left alone
# GLUE's tsv files hold single quotation marks: in a tsv file they quote nothing
SEPARATED: dict[str, dict[str, Any]] = {".csv": {}, ".tsv": {"delimiter": "\t", "quoting": csv.QUOTE_NONE}}
DEPTH = 50  # of lists and objects in a row; Arrow's files hold no more than 64
PARQUET = ".parquet"
KINDS = (*SEPARATED, ".json", ".jsonl", PARQUET)
LINES = 'A row is an object with its columns: {"text": "...", "label": "..."}.'
QUOTES = "A cell with a comma in it stands in quotation marks, and a quotation mark in such a cell is doubled."


# the rows, and what is wrong with them
Parsed: TypeAlias = "tuple[pa.Table | pa.RecordBatchReader, list[Problem]]"


class Reader(NamedTuple):
    """How a task reads some kinds of files in its own way.

    Attributes:
        suffixes: of these files, without ``.gz``.
        parse: gives a file's table and what is wrong with its rows; ``None``: it is to be read as any other.
        key: what ``parse`` depends on besides the file; keys the cache.
    """

    suffixes: tuple[str, ...]
    parse: Callable[[Path], Parsed | None]
    key: Sequence[Any]


def read(path: str, columns: Sequence[str] | None = None, reader: Reader | None = None) -> Dataset:
    """All rows of one file, which may be gzipped (``.csv.gz``), but for parquet.

    Args:
        path: csv and tsv files have a header line, and their cells are texts; json files hold one object per line, a
            list of objects, or an object whose ``data`` is such a list.
        columns: names of the columns of a csv or tsv file that has no header line.
        reader: for further kinds of files.

    Raises:
        SkimError: not there, of an unknown kind, empty, or not readable as a whole.
    """
    import pyarrow as pa

    file = Path(path).expanduser()
    kinds = dict.fromkeys((*KINDS, *(reader.suffixes if reader else ())))
    if file.is_dir():
        raise SkimError(f"{path} is a folder; name one file: {', '.join(kinds)}.")
    if not file.is_file():
        raise SkimError(f"{path} is not there (looked for {file.absolute()}).")
    kind = kind_of(file)
    if kind not in kinds:
        raise SkimError(f"{path}: skim reads {', '.join(kinds)}, not '{file.suffix}'.")
    if file.stat().st_size == 0:
        raise SkimError(f"{path} is empty.")
    own = reader if reader and kind in reader.suffixes else None

    def make() -> Parsed:
        return (own.parse(file) if own else None) or parse(file, kind, columns)

    try:
        rows = cached(_key(file, [READING, kind, columns and list(columns), own and list(own.key)]), make)
    except (
        OSError,
        EOFError,
        zlib.error,
        pa.ArrowException,
    ) as error:  # no permission, a broken gzip file, a full disk
        raise SkimError(f"{path} cannot be read as {kind[1:]}: {str(error).splitlines()[0].rstrip('.')}.") from error
    if len(rows) == 0:
        found = problems(rows)
        if found:
            why = "\n".join(line for line in (f"{found[0].why}.", found[0].advice) if line)
            raise SkimError(f"{path}: none of its {len(found)} rows can be read. Row {found[0].row + 1}: {why}")
        raise SkimError(f"{path} has no rows.")
    return rows


def cached(key: str, make: Callable[[], Parsed]) -> Dataset:
    """A table that is made once for each key, with its problems: later runs and other ranks map the same file.

    Args:
        key: a hash of all that the table depends on; becomes its fingerprint.
        make: gives the table, and what is wrong with its rows.
    """
    import datasets
    from filelock import FileLock

    target = Path(datasets.config.HF_DATASETS_CACHE) / "skim" / "files" / f"{key}.arrow"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # ranks that start together: one makes it, the others wait
        if not target.is_file():
            _write(target, *make())
    rows = datasets.Dataset.from_file(str(target))
    rows._fingerprint = key  # not from the cache file's name and time: a copy of the file is the same data
    return rows


def problems(rows: Dataset) -> list[Problem]:
    """What is wrong with the rows that :func:`cached` gave; of rows that were changed since, nothing is known."""
    for file in (Path(entry["filename"]) for entry in rows.cache_files):
        if file.stem == rows._fingerprint and (notes := file.with_suffix(".json")).is_file():
            return [Problem(*entry) for entry in json.loads(notes.read_text(encoding="utf-8"))]
    return []


def kind_of(file: Path) -> str:
    """The suffix that says how to read it: that before ``.gz``."""
    return Path(file.stem if file.suffix.lower() == ".gz" else file.name).suffix.lower()


def opened(file: Path) -> IO[str]:
    """The file's text; bytes that are not UTF-8 are marked in it, as surrogates: :mod:`tasks.data.cells` finds them."""
    opener: Any = gzip.open if file.suffix.lower() == ".gz" else open
    return opener(file, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")


def parse(file: Path, kind: str, names: Sequence[str] | None = None) -> Parsed:
    """A file of one of ``KINDS``: its rows, and what is wrong with them."""
    if kind == PARQUET:
        return _parquet(file), []
    columns = Columns()
    with opened(file) as stream:
        if kind in SEPARATED:
            lines = csv.reader(stream, strict=True, **SEPARATED[kind])
            limit = csv.field_size_limit(sys.maxsize)  # a document may be longer than the default of 128 KiB
            try:
                header = _header(file, lines) if names is None else list(names)
                columns.take(_separated(file, lines, header, names is not None), header)
            finally:
                csv.field_size_limit(limit)
            return columns.table(), columns.problems
        columns.take_objects(_lines(stream) if kind == ".jsonl" or _is_lines(stream) else _whole(file, stream))
        table = columns.table()  # first: it finds more problems
        return table, columns.problems


def _key(file: Path, reading: list[Any]) -> str:
    """What the table depends on: content and way of reading."""
    digest = hashlib.blake2b(json.dumps(reading).encode(), digest_size=16)
    with (gzip.open if file.suffix.lower() == ".gz" else open)(file, "rb") as stream:  # type: ignore[operator]
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write(target: Path, rows: pa.Table | pa.RecordBatchReader, found: list[Problem]) -> None:
    """The arrow file and, beside it, the problems; the arrow file last and at once: who sees it sees both."""
    import pyarrow as pa

    target.with_suffix(".json").write_text(json.dumps(found), encoding="utf-8")
    part = target.with_suffix(".part")
    with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
        for batch in rows.to_batches() if isinstance(rows, pa.Table) else rows:
            writer.write_batch(batch)
    os.replace(part, target)


def _parquet(file: Path) -> pa.RecordBatchReader:
    """What ``datasets`` can hold of it: a column that it cannot must not refuse a file whose other columns are used."""
    import pyarrow as pa
    from datasets import Features
    from pyarrow.parquet import ParquetFile

    whole = ParquetFile(file)
    fields = []
    for field in whole.schema_arrow:
        if whole.schema_arrow.names.count(field.name) > 1:
            raise SkimError(f"{file} has {whole.schema_arrow.names.count(field.name)} columns '{field.name}'.")
        try:  # categories become texts
            kind = Features.from_arrow_schema(pa.schema([field.remove_metadata()])).arrow_schema.field(0).type
            kind = pa.string() if pa.types.is_string_view(kind) else kind
            pa.nulls(1, field.type).cast(kind)
            fields.append(field.with_type(kind))
        except (ValueError, NotImplementedError):
            log.warning("%s: column '%s' is not read: it holds %s", file, field.name, field.type)
    schema = pa.schema(fields, whole.schema_arrow.metadata)  # the metadata name the classes
    batches = (batch.cast(schema) for batch in whole.iter_batches(columns=schema.names))
    return pa.RecordBatchReader.from_batches(schema, batches)


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
    """Rows of cells; empty lines are none."""
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


def _is_lines(stream: IO[str]) -> bool:
    """Whether a .json file holds an object per line, as a .jsonl file does; the stream is put back to its begin."""
    filled = (line.strip() for line in stream)
    filled = (line for line in filled if line)
    first, second = next(filled, ""), next(filled, None)
    stream.seek(0)
    return first.startswith("{") and first.endswith("}") and second is not None


def _lines(stream: IO[str]) -> Iterator[dict[str, Any] | Problem]:
    """An object per line; empty lines are none."""
    row = 0
    for line in stream:
        if not line.strip():
            continue
        try:
            value = json.loads(line.strip())
        except (ValueError, RecursionError) as error:
            where = f" at character {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            yield Problem(row, None, f"it is no JSON ({_why(error)}{where})", LINES)
        else:
            yield _object(row, value)
        row += 1


def _whole(file: Path, stream: IO[str]) -> Iterator[dict[str, Any] | Problem]:
    """A list of objects, or an object with such a list."""
    text = stream.read()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" in line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise SkimError(
            f"{file}, row {_broken(text)}: it is no JSON ({_why(error)}{where}).\n"
            "What follows cannot be told apart; in a file of one object per line (.jsonl) such rows can be skipped."
        ) from error
    if isinstance(value, dict):
        value = value["data"] if isinstance(value.get("data"), list) else [value]
    if not isinstance(value, list):
        raise SkimError(f"{file} holds {shown(value)}, and no list of objects.")
    for row, one in enumerate(value):
        yield _object(row, one)


def _object(row: int, value: Any) -> dict[str, Any] | Problem:
    if not isinstance(value, dict):
        return Problem(row, None, f"it is {shown(value)}, and no object with columns", LINES)
    return Problem(row, None, "it is nested too deeply", LINES) if _is_deeper(value, DEPTH) else value


def _is_deeper(value: dict[str, Any] | list[Any], depth: int) -> bool:
    """Whether lists and objects hold each other so many times."""
    inner = value.values() if isinstance(value, dict) else value
    return not depth or any(isinstance(one, dict | list) and _is_deeper(one, depth - 1) for one in inner)


def _why(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(getattr(error, "msg", error)).removesuffix(" at")


def _broken(text: str) -> int:
    """The row, from 1, at which a list of objects breaks off."""
    decoder, space, row = json.JSONDecoder(), re.compile(r"[\s,]*"), 1
    place = text.find("[") + 1
    while True:
        try:
            _, place = decoder.raw_decode(text, space.match(text, place).end())  # type: ignore[union-attr]
        except (ValueError, RecursionError):
            return row
        row += 1
