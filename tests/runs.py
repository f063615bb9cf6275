"""Composing and running real trainings for tests: the same configs and the same recipe as ``train.py``."""

from __future__ import annotations

from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

CONF = Path(__file__).resolve().parents[1] / "conf"
SMALL = [
    "task=builtin",
    "backbone=tiny",
    "hardware=cpu",
    "hardware.threads=1",
    "task.max_train_samples=256",
    "task.max_eval_samples=96",
    "benchmark.enabled=false",
]


def composed(*overrides: str, config: str = "train") -> DictConfig:
    """What ``python train.py <overrides>`` would run."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(config, list(overrides))


def small(*overrides: str) -> DictConfig:
    """A run of seconds on the built-in task."""
    return composed(*SMALL, *overrides)
