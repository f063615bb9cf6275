"""Looks at a finished run, one file for each ``evaluate.py what=...``: metrics, time, what it does to a sentence."""

from __future__ import annotations

import re
from collections.abc import Callable

import torch
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from skim.errors import SkimError, message
from skim.lightning.check import check
from skim.lightning.looks import curve, depth, metrics, predict, timing, tokens
from skim.lightning.looks.loaded import load

__all__ = ["LOOKS", "evaluate", "load"]

# an option of a run, in the words of a training
OF_THE_RUN = re.compile(r"(?<![\w./-])(task|method|backbone)\.[a-z]\w*(?=[\w.]*=)")

LOOKS: dict[str, Callable[[DictConfig, Console], None]] = {
    "metrics": metrics.look,
    "tokens": tokens.look,
    "predict": predict.look,
    "latency": timing.latency,
    "throughput": timing.throughput,
    "curve": curve.look,
    "depth": depth.look,
}


def evaluate(cfg: DictConfig) -> None:
    """One look at a run, of the kind that ``cfg.what`` names.

    Raises:
        SkimError: for anything the user can mend; options of the run are called ``overrides.<option>`` in it.
    """
    check(cfg)
    if OmegaConf.is_missing(cfg, "ckpt") or cfg.ckpt is None:
        raise SkimError(
            "Which run? Name its folder: ckpt=runs/<task>/<method>/<backbone>/<stamp>, or a file in its checkpoints/.\n"
            "python evaluate.py --help says what there is to see of it."
        )
    if cfg.hardware.threads is not None:
        torch.set_num_threads(cfg.hardware.threads)
    try:
        LOOKS[cfg.what](cfg, Console())
    except (SkimError, HydraException) as error:
        said = message(error)
        raise SkimError(OF_THE_RUN.sub(r"overrides.\g<0>", said) if OF_THE_RUN.search(said) else said) from error
