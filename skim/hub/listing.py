"""A mirror's contents, and the tasks and backbones that can run with it alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from skim.errors import SkimError
from skim.hub.data import held, lacking
from skim.hub.door import mirror
from skim.hub.fetch import NOTHING, data_of, model_of
from skim.hub.models import complete
from skim.places import CONF

if TYPE_CHECKING:
    from rich.table import Table


def show() -> None:
    """Print what the mirror holds, and for each task and backbone of ``conf`` whether it is all that they need."""
    from rich.console import Console

    folder = mirror()
    if folder is None or not folder.is_dir():
        raise SkimError(f"SKIM_MIRROR {'is not set' if folder is None else f'names no folder: {folder}'}.")
    for table in (holds(folder), serves(folder)):
        Console().print(table)


def holds(folder: Path) -> Table:
    """List the files in a mirror, with rows and sizes."""
    import pyarrow.parquet as pq
    from rich.table import Table

    table = Table("name", "config", "splits (rows)", "MB", title=str(folder))
    for path in sorted({file.parent for file in (folder / "datasets").glob("**/*.parquet")}):
        files = sorted(path.glob("*.parquet"))
        splits = ", ".join(f"{file.stem} ({pq.read_metadata(file).num_rows:,})" for file in files)
        size = sum(file.stat().st_size for file in files)
        name = path.parent.relative_to(folder / "datasets")
        table.add_row(str(name), path.name, splits, f"{size / 1e6:.1f}")
    for path in sorted(p.parent for p in (folder / "models").glob("**/config.json")):
        size = sum(file.stat().st_size for file in path.iterdir())
        state = "model" if complete(path) else "model, INCOMPLETE: no *.safetensors"
        table.add_row(str(path.relative_to(folder / "models")), "", state, f"{size / 1e6:.1f}")
    return table


def serves(folder: Path) -> Table:
    """List each task and backbone of ``conf``, the data or the model that it needs, and how much of that is there."""
    from rich.table import Table

    table = Table("choice", "needs", "in the mirror", title="what can be run with it alone")
    for name in choices("task"):
        hub_id, config, splits = data_of(name, [])
        needs = f"{hub_id}/{config} ({', '.join(splits)})" if splits else ""
        table.add_row(f"task={name}", needs, data_state(folder / "datasets" / hub_id / config, splits))
    for name in choices("backbone"):
        model = model_of(name, [])
        state = NOTHING
        if model is not None:
            path = folder / "models" / model
            state = "complete" if complete(path) else "INCOMPLETE: no *.safetensors" if path.is_dir() else "-"
        table.add_row(f"backbone={name}", model or "", state)
    return table


def choices(group: str) -> list[str]:
    """The files of a config group."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml") if not file.stem.startswith("_"))


def data_state(folder: Path, splits: list[str]) -> str:
    """How much of the splits that a task needs is in a folder of the mirror, in words."""
    if not splits:
        return NOTHING
    there = held(folder)
    missing = [split for split in splits if split not in there or lacking(there[split])]
    return "complete" if not missing else f"INCOMPLETE: no {', no '.join(missing)}" if there else "-"
