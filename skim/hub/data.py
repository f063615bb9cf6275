"""Data sets by their hub ids: the mirror, the cache of ``datasets``, the hub."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skim.errors import SkimError, first_line
from skim.hub.door import mirror, nowhere, problem_with

if TYPE_CHECKING:
    from datasets import Dataset

SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})")  # how the hub names the files of a split that is in several
CONVERTED = "refs/convert/parquet"  # the hub's own branch of data sets that are programs
SCRIPT = "scripts are no longer supported"  # what `datasets` says of them


def dataset(hub_id: str, config: str, split: str, fetch: str = "task=<name>") -> Dataset:
    """One split of a data set, memory-mapped.

    Args:
        hub_id: such as ``nyu-mll/glue``.
        config: such as ``sst2``; ``default`` for a data set that has only one.
        split: such as ``train``.
        fetch: what to give ``python -m skim.hub fetch`` to get it; stands in the error.

    Raises:
        SkimError: it can be had nowhere; says where it was looked for and which command gets it.
    """
    import datasets

    looked = []
    folder = mirror()
    if folder is None:
        looked.append("SKIM_MIRROR is not set")
    else:
        path = folder / "datasets" / hub_id / config / f"{split}.parquet"
        found = held(path.parent)
        if split in found:
            return parquet(*whole(split, found[split]))
        there = f" (there: {', '.join(found)})" if found else ""
        looked.append(f"the mirror has no {path}{there}")
    try:
        with cache_only():
            return datasets.load_dataset(hub_id, config, split=split)
    except ConnectionError:
        looked.append("the cache has none")
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:  # not this one, or broken
        looked.append(f"the cache: {first_line(error.__cause__ or error)}")
    problem = problem_with(hub_id, "dataset")
    if problem is None:
        try:
            return from_hub(hub_id, config, split=split)
        except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
            problem = reason(error)
    looked.append(f"the hub: {problem}")
    raise nowhere(f"Data set {hub_id} (config {config}, split {split})", looked, fetch)


def from_hub(hub_id: str, config: str, **options: Any) -> Any:
    """Load from the hub; of a data set that is a script, which `datasets` no longer runs, the files the hub made."""
    import datasets

    try:
        return datasets.load_dataset(hub_id, config, **options)
    except RuntimeError as error:
        if SCRIPT not in str(error).lower():
            raise
        # there, configurations are folders
        return datasets.load_dataset(hub_id, data_dir=config, revision=CONVERTED, **options)


def held(folder: Path) -> dict[str, list[Path]]:
    """The splits in a folder of the mirror and their files, in order: ``train.parquet``, or the parts of a split."""
    splits: dict[str, list[Path]] = {}
    for file in sorted(folder.glob("*.parquet"), key=lambda file: (SHARD.fullmatch(file.stem) is not None, file)):
        part = SHARD.fullmatch(file.stem)
        split = part[1] if part else file.stem
        if part and folder / f"{split}.parquet" in splits.get(split, []):
            continue  # the whole is there, too
        splits.setdefault(split, []).append(file)
    return splits


def whole(split: str, files: list[Path]) -> list[Path]:
    """The files of a split.

    Raises:
        SkimError: some parts are missing.
    """
    if missing := lacking(files):
        raise SkimError(
            f"{files[0].parent} holds {len(files)} of the {len(files) + missing} parquet files of {split}; copy all."
        )
    return files


def lacking(files: list[Path]) -> int:
    """How many parts of a split are not there."""
    part = SHARD.fullmatch(files[0].stem)
    return int(part[2]) - len(files) if part is not None else 0


def parquet(*paths: Path) -> Dataset:
    """Parquet files, memory-mapped from the cache of ``datasets`` (their own folder may be read-only)."""
    import datasets
    from pyarrow.parquet import read_metadata

    path = paths[0]
    try:
        if not sum(read_metadata(path := one).num_rows for one in paths):
            raise SkimError(f"{path} has no rows.")
        return datasets.load_dataset("parquet", data_files={"rows": list(map(str, paths))}, split="rows")
    except (datasets.exceptions.DatasetGenerationError, OSError, ValueError) as error:
        raise SkimError(f"{path} cannot be read as parquet: {first_line(error.__cause__ or error)}") from error


def reason(error: BaseException) -> str:
    """Why a data set cannot be loaded; many old ones are programs, which `datasets` runs no more."""
    script = SCRIPT in f"{error} {error.__context__}".lower()
    return first_line(error.__cause__ or error) + (
        "; it is a script there, and the hub has not converted it: look for a copy as parquet (task.hub_id=...), or "
        "give own files (task.files.train=...)"
        if script
        else ""
    )


@contextlib.contextmanager
def cache_only() -> Iterator[None]:
    """Within it ``load_dataset`` looks in its cache and nowhere else; it has no argument for that."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before
