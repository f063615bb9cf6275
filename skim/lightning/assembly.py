"""Parts of a run that a config names by their classes: callbacks, loggers, optimizer, scheduler, Trainer.

Each is instantiated by Hydra from ``_target_`` and its arguments. A part may come from a module of the user's, beside
``train.py`` or in ``PYTHONPATH``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, TypeVar

import pytorch_lightning as pl
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.callbacks import Callback, Checkpoint, ProgressBar
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import CheckpointIO
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch.distributed.constants import default_pg_timeout

from skim.errors import SkimError, first_line
from skim.lightning.build import Parts
from skim.lightning.checkpoint_io import WholeCheckpoints
from skim.lightning.distill import Distiller, teaches
from skim.lightning.hardware import check_strategy, nodes_of
from skim.lightning.module import SkimModule
from skim.options.declared import OptionError
from skim.options.targets import instantiated

Part = TypeVar("Part")
FILLED = ("callbacks", "logger")  # arguments of the Trainer that are groups of their own


def made(cfg: DictConfig, path: str, **options: Any) -> Any:
    """Instantiate the part that stands at a path of the config.

    Raises:
        SkimError: it cannot be imported, or does not take what it is given.
    """
    part = OmegaConf.select(cfg, path)
    try:
        return instantiated(part, path, **options)
    except InstantiationException as error:
        cause = error.__cause__ or error
        if isinstance(cause, OptionError):
            raise SkimError(cause.typed(path)) from None
        if isinstance(cause, SkimError):
            raise cause from None
        raise SkimError(f"{path} ({part.get('_target_')}) cannot be made: {first_line(cause)}.") from error


def every(cfg: DictConfig, group: str, kind: Any) -> list[Any]:
    """Instantiate the parts of a group, in its order; those that are null are left out.

    Raises:
        SkimError: one of them is something else than its group takes.
    """
    parts = []
    for name, options in cfg[group].items():
        if not OmegaConf.is_dict(options) or "_target_" not in options:
            continue
        part = made(cfg, f"{group}.{name}")
        if not isinstance(part, kind):
            raise SkimError(
                f"{group}.{name}._target_={options._target_} is of type {type(part).__name__}, and not a Lightning "
                f"{kind.__name__}."
            )
        parts.append(part)
    return parts


def callbacks_of(cfg: DictConfig) -> list[Callback]:
    """The callbacks of ``conf/callbacks``."""
    return every(cfg, "callbacks", Callback)


def trainer_of(cfg: DictConfig, callbacks: Sequence[Callback], epochs: int) -> pl.Trainer:
    """Lightning's Trainer, with the loggers of ``conf/logger``.

    Args:
        cfg: of the run.
        callbacks: from :func:`callbacks_of`.
        epochs: of all stages; as many as there are steps for, if ``train.max_steps`` is given.

    Raises:
        SkimError: in Lightning's words, where it cannot be used so.
    """
    given = [name for name in FILLED if name in cfg.trainer]
    if given:
        raise SkimError(
            f"trainer.{given[0]} is filled from the group {given[0]}.\n"
            f"Add one of yours there: {given[0]}.mine._target_=<its class>"
        )
    check_strategy(cfg.hardware.get("strategy"))
    make = made(cfg, "trainer", _partial_=True)
    if make.keywords.get("num_nodes") == "auto":
        make.keywords["num_nodes"] = nodes_of(cfg)
    interval = cfg.train.eval_every
    follows = {
        "max_epochs": epochs if make.keywords["max_steps"] < 0 else -1,
        "val_check_interval": interval or 1.0 / cfg.train.evals_per_epoch,
        "check_val_every_n_epoch": None if interval else 1,
        "enable_progress_bar": any(isinstance(callback, ProgressBar) for callback in callbacks),
        "enable_checkpointing": any(isinstance(callback, Checkpoint) for callback in callbacks),
    }
    options = {name: value for name, value in follows.items() if name not in make.keywords}
    plugins = make.keywords.get("plugins") or []
    plugins = [*plugins] if isinstance(plugins, (list, tuple)) else [plugins]
    if not any(isinstance(plugin, CheckpointIO) for plugin in plugins):
        options["plugins"] = [*plugins, WholeCheckpoints()]
    try:
        return make(callbacks=list(callbacks), logger=every(cfg, "logger", Logger) or False, **options)
    except (MisconfigurationException, ValueError, TypeError) as error:
        raise SkimError(f"trainer or hardware cannot be used as configured: {first_line(error)}") from error


def leave_unused(trainer: pl.Trainer) -> None:
    """Let parameters be without a gradient in a step: DDP would wait for it. They stay as they are."""
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._ddp_kwargs.setdefault("find_unused_parameters", True)


def allow(trainer: pl.Trainer, seconds: float) -> None:
    """Let processes wait for each other longer than for that time, in which a rank that hangs is found and named.

    And for long enough to find each other when they begin.
    """
    if isinstance(trainer.strategy, DDPStrategy):
        trainer.strategy._timeout = max(timedelta(seconds=2 * seconds), default_pg_timeout)


def module_of(cfg: DictConfig, parts: Parts) -> SkimModule:
    """The LightningModule of a run."""
    train = cfg.train
    return SkimModule(
        parts.model,
        parts.task,
        parts.stages,
        method_after=cfg.train.method_after or 0.0,
        optimizer=made(cfg, "optimizer", _partial_=True),
        scheduler=made(cfg, "scheduler", _partial_=True),
        distiller=Distiller(train.distill or 0.0, train.distill_temperature, parts.teacher, train.distill_hidden or 0.0)
        if teaches(train)
        else None,
        calibrate_on=parts.sampled(32, cfg.train.calibrate) if cfg.train.calibrate else None,
        formulas=cfg.formulas,
        companion=parts.companion,
        loss=parts.task.training_loss(cfg.train.label_smoothing),
        between=cfg.train.between,
        average=train.ema,
        nonfinite=train.nonfinite,
    )


def part_of(trainer: pl.Trainer, kind: type[Part]) -> Part | None:
    """The trainer's callback of a kind; ``None`` if it was switched off."""
    return next((callback for callback in trainer.callbacks if isinstance(callback, kind)), None)  # type: ignore[attr-defined]
