"""Plan of a command with ``-m``: grids of overrides that exist, and the folder that it goes on in.

To be called where Hydra is initialised, before it runs. Imports nothing heavy.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from skim.errors import SkimError
from skim.options.settle import renamed, settle
from skim.options.sweep import Sweep as Options
from skim.options.words import quoted
from skim.resume import AUTO
from skim.sweeps.folder import Sweep

HYDRA = re.compile(r"[+~]*hydra[./]")
BESIDE = re.compile(r"\+*(sweep\.(jobs|resume)|paths\.\w+)=")  # where and how jobs run, and not which
ON = re.compile(rf"\+*resume={AUTO}")  # each job goes on from its own checkpoint in any case
SWEEP = re.compile(r"\+*sweep(\.\w+)?=")  # words about the sweep, that say nothing to a job


@dataclass(frozen=True)
class Plan:
    """A sweep that is asked for.

    Attributes:
        typed: the overrides that make its jobs, as typed; a sweep that goes on is known by them.
        grids: settled overrides, each a grid of jobs.
        hydra: overrides of Hydra's own.
        resumed: whether it goes on in a folder that is there.
        options: of the group ``sweep``.
    """

    typed: tuple[str, ...]
    grids: tuple[tuple[str, ...], ...]
    hydra: tuple[str, ...]
    resumed: bool
    options: Options = field(default_factory=Options)


def planned(overrides: Sequence[str], name: str, search: Sequence[str] = ()) -> Plan:
    """Read what a command asks for; of a config without a group ``sweep`` it is one grid, of what is typed.

    Args:
        overrides: as typed.
        name: of the primary config.
        search: overrides of Hydra's that say where config files are.

    Raises:
        SkimError: an option that does not exist, a launcher that is not installed, a sweep to go on with that is not
            there.
    """
    from omegaconf import OmegaConf

    hydra = [override for override in overrides if HYDRA.match(override)]
    beside = [override for override in overrides if BESIDE.match(override)]
    auto = [override for override in overrides if ON.fullmatch(override)]
    typed = [override for override in overrides if override not in (*hydra, *beside, *auto)]
    cfg = asked([*typed, *beside], hydra, name, search)
    if "sweep" not in cfg:
        return Plan(tuple(typed), (tuple(settle(overrides, name, search, sweeps=True)),), tuple(hydra), False)
    others = not str(cfg.hydra.sweeper.get("_target_")).startswith("hydra_plugins.skim.")
    if others and (cfg.sweep.grids or cfg.sweep.resume is not False or auto):
        raise SkimError(
            "Another sweeper than skim's knows no sweep to go on with, and no sweep.grids.\nLeave hydra/sweeper away."
        )
    folder = None
    if cfg.sweep.resume is not False:
        folder = resumed(cfg.sweep.resume, Path(cfg.hydra.sweep.dir), typed)
    elif auto:
        folder = same(sweeps_by(Path(cfg.hydra.sweep.dir)), typed)
    if folder is not None:
        hydra.append(f"hydra.sweep.dir={quoted(str(folder))}")
        anew = {key_of(override) for override in typed}
        typed = [*(one for one in Sweep(folder).about["overrides"] if key_of(one) not in anew), *typed]
        cfg = asked([*typed, *beside], hydra, name, search)
    jobs = [override for override in (*typed, *beside) if not SWEEP.match(override)]
    if cfg.sweep.jobs > 1:
        if not any(override.startswith("hydra/launcher=") for override in hydra):
            hydra.append("hydra/launcher=joblib")
        if "hydra/launcher=joblib" in hydra:
            hydra.append(f"hydra.launcher.n_jobs={cfg.sweep.jobs}")
    if cfg.sweep.trials is not None:
        hydra.append("hydra/sweeper=search")
    keys = {key_of(override) for override in jobs}
    grids = []
    for grid in cfg.sweep.grids or [""]:
        said = [*shlex.split(cfg.sweep.common), *shlex.split(grid)]
        lines = [*(override for override in said if key_of(override) not in keys), *jobs, *hydra]
        grids.append(tuple(settle(lines, name, search, sweeps=True)))
    options = Options(**OmegaConf.to_container(cfg.sweep, resolve=True))  # type: ignore[arg-type]
    return Plan(tuple(typed), tuple(grids), tuple(hydra), folder is not None, options)


def asked(overrides: Sequence[str], hydra: Sequence[str], name: str, search: Sequence[str]) -> Any:
    """Compose what files and overrides say of the sweep and of paths, with Hydra's own options."""
    from hydra import compose
    from omegaconf import OmegaConf

    from skim.options.check import typed
    from skim.options.declared import check_options

    said = [one for one in overrides if SWEEP.match(one) or BESIDE.match(one)]
    cfg = compose(name, [*search, *settle([*said, *hydra], name, search)], return_hydra_config=True)
    if "sweep" in cfg:
        with typed("sweep"):
            check_options(Options, OmegaConf.to_container(cfg.sweep, resolve=True))  # type: ignore[arg-type]
    return cfg


def key_of(override: str) -> str:
    """Name the option, or the group, that an override sets."""
    return renamed(override).partition("=")[0].lstrip("+~")


def resumed(named: bool | str | int, fresh: Path, typed: Sequence[str]) -> Path:
    """Find the folder of the sweep to go on with.

    Args:
        named: ``sweep.resume``: true, or a folder, by its path or by its name among sweeps.
        fresh: where a new sweep would go.
        typed: overrides that make its jobs.
    """
    if named is not True:
        for folder in (Path(str(named)), fresh.parent / str(named)):
            if Sweep(folder).about:
                return folder
        raise SkimError(
            f"sweep.resume={named} is not the folder of a sweep: there is no sweep.json in it that can be read.\n"
            f"Sweeps are in {fresh.parent}; sweep.resume=true takes the newest one of the same command."
        )
    sweeps = sweeps_by(fresh)
    if (before := same(sweeps, typed)) is not None:
        return before
    newest = next(iter(sweeps.items()), None)
    hint = f"The newest is {newest[0]}: {newest[1]['command']}" if newest else "Leave sweep.resume away to begin one."
    raise SkimError(f"sweep.resume=true: no sweep in {fresh.parent} is of this command.\n{hint}")


def sweeps_by(fresh: Path) -> dict[Path, dict[str, Any]]:
    """Find the sweeps beside a folder, and in it, the newest first, with what each says of itself."""
    folders = [fresh, *sorted(fresh.parent.glob("*/"), reverse=True)]
    return {folder: about for folder in folders if (about := Sweep(folder).about)}


def same(sweeps: Mapping[Path, dict[str, Any]], typed: Sequence[str]) -> Path | None:
    """Find the first of some sweeps that was made by these overrides; ``None`` if there is none."""
    return next((folder for folder, about in sweeps.items() if sorted(about["overrides"]) == sorted(typed)), None)
