"""Looks at a finished run, one file for each ``evaluate.py what=...``: metrics, time, what it does to a sentence."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from hydra.errors import HydraException
from omegaconf import DictConfig
from rich.console import Console

from skim.errors import SkimError, message
from skim.lightning.check import check
from skim.lightning.looks import (
    choose,
    curve,
    depth,
    export,
    metrics,
    peers,
    predict,
    redundancy,
    search,
    skip,
    timing,
    tokens,
)
from skim.lightning.looks.loaded import is_run, load

__all__ = ["LOOKS", "evaluate", "load"]

# an option of a run, in the words of a training
OF_THE_RUN = re.compile(r"(?<![\w./-])(task|method|backbone)\.[a-z]\w*(?=[\w.]*=)")

LOOKS: dict[str, Callable[[DictConfig, Console], None]] = {
    "metrics": metrics.look,
    "tokens": tokens.look,
    "predict": predict.look,
    "latency": timing.latency,
    "throughput": timing.throughput,
    "peers": peers.look,
    "curve": curve.look,
    "depth": depth.look,
    "redundancy": redundancy.look,
    "skip": skip.look,
    "search": search.look,
    "export": export.look,
    "choose": choose.look,
}

WITHOUT_A_RUN = ("redundancy", "peers")


def check_named(cfg: DictConfig) -> None:
    """Refuse a look at nothing, and one at a run that names other parts than the run has.

    Raises:
        SkimError: no run is named, and no pretrained model where one would do; or both are.
    """
    named = [f"{group}={cfg[group].get('name', '...')}" for group in ("backbone", "task", "method") if cfg.get(group)]
    if cfg.what == "choose" or cfg.runs is not None:
        check_many(cfg)
        return
    if not is_run(cfg):
        if cfg.what in WITHOUT_A_RUN and cfg.get("backbone") and cfg.get("task"):
            return
        kinds = " or ".join(f"what={kind}" for kind in WITHOUT_A_RUN)
        also = f"\nOr at a pretrained model: {kinds} with backbone=<name> task=<name>, both." if named else ""
        raise SkimError(
            "Which run? Name its folder: ckpt=runs/<task>/<method>/<backbone>/<stamp>, or a file in its checkpoints/."
            + (also or "\npython evaluate.py --help says what there is to see of it.")
        )
    if named:
        raise SkimError(
            f"ckpt={cfg.ckpt} is a run, which has its own backbone, task and method: {' '.join(named)} would change "
            "nothing.\nLeave that away; what the run is looked at with can be changed by overrides.task.<option>."
        )
    if cfg.folder is not None:
        raise SkimError(f"folder={cfg.folder} is for a look without a run; that at a run writes into ckpt={cfg.ckpt}.")


def check_many(cfg: DictConfig) -> None:
    """Refuse a look at many runs that names none, or one of them; and a look at one run that names many."""
    if cfg.what != "choose":
        raise SkimError(f"runs={cfg.runs} is for what=choose; what={cfg.what} looks at one run: ckpt=<run>.")
    if not cfg.runs:
        raise SkimError("Which runs? what=choose runs=runs/<task> max_drop=1.0 looks at all that are below a folder.")
    if is_run(cfg):
        raise SkimError(f"what=choose looks at runs={cfg.runs}; leave ckpt={cfg.ckpt} away.")
    if cfg.get("method"):
        raise SkimError("what=choose chooses among methods; leave method= away.")


def evaluate(cfg: DictConfig) -> None:
    """One look at a run, of the kind that ``cfg.what`` names.

    Raises:
        SkimError: for anything the user can mend; options of the run are called ``overrides.<option>`` in it.
    """
    check(cfg)
    check_named(cfg)
    if cfg.hardware.threads is not None:
        torch.set_num_threads(cfg.hardware.threads)
    try:
        LOOKS[cfg.what](cfg, Console())
    except (SkimError, HydraException) as error:
        said = message(error)
        raise SkimError(of_the_run(said) if is_run(cfg) else said) from error


def of_the_run(said: str) -> str:
    """Call the options of a run as evaluate.py does, but for lines that say how to train another one."""
    lines = said.split("\n")
    return "\n".join(line if line.startswith("Train ") else OF_THE_RUN.sub(r"overrides.\g<0>", line) for line in lines)
