"""Going on with an interrupted run: by its own config, with what may be changed on the way, from a checkpoint of it.

Imports nothing heavy.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from skim.errors import SkimError
from skim.files import read_json, whole
from skim.options.defaults import default_of
from skim.options.members import brought
from skim.options.settle import composed
from skim.options.stored import read
from skim.options.targets import UNTRUSTED, marked, stranger, targets
from skim.options.tree import leaves
from skim.options.words import quoted, shown, written

LAST = Path("checkpoints") / "last.ckpt"  # in a run's folder
PREVIOUS = LAST.with_name("previous.ckpt")  # the one before it, while a run trains
GROUPS = ("backbone", "task", "method", "hardware", "trainer", "optimizer", "scheduler", "logger", "callbacks")
MAKE = ("backbone", "task", "method")  # groups whose file names the run; of the others, all values are taken over
# What neither a step of training nor the schedule depends on, or what is looked at when the checkpoint is loaded (how
# long a run is, which batches come next), by the parts that know where it stands.
FREE = re.compile(
    r"(hardware|logger|callbacks|benchmark|paths|sweep)\..*|formulas|execution|resume|tags|print_config|trust_modules"
    r"|trainer\.(?!gradient_clip|accumulate_grad_batches|limit_train_batches|overfit_batches).*"
    r"|train\.(epochs|max_steps|evals_per_epoch|eval_every|calibrate|gradient_checkpointing|method_after|nonfinite)"
    r"|task\.(batch_size|eval_batch_size|tokens_per_batch|max_eval_samples|eval_split|test_split|files\.(validation|test))"
    r"|method\.(\w+\.)?stages\.\w+\.epochs"
)
FILLED = ("resume", "paths.run", "trust_modules")  # anew in every run
AUTO = "auto"  # resume=auto
ABSENT = object()
TRUSTED = re.compile(r"\+*trust_modules=\[?([^\]]*)\]?")  # as typed
OPTION = re.compile(r"(?!hydra\.)\w[\w-]*(\.\w[\w-]*)+|(?!hydra$)\w[\w-]*")  # a dotted path that an override may set


def recorded(folder: Path, trusted: Collection[str] = ()) -> DictConfig:
    """The config that a run's folder remembers; what it may not name is marked, see :mod:`skim.options.targets`.

    Args:
        folder: of the run.
        trusted: modules, or classes, that the user trusts; what the config itself says of that is not read.
    """
    if not (folder / "config.yaml").is_file():
        raise SkimError(f"{folder} is not a run's folder: there is no config.yaml in it.")
    tree = read(folder / "config.yaml")
    tree.pop("trust_modules", None)
    return OmegaConf.create(marked(tree, trusted))


def checkpoint_of(resume: object) -> Path:
    """The checkpoint that ``resume`` means: a run's last one, or a file of its own."""
    path = Path(str(resume))
    if path.is_file():
        return path
    if (found := newest(path)) is not None:
        return found
    if there := [str(path / name) for name in (LAST, PREVIOUS) if (path / name).is_file()]:
        raise SkimError(
            f"resume={path}: {' and '.join(there)} {'are' if len(there) > 1 else 'is'} cut or damaged (checksum).\n"
            "There is nothing else to go on from; start it anew."
        )
    if (path / "config.yaml").is_file():
        raise SkimError(
            f"resume={path} has no {LAST}: the run ended before it wrote one.\n"
            "Start it anew; callbacks.save_every=<steps> writes one more often."
        )
    raise SkimError(f"resume={path} is neither a file nor a run's folder; name a run, or one of its checkpoints/.")


def newest(folder: Path) -> Path | None:
    """Find the newest checkpoint of a run's folder that is as it was written; ``None`` where there is none."""
    return next((folder / name for name in (LAST, PREVIOUS) if whole(folder / name)), None)


def passed_over(checkpoint: Path) -> list[str]:
    """Say that a newer checkpoint than the one to be used is damaged; nothing if there is none."""
    newer = checkpoint.with_name(LAST.name)
    if checkpoint.name != PREVIOUS.name or not newer.is_file() or whole(newer):
        return []
    return [f"{newer} is cut or damaged (its checksum differs); {checkpoint.name}, the one before it, is used"]


def found(cfg: DictConfig, folder: Path) -> DictConfig:
    """The config of a run with ``resume=auto``: it goes on from the newest good checkpoint of its folder, or begins.

    Args:
        cfg: as composed.
        folder: of the run.
    """
    checkpoint = newest(folder)
    filled: dict[str, Any] = {"resume": checkpoint and str(checkpoint)}
    if checkpoint is not None and cfg.train.get("lr_find"):  # it has been found, and is not looked for again
        filled["train"] = {"lr": recorded(folder).train.lr}
    merged = OmegaConf.merge(cfg, filled)
    assert isinstance(merged, DictConfig)
    return merged


def done(cfg: DictConfig, folder: Path) -> list[str] | None:
    """Tell whether the run of a folder has finished: by which options this command differs from it, else ``None``.

    Raises:
        SkimError: it has, and is another run than the one asked for.
    """
    try:
        status = json.loads((folder / "results.json").read_text(encoding="utf-8")).get("status")
    except (OSError, ValueError, AttributeError):
        return None
    return changes(cfg, folder) if status == "done" else None


def again(cfg: DictConfig, folder: Path) -> DictConfig:
    """The config of a run that a cluster has ended and starts again: its own, going on from its last checkpoint.

    Of any other run it is what it was. A folder holds the same run if its config is the same; what a run fills in by
    itself, such as the learning rate that ``train.lr_find`` finds, is taken over.

    Args:
        cfg: as composed.
        folder: of the run.
    """
    checkpoint = newest(folder) if cfg.resume is None and (folder / "config.yaml").is_file() else None
    if checkpoint is None:
        return cfg
    results = folder / "results.json"
    status = read_json(results).get("status") if results.is_file() else None
    restarted = status is None and int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0
    if status != "preempted" and not restarted:
        return cfg
    before = recorded(folder, named_in(cfg))
    old, new = both(before, cfg)
    found = ("train.lr",) if new.get("train.lr_find") else ()
    if any(old.get(key) != new.get(key) for key in {**new, **old} if key not in (*FILLED, *found)):
        return cfg
    before.resume = str(checkpoint)
    return before


def changes(cfg: DictConfig, folder: Path | None = None) -> list[str]:
    """List the options that a run changes of the one that it goes on with, as lines ``train.epochs: 1 -> 2``.

    Args:
        cfg: of the run.
        folder: of the one that it goes on with; ``None``: the one in which its checkpoint lies.

    Raises:
        SkimError: what differs is part of what the run has learned, or of how it learns.
    """
    folder = checkpoint_of(cfg.resume).parent.parent if folder is None else folder
    old, new = both(recorded(folder, named_in(cfg)), cfg)
    differ = [key for key in {**new, **old} if old.get(key) != new.get(key)]
    weights = (new.get("train.distill"), new.get("train.distill_hidden"))
    teaches = any(weights) and new.get("train.distill_from", "init") == "init"
    fixed = [key for key in differ if not FREE.fullmatch(key) and (key != "init_from" or teaches)]
    if fixed:
        said = ", ".join(f"{key} (was {shown(old.get(key))}, now {shown(new.get(key))})" for key in fixed[:4])
        more = f" and {len(fixed) - 4} more" if len(fixed) > 4 else ""
        raise SkimError(
            f"resume={cfg.resume or folder} goes on with what it began with, and cannot change {said}{more}.\n"
            f"Leave that away, or start a new run{f': init_from={folder}' if (folder / 'model').is_dir() else ''}."
        )
    return [f"{key}: {shown(old.get(key))} -> {shown(new.get(key))}" for key in differ if key not in FILLED]


def named_in(cfg: DictConfig) -> list[str]:
    """The classes that a config of the user's own names."""
    return [str(target) for _, target in targets(OmegaConf.to_container(cfg, resolve=False))]


def both(before: DictConfig, cfg: DictConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every option of two configs; one that the first does not name, of an older version, has its declared default.

    Args:
        before: of the run that is gone on with.
        cfg: of this run.
    """
    old, new = flat(before), flat(cfg)
    tree: Any = OmegaConf.to_container(cfg, resolve=False)
    return {key: default_of(key, tree) for key, value in new.items() if default_of(key, tree) == value} | old, new


def flat(cfg: DictConfig) -> dict[str, Any]:
    """Every option of a config by its dotted path; one that follows another says which, and not its value."""
    tree: Any = OmegaConf.to_container(cfg, resolve=False)
    return dict(leaves(tree))


def inherited(overrides: Sequence[str], name: str, search: Sequence[str] = ()) -> list[str]:
    """The overrides with which a run goes on: ``resume=<run>`` stands for all that the run was made with.

    To be called where Hydra is initialised.

    Args:
        overrides: as typed; they are changes of that run's config.
        name: of the primary config.
        search: overrides of Hydra's that say where config files are.

    Raises:
        SkimError: there is no such run or checkpoint, or files are named that the run was not made with.
    """
    asked = [override for override in overrides if re.match(r"\+*resume=", override)]
    if not asked or asked[-1].endswith("=null"):
        return list(overrides)
    if asked[-1].endswith(f"={AUTO}"):  # typed with all that makes the run
        return list(overrides)
    typed = [override for override in overrides if override not in asked]
    named = plain(asked[-1].partition("=")[2])
    if "," in named and not Path(named).exists():
        raise SkimError(f"resume={named}: runs go on one at a time, each by its own config. Type a command for each.")
    path = checkpoint_of(named)
    asked_of = [plain(one) for o in typed if (match := TRUSTED.fullmatch(o)) for one in match[1].split(",") if one]
    before: Any = OmegaConf.to_container(recorded(path.parent.parent, asked_of), resolve=False)
    choices = {match[1]: match[2] for o in typed if (match := re.fullmatch(r"\+*(\w+)=(.*)", o))}
    if changing := next((group for group in ("experiment", "recipe", "debug") if group in choices), None):
        raise SkimError(
            f"resume={path} goes on by its own config, which {changing}={choices[changing]} would change.\n"
            "Leave it away, and name the options that shall change, such as train.epochs=2."
        )
    files = {group: file_of(group, before.get(group) or {}) for group in GROUPS}
    anew = {group for group, file in files.items() if choices.get(group, file) != file}  # by another file than before
    lost = [group for group, file in files.items() if file is None and group not in choices]
    if lost:
        raise SkimError(
            f"resume={path}: no file of conf/{lost[0]} makes what that run was made with. Name it: {lost[0]}=<file>."
        )
    chosen = [f"{group}={choices[group].split(',')[0] if group in anew else file}" for group, file in files.items()]
    for part, target in targets({group: part for group, part in before.items() if group not in anew}):
        if str(target).startswith(UNTRUSTED):
            raise stranger(target, f"resume={path}: {part} of ")
    hydra = [*search, *(override for override in typed if re.match(r"[+~]*hydra[./]", override))]
    members = brought((before.get("method") or {}).get("methods"), files_in("method"))
    there = dict(leaves(composed(name, [*chosen, *hydra], members).tree))
    if strange := [key for key, _ in leaves(before) if not OPTION.fullmatch(key)]:
        raise SkimError(f"resume={path}: its config.yaml is damaged: {shown(strange[0])} is not an option.")
    values = [
        f"++{key}={written(value)}"
        for key, value in leaves(before)
        if key.partition(".")[0] not in anew and key not in FILLED and there.get(key, ABSENT) != value
    ]
    kept = [f"{group}={file}" for group, file in files.items() if group not in choices]
    again = [f"{group}={choices[group]}" for group in files if group in choices and group not in anew]
    typed = [override for override in typed if override.lstrip("+") not in again]
    return [*kept, *again, *values, *typed, f"resume={quoted(str(path))}"]


def check_named(overrides: Sequence[str]) -> None:
    """Refuse ``resume=auto`` for a run whose folder is another one at each start.

    Args:
        overrides: of one run.

    Raises:
        SkimError: it has no name.
    """
    asked = [override for override in overrides if re.match(r"\+*resume=", override)]
    named = any(re.match(r"[+~]*hydra\.run\.dir=", override) for override in overrides)
    if asked and asked[-1].endswith(f"={AUTO}") and not named:
        raise SkimError(
            "resume=auto looks for a checkpoint in the run's folder, and by default each start has a new one.\n"
            "Name it: resume=auto hydra.run.dir=runs/mine"
        )


def file_of(group: str, before: Mapping[str, Any]) -> str | None:
    """The file of a group that a run was made with: by its name, or the one whose values differ least."""
    from hydra.core.global_hydra import GlobalHydra

    loader: Any = GlobalHydra.instance().config_loader()
    options = files_in(group)
    if "name" in before and group != "method":
        return before["name"] if before["name"] in options else None
    old, best = dict(leaves(before)), None
    for option in options:
        here = dict(leaves(content(loader.repository, group, option)))
        same = sum(old.get(key, ABSENT) == value for key, value in here.items())
        if group in MAKE and here.get("_target_") != old.get("_target_"):
            continue
        if best is None or (len(here) - same, -same) < best[:2]:
            best = (len(here) - same, -same, option)
    return best and best[2]


def files_in(group: str) -> list[str]:
    """Files of a group, without those that others start from."""
    from hydra.core.global_hydra import GlobalHydra

    loader: Any = GlobalHydra.instance().config_loader()
    return [option for option in loader.get_group_options(group) if not option.startswith("_")]


def content(repository: Any, group: str, option: str) -> Any:
    """Read a file's options, with those of the files of its group that it starts from."""
    found = repository.load_config(f"{group}/{option}")
    above = [default.value for default in found.defaults_list or () if isinstance(getattr(default, "value", None), str)]
    parts = [content(repository, group, name) for name in above if name in repository.get_group_options(group)]
    return OmegaConf.to_container(OmegaConf.unsafe_merge(*parts, found.config), resolve=False)


def plain(value: str) -> str:
    """A text that may stand in quotes, in which a backslash is before such a quote."""
    quote = value[:1]
    inside = len(value) > 1 and value[-1] == quote and quote in ("'", '"')
    return value[1:-1].replace(f"\\{quote}", quote) if inside else value
