"""Values of a config that no run can use are refused here, before anything is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any, cast

from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from skim.errors import SkimError, first_line, unknown
from skim.flops import FORMULAS
from skim.methods import Method
from skim.options.check import typed
from skim.options.declared import check_options

EXPORTS = ("best", "last")  # checkpoints whose weights a run can end with

INFINITY = float("inf")

LIMITS: dict[str, tuple[type | tuple[type, ...], float, float]] = {
    "seed": (int, 0, 2**32 - 1),
    "train.epochs": (int, 1, INFINITY),
    "train.max_steps": (int, -1, INFINITY),
    "train.lr": ((int, float), 0, INFINITY),
    "train.method_lr": ((int, float), 0, INFINITY),
    "train.weight_decay": ((int, float), 0, INFINITY),
    "train.method_weight_decay": ((int, float), 0, INFINITY),
    "train.warmup": ((int, float), 0, 1),
    "train.clip": ((int, float), 0, INFINITY),
    "train.accumulate": (int, 1, INFINITY),
    "train.method_after": ((int, float), 0, 1),
    "train.distill": ((int, float), 0, 1),
    "train.distill_temperature": ((int, float), 1e-6, INFINITY),
    "train.label_smoothing": ((int, float), 0, 0.99),
    "train.calibrate": (int, 0, INFINITY),
    "train.evals_per_epoch": (int, 1, INFINITY),
    "train.eval_every": (int, 1, INFINITY),
    "task.batch_size": (int, 1, INFINITY),
    "task.eval_batch_size": (int, 1, INFINITY),
    "task.max_length": (int, 3, INFINITY),
    "task.length_min": (int, 1, INFINITY),
    "task.length_max": (int, 1, INFINITY),
    "task.max_train_samples": (int, 1, INFINITY),
    "task.max_eval_samples": (int, 1, INFINITY),
    "hardware.threads": (int, 1, INFINITY),
    "hardware.num_workers": (int, 0, INFINITY),
    "callbacks.log_every": (int, 1, INFINITY),
    "callbacks.patience": (int, 1, INFINITY),
    "callbacks.save_every": (int, 1, INFINITY),
    "benchmark.samples": (int, 1, INFINITY),
    "benchmark.repeats": (int, 1, INFINITY),
    "benchmark.train_batch_size": (int, 1, INFINITY),
}

FLAGS = ("train.gradient_checkpointing", "callbacks.progress", "benchmark.enabled", "timed")

MAY_BE_NULL = (  # of those above: what null stands for is said beside the option
    *("train.clip", "train.method_after", "train.eval_every", "task.length_min", "task.length_max"),
    *("task.max_train_samples", "task.max_eval_samples", "hardware.threads", "callbacks.patience"),
    "callbacks.save_every",
)


def check(cfg: DictConfig) -> None:
    """Refuse values that no run can use, before anything is loaded.

    What the options of a method and of a task may be is declared beside their arguments and fields
    (:mod:`skim.options.declared`).
    """
    if cfg.get("method"):
        method_of(cfg)
    for path, limits in LIMITS.items():
        check_limits(path, value_at(cfg, path), *limits)
    for path in FLAGS:
        value = value_at(cfg, path)
        if value is not None and not isinstance(value, bool):
            raise SkimError(f"{path}={value} must be true or false.")
    if cfg.get("task"):
        with contextlib.suppress(ImportError, AttributeError, ValueError), typed("task"):  # said when it is made
            check_options(get_class(cfg.task._target_), cast(dict[str, Any], OmegaConf.to_container(cfg.task)))
    board = OmegaConf.select(cfg, "logger.wandb")
    if board is not None and not isinstance(board, Mapping):
        raise SkimError(f"logger.wandb={board} must be a group of options, as logger=wandb has, or null.")
    export = OmegaConf.select(cfg, "callbacks.export", default=EXPORTS[0])
    if export not in EXPORTS:
        raise unknown("callbacks.export", export, EXPORTS)
    stages = OmegaConf.select(cfg, "method.stages") or {}
    if not isinstance(stages, Mapping):
        raise SkimError(f"method.stages={stages} must be a group of stages, such as method.stages.soft.epochs=2.")
    for name, options in stages.items():
        check_stage(name, options or {})
    formulas = cfg.get("formulas") or []
    if not OmegaConf.is_list(formulas) and formulas != []:
        raise SkimError(f"formulas={formulas} must be a list, such as formulas=[{formulas}].")
    for name in formulas:
        if name not in FORMULAS:
            raise unknown("formula in formulas", name, FORMULAS)
    sizes = OmegaConf.select(cfg, "benchmark.batch_sizes", default=OmegaConf.create([1]))  # older runs have none
    wrong = not OmegaConf.is_list(sizes) or not sizes or any(type(size) is not int or size < 1 for size in sizes)
    if wrong:
        raise SkimError(
            f"benchmark.batch_sizes={sizes} must be a list of whole numbers, each at least 1, such as [1,32]."
        )


def value_at(cfg: DictConfig, path: str) -> Any:
    """Return the value at a path, ``None`` if there is none; a SkimError for a null that has no meaning there."""
    parent = OmegaConf.select(cfg, path.rpartition(".")[0]) if "." in path else cfg
    if not isinstance(parent, Mapping) or path.rpartition(".")[2] not in parent:  # older runs have fewer options
        return None
    value = OmegaConf.select(cfg, path)
    if value is None and path not in MAY_BE_NULL:
        raise SkimError(f"{path}=null says nothing; leave it away for its default.")
    return value


def method_of(cfg: DictConfig) -> Method:
    """The method that a config names, with its options; how it is trained (``stages``) is the recipe's business."""
    options = OmegaConf.masked_copy(cfg.method, [key for key in cfg.method if key != "stages"])
    target = options.get("_target_")
    try:
        with typed("method"):
            # convert: lists as lists, also for a user's own method, whose file may not ask for it
            method = instantiate(options, _convert_="all")
    except InstantiationException as error:
        if "Error locating target" not in str(error):
            raise
        raise SkimError(
            f"method._target_={target} cannot be imported: {first_line(error.__cause__ or error)}.\n"
            "A module of your own is looked for beside train.py and in PYTHONPATH: export PYTHONPATH=<its folder>."
        ) from None
    if not isinstance(method, Method):
        raise SkimError(f"method._target_={target} makes a {type(method).__name__}, which is no skim.Method.")
    return method


def check_limits(path: str, value: Any, kind: type | tuple[type, ...], low: float, high: float) -> None:
    """Refuse a value that is no number of this kind or out of bounds; ``None`` passes."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
        what = "a whole number" if kind is int else "a number"
        bounds = f", at least {low:.10g}" if high == INFINITY else f", from {low:.10g} to {high:.10g}"
        raise SkimError(f"{path}={value} must be {what}{bounds if low > -INFINITY else ''}.")


def check_stage(name: str, options: Any) -> None:
    """A stage's options have the limits of the options of ``train`` that they stand in for."""
    if not isinstance(options, Mapping):
        raise SkimError(f"method.stages.{name}={options} must be a group of options, or null to leave the stage out.")
    for option, value in options.items():
        if f"train.{option}" in LIMITS:
            check_limits(f"method.stages.{name}.{option}", value, *LIMITS[f"train.{option}"])
