"""A user's own file as a ``datasets.Dataset``, memory-mapped and cached by content: the one door for all kinds.

Kinds are csv, tsv, json, jsonl, parquet, and those that a task reads in its own way, see :class:`Reader`. A row that
cannot be read stops nothing here: it becomes a row of nulls, and :func:`tasks.data.cache.problems` has
its fault. So the number of a row in the table is its number in the file, and :class:`tasks.data.columns.Rejects`
decides whether that is an error.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from skim.errors import SkimError, first_line
from tasks.data.cache import Parsed, cached, problems
from tasks.data.cells import Columns
from tasks.data.objects import take_objects
from tasks.data.separated import SEPARATED, take_separated

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

log = logging.getLogger(__name__)

READING = 2  # counted up whenever the same file shall give another table; old caches are then left alone
PARQUET = ".parquet"
RATIO = 100  # of a packed file's content to its size, at most: texts have 3 to 20, and zeros a thousand
UNPACKED = 64 << 20  # bytes that a packed file may hold in any case
KINDS = (*SEPARATED, ".json", ".jsonl", PARQUET)


class Reader(NamedTuple):
    """Reading of some kinds of files in a task's own way.

    Attributes:
        suffixes: of these files, without ``.gz``.
        parse: gives a file's table and the problems of its rows; ``None``: it is to be read as any other.
        key: what ``parse`` depends on besides the file; keys the cache.
    """

    suffixes: tuple[str, ...]
    parse: Callable[[Path], Parsed | None]
    key: Sequence[Any]


def read(path: str, columns: Sequence[str] | None = None, reader: Reader | None = None) -> Dataset:
    """Read all rows of one file, which may be gzipped (``.csv.gz``), but for parquet.

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
        raise SkimError(f"{path} cannot be read as {kind[1:]}: {first_line(error)}.") from error
    if len(rows) == 0:
        found = problems(rows)
        if found:
            why = "\n".join(line for line in (f"{found[0].why}.", found[0].advice) if line)
            raise SkimError(f"{path}: none of its {len(found)} rows can be read. Row {found[0].row + 1}: {why}")
        raise SkimError(f"{path} has no rows.")
    return rows


def kind_of(file: Path) -> str:
    """Return the suffix that decides how to read a file: that before ``.gz``."""
    return Path(file.stem if file.suffix.lower() == ".gz" else file.name).suffix.lower()


def opened(file: Path) -> IO[str]:
    """Open a file's text; bytes that are not UTF-8 become surrogates, which :mod:`tasks.data.cells` finds."""
    opener: Any = gzip.open if file.suffix.lower() == ".gz" else open
    return opener(file, "rt", encoding="utf-8-sig", errors="surrogateescape", newline="")


def parse(file: Path, kind: str, names: Sequence[str] | None = None) -> Parsed:
    """Parse a file of one of ``KINDS``: its rows, and their problems."""
    if kind == PARQUET:
        return _parquet(file), []
    columns = Columns()
    with opened(file) as stream:
        if kind in SEPARATED:
            take_separated(columns, file, kind, stream, names)
        else:
            take_objects(columns, file, kind, stream)
    table = columns.table()  # first: it finds more problems
    return table, columns.problems


def _key(file: Path, reading: list[Any]) -> str:
    """Hash all that the table depends on: content and way of reading.

    Raises:
        SkimError: a packed file that is nearly all repetition; it is found here, before a line of it is held.
    """
    digest = hashlib.blake2b(json.dumps(reading).encode(), digest_size=16)
    packed, size = file.suffix.lower() == ".gz", 0
    with (gzip.open if packed else open)(file, "rb") as stream:  # type: ignore[operator]
        while block := stream.read(1 << 20):
            digest.update(block)
            size += len(block)
            if packed and size > UNPACKED + RATIO * file.stat().st_size:
                raise SkimError(
                    f"{file} holds more than {RATIO} times its size, as no texts do: it may be made to fill a memory.\n"
                    "If you know what is in it, unpack it and name the file inside."
                )
    return digest.hexdigest()


def _parquet(file: Path) -> pa.RecordBatchReader:
    """Read the columns that ``datasets`` can hold: one that it cannot must not refuse a file whose others are used."""
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
