"""Composing and running real trainings for tests: the same configs and the same recipe as ``train.py``."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from skim.lightning import recipe
from skim.options.settle import settle

ROOT = Path(__file__).resolve().parents[1]
CONF = ROOT / "conf"
NARROW = ["backbone.overrides.hidden_size=64", "backbone.overrides.intermediate_size=256"]  # half of backbone=tiny
Refused: TypeAlias = Callable[..., str]  # the fixture ``refused``
SMALL = [
    "task=builtin",
    "backbone=tiny",
    *NARROW,
    "recipe=plain",
    "hardware=cpu",
    "hardware.threads=1",
    "task.max_train_samples=256",
    "task.max_eval_samples=96",
    "train.calibrate=32",  # one batch: a calibration runs the model over it 16 times, most of the time of a small run
    "benchmark.enabled=false",
    "print_config=false",
]


def composed(*overrides: str, config: str = "train") -> DictConfig:
    """What ``python train.py <overrides>`` would run."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config, list(overrides))


def typed(*overrides: str) -> DictConfig:
    """As :func:`composed`, from what a user may type: ``method=[layer_drop,ltp]``."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", settle(list(overrides), "train"))


def small(*overrides: str) -> DictConfig:
    """A run of seconds on the built-in task; another backbone than the tiny one is as wide as it is."""
    other = any(option.startswith("backbone=") for option in overrides)
    return composed(*(option for option in SMALL if not (other and option in NARROW)), *overrides)


def looking(run: Path, *overrides: str) -> DictConfig:
    """What ``python evaluate.py ckpt=<run> <overrides>`` would look at, on one thread."""
    return composed(f"ckpt={run}", "hardware.accelerator=cpu", "hardware.threads=1", *overrides, config="evaluate")


def watched_by(callback: pl.Callback, cfg: DictConfig, folder: Path) -> recipe.Run:
    """A run of the recipe with one more callback, ahead of its own."""
    usual = recipe.callbacks_of
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recipe, "callbacks_of", lambda cfg: [callback, *usual(cfg)])
        return recipe.train(cfg, folder, "python train.py ...")


def environment(rank: int) -> dict[str, str]:
    """What tells a process that it is one of two, which somebody else has started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    return {**shared, "LOCAL_RANK": str(rank), "RANK": str(rank)}


def on_two_ranks(script: str, folder: Path, timeout: float = 600) -> list[Any]:
    """What a script leaves as ``rank<k>.pt`` in the folder, run in two processes joined by gloo.

    Its arguments are the folder and the rank.
    """
    env = {**os.environ, **environment(0)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(folder), str(rank)],
            cwd=ROOT,
            env={**env, "LOCAL_RANK": str(rank), "RANK": str(rank)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=timeout)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], said[0][-3000:] + said[1][-3000:]
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in range(2)]
