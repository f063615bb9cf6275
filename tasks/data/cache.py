"""Tables that are made once and kept on disk: later runs and other ranks map the same file into memory."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from skim.files import matches, replacing, write_sum, write_text
from tasks.data.cells import Problem

if TYPE_CHECKING:
    import pyarrow as pa
    from datasets import Dataset

log = logging.getLogger(__name__)

ENCODING = 1  # counted up whenever the same rows and tokenizer shall give other columns; old caches are then left alone

# the rows of a file, and their problems
Parsed: TypeAlias = "tuple[pa.Table | pa.RecordBatchReader, list[Problem]]"


def cached(key: str, make: Callable[[], Parsed]) -> Dataset:
    """Make a table once for each key, with its problems.

    Args:
        key: a hash of all that the table depends on; becomes its fingerprint.
        make: gives the table, and the problems of its rows.
    """
    import datasets
    from filelock import FileLock

    target = Path(datasets.config.HF_DATASETS_CACHE) / "skim" / "files" / f"{key}.arrow"
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):  # ranks that start together: one makes it, the others wait
        if not there(target):
            _write(target, *make())
    rows = datasets.Dataset.from_file(str(target))
    rows._fingerprint = key  # not from the cache file's name and time: a copy of the file is the same data
    return rows


def there(file: Path) -> bool:
    """Tell whether a table was made before; the log tells of one that is cut or damaged, which is made anew."""
    if not file.is_file():
        return False
    if matches(file):
        return True
    log.warning("%s is not as it was written (its checksum differs): it is made anew", file)
    file.unlink()
    return False


def problems(rows: Dataset) -> list[Problem]:
    """List the problems of rows as :func:`cached` gave them; rows that were changed since have none."""
    for file in (Path(entry["filename"]) for entry in rows.cache_files):
        if file.stem == rows._fingerprint and (notes := file.with_suffix(".json")).is_file():
            return [Problem(*entry) for entry in json.loads(notes.read_text(encoding="utf-8"))]
    return []


def _write(target: Path, rows: pa.Table | pa.RecordBatchReader, found: list[Problem]) -> None:
    """Write the problems and then, at once, the arrow file beside them: who sees it sees both."""
    import pyarrow as pa

    write_text(target.with_suffix(".json"), json.dumps(found))
    with replacing(target) as part:
        with pa.OSFile(str(part), "wb") as sink, pa.ipc.new_stream(sink, rows.schema) as writer:
            for batch in rows.to_batches() if isinstance(rows, pa.Table) else rows:
                writer.write_batch(batch)
        write_sum(target, part)


def mapped(
    rows: Dataset, function: Callable[[dict[str, list]], dict[str, list]], tokenizer: Any, key: list[Any]
) -> tuple[Dataset, bool]:
    """Compute new columns of rows by a function that tokenises, once for rows, tokenizer and key.

    Args:
        rows: the rows.
        function: from some rows' columns to the new ones.
        tokenizer: that the function uses.
        key: all that the function depends on besides rows and tokenizer.

    Returns:
        The new columns, and whether they come from an earlier run.
    """
    from datasets import Dataset, config
    from datasets.fingerprint import Hasher
    from filelock import FileLock

    backend = tokenizer.backend_tokenizer
    # calls leave their truncation and padding behind in the tokenizer; they are not part of what it is
    backend.no_truncation()
    backend.no_padding()
    settings = [backend.to_str(), tokenizer.model_input_names, tokenizer.truncation_side]
    fingerprint = Hasher.hash([ENCODING, rows._fingerprint, settings, *key])
    file = Path(config.HF_DATASETS_CACHE) / "skim" / f"{fingerprint}.arrow"
    file.parent.mkdir(parents=True, exist_ok=True)

    def compute(into: Path | None = None) -> Dataset:
        return rows.map(
            function,
            batched=True,
            remove_columns=rows.column_names,
            new_fingerprint=fingerprint,
            cache_file_name=into and str(into),
        )

    if not len(rows):  # of which no file is written
        return compute(), False
    with FileLock(f"{file}.lock"):  # ranks that start together: one tokenises, the others wait and read
        from_cache = there(file)
        if not from_cache:
            with replacing(file) as part:
                compute(part)
                write_sum(file, part)
        table = Dataset.from_file(str(file), split=rows.split)
        table._fingerprint = fingerprint
    return table, from_cache
