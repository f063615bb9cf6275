"""A user's own csv, tsv, json, jsonl or parquet file as a ``datasets.Dataset``, memory-mapped and cached by content."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skim import hub
from skim.errors import SkimError

if TYPE_CHECKING:
    from datasets import Dataset

# "NA" and "null" are words: no cell of a text file means "missing"
CSV: dict[str, Any] = {"keep_default_na": False}
READERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".csv": ("csv", CSV),
    # GLUE's tsv files hold single quotation marks: in a tsv file they quote nothing
    ".tsv": ("csv", {**CSV, "sep": "\t", "quoting": csv.QUOTE_NONE}),
    ".json": ("json", {}),
    ".jsonl": ("json", {}),
}


def read(path: str) -> Dataset:
    """All rows of one file; csv and tsv files have a header line, json files one object per line or a list of objects.

    Raises:
        SkimError: not there, of an unknown kind, empty, or not readable.
    """
    import datasets

    file = Path(path).expanduser()
    if not file.is_file():
        raise SkimError(f"{path} is not there (looked for {file.absolute()}).")
    kind = file.suffix.lower()
    if kind != ".parquet" and kind not in READERS:
        raise SkimError(f"{path}: skim reads {', '.join(READERS)} and .parquet, not '{file.suffix}'.")
    if file.stat().st_size == 0:
        raise SkimError(f"{path} is empty.")
    if kind == ".parquet":
        return hub.parquet(file)
    reader, options = READERS[kind]
    try:
        return datasets.load_dataset(reader, data_files={"rows": str(file)}, split="rows", **options)
    except (datasets.exceptions.DatasetGenerationError, ValueError, OSError) as error:
        if "corresponds to no data" in str(error):
            raise SkimError(f"{path} has no rows.") from error
        reason = str(error.__cause__ or error).strip().splitlines()
        what = reason[0] if reason else type(error).__name__
        raise SkimError(f"{path} cannot be read as {reader}: {what}") from error
