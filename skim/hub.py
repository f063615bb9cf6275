"""The one door for names of data sets and models: a mirror folder, then the Hugging Face cache, then the hub.

    export SKIM_MIRROR=/data/mirror
    python -m skim.hub fetch task=sst2,mrpc backbone=minilm    # on a machine with internet: fill the mirror
    python -m skim.hub list                               # what the mirror holds, and what of it is complete
    python -m skim.hub convert <in> <out>                 # a published Funnel or ALBERT-ACT, see skim/published

A mirror holds ``datasets/<hub id>/<config>/<split>.parquet``, or the hub's own files of a split, such as
``train-00000-of-00002.parquet``, and ``models/<hub id>/``. Compute nodes without internet need nothing else, and never
wait for the hub: it is asked once, briefly, before anything is downloaded from it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skim.errors import SkimError

if TYPE_CHECKING:
    from datasets import Dataset
    from rich.table import Table

CONF = Path(__file__).resolve().parent.parent / "conf"
SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})")  # how the hub names the files of a split that is in several
CONVERTED = "refs/convert/parquet"  # the hub's own branch of data sets that are programs
SCRIPT = "scripts are no longer supported"  # what `datasets` says of them
PROBE_SECONDS = 4.0  # how long the hub may take to say whether it has a name
# what transformers needs to load a model without unpickling anything
MODEL_FILES = ("*.json", "*.safetensors", "*.txt", "*.model")


def mirror() -> Path | None:
    """The folder that ``SKIM_MIRROR`` names, if it is set."""
    folder = os.environ.get("SKIM_MIRROR")
    return Path(folder).expanduser() if folder else None


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
        with _cache_only():
            return datasets.load_dataset(hub_id, config, split=split)
    except ConnectionError:
        looked.append("the cache has none")
    except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:  # not this one, or broken
        looked.append(f"the cache: {_first_line(error.__cause__ or error)}")
    problem = _hub_problem(hub_id, "dataset")
    if problem is None:
        try:
            return _from_hub(hub_id, config, split=split)
        except (datasets.exceptions.DatasetsError, OSError, ValueError, RuntimeError) as error:
            problem = _reason(error)
    looked.append(f"the hub: {problem}")
    raise _nowhere(f"Data set {hub_id} (config {config}, split {split})", looked, fetch)


def _from_hub(hub_id: str, config: str, **options: Any) -> Any:
    """What the hub has; of a data set that is a program, which `datasets` runs no more, what the hub made of it."""
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
        raise SkimError(f"{path} cannot be read as parquet: {_first_line(error.__cause__ or error)}") from error


def model_path(
    name: str,
    fetch: str | None = "backbone=<name>",
    pickled: bool = False,
    *,
    revision: str | None = None,
    **options: Any,
) -> str:
    """A folder with a model's config, weights (safetensors) and tokenizer.

    Args:
        name: hub id, or a folder.
        fetch: what to give ``python -m skim.hub fetch`` to get it; stands in the error. ``None``: not by that command.
        pickled: weights in ``*.bin`` will do as well.
        revision: of the hub; a mirror knows none, and is not looked at if one is given.
        options: ``token`` and ``cache_dir`` of ``huggingface_hub``.

    Raises:
        SkimError: it can be had nowhere; says where it was looked for and which command gets it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if Path(name).is_dir():
        return name
    if name.startswith((".", "~", "/")) or name.count("/") > 1:
        raise SkimError(f"There is no folder {name}.")
    asked = {"revision": revision, **options}
    looked = []
    folder = mirror()
    if folder is None:
        looked.append("SKIM_MIRROR is not set")
    elif revision is not None:
        looked.append("a mirror knows no revisions")
    else:
        path = folder / "models" / name
        if complete(path, pickled):
            return str(path)
        state = "is incomplete (needs config.json and *.safetensors)" if path.is_dir() else "is not there"
        looked.append(f"the mirror's {path} {state}")
    try:
        cached = snapshot_download(name, local_files_only=True, **asked)
        if complete(Path(cached), pickled):
            return cached
        looked.append(f"the cache has only parts of it ({cached})")
    except (LocalEntryNotFoundError, ValueError) as error:
        looked.append("the cache has none" if isinstance(error, LocalEntryNotFoundError) else _first_line(error))
    problem = _hub_problem(name, "model", revision, options.get("token"))
    if problem is None:
        try:
            patterns = [*MODEL_FILES, *(["*.bin"] if pickled else [])]
            downloaded = snapshot_download(name, allow_patterns=patterns, **asked)
            if complete(Path(downloaded), pickled):
                return downloaded
            problem = "it has no weights there" + ("" if pickled else " as safetensors, and skim does not unpickle")
        except (HfHubHTTPError, OSError) as error:
            problem = _first_line(error)
    looked.append(f"the hub: {problem}")
    raise _nowhere(f"Model {name}{f' at {revision}' if revision else ''}", looked, fetch, name)


def complete(folder: Path, pickled: bool = False) -> bool:
    """Whether this folder has a model's config and its weights, such that nothing has to be unpickled, or else so."""
    weights = any(folder.glob("*.safetensors")) or (pickled and any(folder.glob("*.bin")))
    return (folder / "config.json").is_file() and weights


def _nowhere(what: str, looked: list[str], fetch: str | None, model: str = "") -> SkimError:
    command = (
        f"python -m skim.hub fetch {fetch}" if fetch else f"hf download {model} --local-dir $SKIM_MIRROR/models/{model}"
    )
    return SkimError(
        f"{what} is not to be had.\nLooked: {'; '.join(looked)}.\n"
        f"On a machine with internet, with SKIM_MIRROR=<folder> set: {command}"
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _reason(error: BaseException) -> str:
    """Why a data set cannot be loaded; many old ones are programs, which `datasets` runs no more."""
    script = SCRIPT in f"{error} {error.__context__}".lower()
    return _first_line(error.__cause__ or error) + (
        "; it is a script there, and the hub has not converted it: look for a copy as parquet (task.hub_id=...), or "
        "give own files (task.files.train=...)"
        if script
        else ""
    )


def _hub_problem(name: str, kind: str, revision: str | None = None, token: str | bool | None = None) -> str | None:
    """Ask the hub once, briefly: ``None`` if it has the name. Its own loaders would retry for half a minute."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        HfApi().repo_info(name, repo_type=kind, timeout=PROBE_SECONDS, revision=revision, token=token)
    except RevisionNotFoundError:
        return f"it knows no revision {revision} of this {kind}"
    except (RepositoryNotFoundError, HFValidationError):
        return f"it knows no {kind} of this name (a private one needs `hf auth login`)"
    except Exception as error:  # which HTTP library raises what is the hub client's affair; all of it means "not now"
        return f"cannot be reached ({_first_line(error)})"
    return None


@contextlib.contextmanager
def _cache_only() -> Iterator[None]:
    """Within it ``load_dataset`` looks in its cache and nowhere else; it has no argument for that."""
    import datasets

    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


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
    others = [override for override in _settled(overrides) if override.partition("=")[0] not in ("task", "backbone")]
    for name in filter(None, given.get("task", "").split(",")):
        hub_id, config, splits = data_of(name, others)
        print(f"task={name}: {fetch_dataset(folder, hub_id, config, splits) if splits else NOTHING}")
    for name in filter(None, given.get("backbone", "").split(",")):
        model = model_of(name, others)
        print(f"backbone={name}: {fetch_model(folder, model) if model else NOTHING}")


def data_of(task: str, overrides: list[str]) -> tuple[str, str, list[str]]:
    """Hub id and configuration of a task's data set, and the splits that a training reads; none if it needs none."""
    from hydra.utils import instantiate

    made = instantiate(_composed([f"task={task}", *overrides]).task)
    return made.hub_id or "", made.config, made.splits()


def model_of(backbone: str, overrides: list[str]) -> str | None:
    """Hub id, or folder, of a backbone; ``None`` for one that is made from nothing."""
    return _composed([f"backbone={backbone}", *overrides]).backbone.hub_id


def _settled(overrides: list[str]) -> list[str]:
    """The overrides, with names and options that exist."""
    from skim.options.settle import settle

    with _conf():
        return settle(overrides, "train")


def _composed(overrides: list[str]) -> Any:
    from hydra import compose

    with _conf():
        return compose("train", overrides)


@contextlib.contextmanager
def _conf() -> Iterator[None]:
    """Hydra on the config folder, its errors in a few words."""
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    from skim.cli import message

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
    if problem := _hub_problem(hub_id, "dataset"):
        raise SkimError(f"Data set {hub_id} cannot be fetched. The hub: {problem}.")
    with _all_or_nothing(target) as part:
        try:
            splits = _from_hub(hub_id, config)
        except (datasets.exceptions.DatasetsError, ValueError, RuntimeError) as error:
            raise SkimError(f"Data set {hub_id} cannot be fetched. The hub: {_reason(error)}.") from error
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
    if problem := _hub_problem(name, "model"):
        raise SkimError(f"Model {name} cannot be fetched. The hub: {problem}.")
    with _all_or_nothing(target) as part:
        snapshot_download(name, local_dir=part, allow_patterns=list(MODEL_FILES))
        if not complete(part):
            raise SkimError(f"Model {name} has no safetensors weights on the hub, and skim does not unpickle.")
    return f"wrote {target}"


@contextlib.contextmanager
def _all_or_nothing(target: Path) -> Iterator[Path]:
    """A folder to write into that becomes ``target`` when all went well: an interrupted fetch leaves no half mirror."""
    part = target.with_name(f"{target.name}.part")
    try:
        part.mkdir(parents=True, exist_ok=True)
        yield part
        shutil.rmtree(part / ".cache", ignore_errors=True)  # the hub client's notes about its download
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
    except OSError as error:
        raise SkimError(f"{target} cannot be filled: {_first_line(error)}") from error


def show() -> None:
    """Print what the mirror holds, and for each task and backbone of ``conf`` whether it is all that they need."""
    from rich.console import Console

    folder = mirror()
    if folder is None or not folder.is_dir():
        raise SkimError(f"SKIM_MIRROR {'is not set' if folder is None else f'names no folder: {folder}'}.")
    for table in (_holds(folder), _serves(folder)):
        Console().print(table)


def _holds(folder: Path) -> Table:
    """The files that are there."""
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


def _serves(folder: Path) -> Table:
    """What training with each task and each backbone would find there."""
    from rich.table import Table

    table = Table("choice", "needs", "in the mirror", title="what can be run with it alone")
    for name in _choices("task"):
        hub_id, config, splits = data_of(name, [])
        needs = f"{hub_id}/{config} ({', '.join(splits)})" if splits else ""
        table.add_row(f"task={name}", needs, _data_state(folder / "datasets" / hub_id / config, splits))
    for name in _choices("backbone"):
        model = model_of(name, [])
        state = NOTHING
        if model is not None:
            path = folder / "models" / model
            state = "complete" if complete(path) else "INCOMPLETE: no *.safetensors" if path.is_dir() else "-"
        table.add_row(f"backbone={name}", model or "", state)
    return table


def _choices(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml") if not file.stem.startswith("_"))


def _data_state(folder: Path, splits: list[str]) -> str:
    if not splits:
        return NOTHING
    there = held(folder)
    missing = [split for split in splits if split not in there or lacking(there[split])]
    return "complete" if not missing else f"INCOMPLETE: no {', no '.join(missing)}" if there else "-"


NOTHING = "nothing to fetch (built in, or own files)"
USAGE = (
    "python -m skim.hub fetch task=<names> backbone=<names>   |   python -m skim.hub list   |   "
    "python -m skim.hub convert <in> <out> [--preset tiny|small|base]"
)


def main(arguments: list[str]) -> None:
    """``fetch ...``, ``list`` or ``convert ...``."""
    match arguments:
        case ["fetch", *overrides]:
            fetch(overrides)
        case ["list"]:
            show()
        case ["convert", source, target, *preset] if preset[:1] in ([], ["--preset"]) and len(preset) in (0, 2):
            from skim.published.convert import convert

            print(convert(Path(source), Path(target), preset[1] if preset else None))
        case _:
            raise SkimError(USAGE)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except SkimError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
