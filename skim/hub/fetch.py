"""Fill a mirror with what a task and a backbone need."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from skim.errors import SkimError, first_line, message
from skim.hub.data import SHARD, from_hub, held, lacking, reason
from skim.hub.door import mirror, problem_with
from skim.hub.models import MODEL_FILES, complete
from skim.places import CONF

NOTHING = "nothing to fetch (built in, or own files)"
USAGE = (
    "python -m skim.hub fetch task=<names> backbone=<names>   |   python -m skim.hub list   |   "
    "python -m skim.hub convert <in> <out> [--preset tiny|small|base]"
)


def fetch(overrides: list[str]) -> None:
    """Copy the data sets of ``task=<names>`` and the models of ``backbone=<names>`` into the mirror.

    What is there is kept.

    Args:
        overrides: as for ``train.py``, but several names with commas between; ``task=...`` or ``backbone=...`` or both.
    """
    given = dict(override.partition("=")[::2] for override in overrides)
    if not set(given) & {"task", "backbone"}:
        raise SkimError("Nothing to fetch: name a task, a backbone or both.\n" + USAGE)
    folder = mirror()
    if folder is None:
        raise SkimError("SKIM_MIRROR is not set: it names the folder to fill.\nexport SKIM_MIRROR=<folder>")
    others = [override for override in settled(overrides) if override.partition("=")[0] not in ("task", "backbone")]
    for name in filter(None, given.get("task", "").split(",")):
        hub_id, config, splits = data_of(name, others)
        print(f"task={name}: {fetch_dataset(folder, hub_id, config, splits) if splits else NOTHING}")
    for name in filter(None, given.get("backbone", "").split(",")):
        model = model_of(name, others)
        print(f"backbone={name}: {fetch_model(folder, model) if model else NOTHING}")


def data_of(task: str, overrides: list[str]) -> tuple[str, str, list[str]]:
    """Hub id and configuration of a task's data set, and the splits that a training reads; none if it needs none."""
    from skim.options.check import typed
    from skim.options.targets import instantiated

    with typed("task"):
        made = instantiated(composed([f"task={task}", *overrides]).task, "task")
    return made.hub_id or "", made.config, made.splits()


def model_of(backbone: str, overrides: list[str]) -> str | None:
    """Hub id, or folder, of a backbone; ``None`` for one that is made from nothing."""
    return composed([f"backbone={backbone}", *overrides]).backbone.hub_id


def settled(overrides: list[str]) -> list[str]:
    """The overrides, with names and options that exist."""
    from skim.options.settle import settle

    with composing():
        return settle(overrides, "train")


def composed(overrides: list[str]) -> Any:
    """The config of a training with these overrides."""
    from hydra import compose

    with composing():
        return compose("train", overrides)


@contextlib.contextmanager
def composing() -> Iterator[None]:
    """Hydra on the config folder, its errors in a few words."""
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            yield
    except HydraException as error:
        raise SkimError(message(error)) from error


def fetch_dataset(folder: Path, hub_id: str, config: str, needed: Sequence[str] = ()) -> str:
    """Write all splits into the mirror at ``folder``; returns what was done, in words.

    Args:
        folder: the mirror.
        hub_id: of the data set.
        config: of the data set.
        needed: splits without which it is not complete, and fetched once more.
    """
    import datasets

    target = folder / "datasets" / hub_id / config
    found = {split for split, files in held(target).items() if not lacking(files)}
    if found and not set(needed) - found:
        return f"{target} is there"
    if problem := problem_with(hub_id, "dataset"):
        raise SkimError(f"Data set {hub_id} cannot be fetched. The hub: {problem}.")
    with all_or_nothing(target) as part:
        try:
            splits = from_hub(hub_id, config)
        except (datasets.exceptions.DatasetsError, ValueError, RuntimeError) as error:
            raise SkimError(f"Data set {hub_id} cannot be fetched. The hub: {reason(error)}.") from error
        if missing := [split for split in needed if split not in splits]:
            there = ", ".join(splits)
            raise SkimError(
                f"Data set {hub_id} (config {config}) has no split {' and no '.join(missing)}, only {there}."
            )
        for split, rows in splits.items():
            if split not in found:
                rows.to_parquet(part / f"{split}.parquet")
        for file in [*target.glob("*")] if target.is_dir() else []:  # what is there is kept, but for parts of a split
            name = SHARD.fullmatch(file.stem)
            if name is None or name[1] in found:
                shutil.copy2(file, part / file.name)
    return f"wrote {target}"


def fetch_model(folder: Path, name: str) -> str:
    """Write config, weights and tokenizer into the mirror at ``folder``; returns what was done, in words."""
    from huggingface_hub import snapshot_download

    target = folder / "models" / name
    if complete(target):
        return f"{target} is there"
    if problem := problem_with(name, "model"):
        raise SkimError(f"Model {name} cannot be fetched. The hub: {problem}.")
    with all_or_nothing(target) as part:
        snapshot_download(name, local_dir=part, allow_patterns=list(MODEL_FILES))
        if not complete(part):
            raise SkimError(f"Model {name} has no safetensors weights on the hub, and skim does not unpickle.")
    return f"wrote {target}"


@contextlib.contextmanager
def all_or_nothing(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes ``target`` when all went well: an interrupted fetch leaves no half mirror."""
    part = target.with_name(f"{target.name}.part")
    try:
        part.mkdir(parents=True, exist_ok=True)
        yield part
        shutil.rmtree(part / ".cache", ignore_errors=True)  # the hub client's notes about its download
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    except OSError as error:
        raise SkimError(f"{target} cannot be filled: {first_line(error)}") from error
