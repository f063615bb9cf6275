"""Values of a config that no run can use are refused here, before anything is loaded."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from skim.errors import SkimError
from skim.methods import Method
from skim.options.check import check_places, typed
from skim.options.declared import check_options
from skim.options.members import CHAIN, groups_of
from skim.options.targets import instantiated, located


def check(cfg: DictConfig) -> None:
    """Refuse values that no run can use, before anything is loaded.

    What an option may be is declared once: beside the arguments of a method, the fields of a task, and in
    :mod:`skim.options.run` and :mod:`skim.options.look`.
    """
    tree: Any = OmegaConf.to_container(cfg, resolve=True)
    check_places(tree, "evaluate" if "what" in cfg else "train")
    if cfg.get("method"):
        method_of(cfg)
    if cfg.get("task"):
        with contextlib.suppress(ImportError, AttributeError, ValueError), typed("task"):  # said when it is made
            check_options(located(cfg.task._target_), tree["task"])
    for name, options in (tree.get("logger") or {}).items():
        if options is not None and not isinstance(options, Mapping):
            raise SkimError(f"logger.{name}={options} must be a group of options, as logger=wandb has, or null.")
    check_optimizer(cfg)
    check_trainer(cfg)


def check_optimizer(cfg: DictConfig) -> None:
    """Refuse learning rates and weight decay beside those of ``train``, which every parameter group is given."""
    rates = {"lr": "train.lr and train.method_lr", "weight_decay": "train.weight_decay and train.method_weight_decay"}
    for name, options in rates.items():
        if name in (cfg.get("optimizer") or {}):
            raise SkimError(f"optimizer.{name} would change nothing, parameter groups have their own: set {options}.")


def check_trainer(cfg: DictConfig) -> None:
    """Refuse a number of steps that is none: the schedules are planned by it before Lightning sees it."""
    steps = OmegaConf.select(cfg, "trainer.max_steps", default=-1)
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < -1:
        raise SkimError(f"trainer.max_steps={steps} must be a whole number, at least -1; it follows train.max_steps.")


def method_of(cfg: DictConfig) -> Method:
    """The method that a config names, with its options; how it is trained (``stages``) is the recipe's business."""
    method = made_of(cfg.method, "method")
    backbone = OmegaConf.select(cfg, "backbone.name")
    if backbone is not None and method.measured_on not in (None, backbone):
        raise SkimError(
            f"method={method.name} reads a report of backbone={method.measured_on}, and this run has "
            f"backbone={backbone}.\nMake one of this backbone: python evaluate.py what=redundancy backbone={backbone}"
        )
    return method


def made_of(node: Any, place: str) -> Method:
    """The method that a group of options names; of a chain, members whose options are groups of their own as well.

    Args:
        node: the group.
        place: where it stands in the config.
    """
    methods = node.get("methods") if node.get("_target_") == CHAIN else None
    named: Any = OmegaConf.to_container(methods) if OmegaConf.is_list(methods) else []  # the chain refuses what is none
    groups = groups_of(named)
    # of a chain, also groups of methods that are members in other jobs of a sweep
    others = [key for key in node if methods is not None and OmegaConf.is_dict(node[key])]
    options = OmegaConf.masked_copy(node, [key for key in node if key not in ("stages", *others)])
    members = [
        made_of(node[group], f"{place}.{group}") if isinstance(one, str) and group in node else one
        for group, one in zip(groups, named, strict=True)
    ]
    with typed(place):
        made = instantiated(options, place, _partial_=bool(members))
        method = made(methods=members) if members else made
    if not isinstance(method, Method):
        raise SkimError(
            f"{place}._target_={options.get('_target_')} makes a {type(method).__name__}, and not a skim.Method."
        )
    return method
