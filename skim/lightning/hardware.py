"""Devices and machines of a run: what they change of its learning rates, and what cannot train here."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from omegaconf import DictConfig

from skim.errors import SkimError
from skim.options.run import Schedule
from skim.stages import Stage

Rates = TypeVar("Rates", bound=Schedule)

SHARDED = ("fsdp", "deepspeed", "model_parallel")
APART = ("spawn", "fork", "notebook")  # in names of strategies: processes that end with the fit


def check_strategy(strategy: object) -> None:
    """Refuse a way for devices to work together in which a method cannot be trained.

    Raises:
        SkimError: parameters are sharded, or processes end before the model is evaluated.
    """
    name = str(strategy)
    if name.startswith(SHARDED):
        raise SkimError(
            f"hardware.strategy={name} shards parameters, and here they are needed whole: decay and clipping go by "
            "their kind, calibration and exports run it outside of a step.\nUse hardware=ddp; if memory is short, "
            "a smaller batch with train.accumulate, or train.gradient_checkpointing=true."
        )
    if any(word in name for word in APART):
        raise SkimError(
            f"hardware.strategy={name} starts processes for the fit alone, and what they know of the best weights and "
            "the method's progress is lost with them.\nUse hardware=ddp, or for two CPU processes hardware=ddp_cpu."
        )


def nodes_of(cfg: DictConfig) -> int:
    """Count the machines of a run; ``auto`` are those on which torchrun or SLURM has started this process."""
    asked = cfg.hardware.get("num_nodes", 1)
    started = os.environ.get("GROUP_WORLD_SIZE") or os.environ.get("SLURM_NNODES")
    return int(started or 1) if asked == "auto" else int(asked)


def scaled(stages: Sequence[Stage], processes: int, rule: str) -> list[Stage]:
    """Scale the learning rates of stages for processes with a batch each, see ``train.lr_scaling``.

    Args:
        stages: of a run.
        processes: all of them.
        rule: ``none``, ``linear`` or ``sqrt``.
    """
    factor = {"none": 1.0, "linear": float(processes), "sqrt": math.sqrt(processes)}[rule]

    def faster(rates: Rates) -> Rates:
        return replace(rates, lr=rates.lr * factor, method_lr=rates.method_lr * factor)

    return [
        replace(faster(stage), members={label: faster(rates) for label, rates in stage.members.items()})
        for stage in stages
    ]
