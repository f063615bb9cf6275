"""Optimizer and schedule of a run, of any class: parameter groups and learning rates are those of the stages."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from skim.engine.walk import walk_of
from skim.errors import SkimError, first_line
from skim.methods import Method
from skim.stages import Plan, Stage, kind_of

Optimizer: TypeAlias = Callable[..., torch.optim.Optimizer]
Scheduler: TypeAlias = Callable[..., LRScheduler]


def freeze(model: nn.Module, what: int | Literal["embeddings"]) -> None:
    """Let the lower end of a compressed model's backbone be as it is: it needs no gradient.

    Args:
        model: of any family.
        what: the embeddings, or the number of lower layers that are frozen with them.

    Raises:
        SkimError: there are fewer layers, or a frozen one runs again further up.
    """
    walk = walk_of(model)
    layers = walk.backbone.layers(walk.base)
    count = 0 if isinstance(what, str) else what
    if count > len(layers):
        raise SkimError(f"train.freeze={what}: this backbone has {len(layers)} layers.")
    if shared := {id(layer) for layer in layers[:count]} & {id(layer) for layer in layers[count:]}:
        raise SkimError(
            f"train.freeze={what}: layers of {type(walk.base).__name__} share their weights, {len(shared)} of these "
            f"with layers above.\nUse train.freeze=embeddings, or {len(layers)} for all of them."
        )
    for part in (*walk.backbone.embeddings(walk.base), *layers[:count]):
        part.requires_grad_(False)


def grouped(parameters: Iterable[nn.Parameter], method: Method, stage: Stage) -> list[dict[str, Any]]:
    """Parameter groups by kind, each with its peak learning rate and weight decay; what is frozen is in none.

    Of a chain, each member's own parameters are a group.

    Args:
        parameters: of a whole module; shared ones are trained once.
        method: the compression method among them.
        stage: the first one.
    """
    own = own_kinds(method)
    groups: dict[str, list[nn.Parameter]] = {kind: [] for kind in ("decay", "plain", *own.values())}
    for parameter in parameters:
        if parameter.requires_grad:
            groups[own.get(parameter, "decay" if parameter.dim() > 1 else "plain")].append(parameter)
    return [
        {"params": group, "kind": kind, "lr": stage.peak(kind), "weight_decay": stage.decay(kind)}
        for kind, group in groups.items()
        if group
    ]


def own_kinds(method: Method) -> dict[nn.Parameter, str]:
    """The kind of each of a method's own parameters, see :func:`skim.stages.kind_of`."""
    return {parameter: kind_of(label) for label, part in method.by_label.items() for parameter in part.parameters()}


def optimized(make: Optimizer, groups: list[dict[str, Any]], fused: bool) -> torch.optim.Optimizer:
    """Make the optimizer.

    Args:
        make: an optimizer's class, or a partial of it with options.
        groups: from :func:`grouped`.
        fused: update all weights in one pass where the optimizer can; else it takes a sixth of a small model's step.

    Raises:
        SkimError: it takes other arguments than parameter groups and the options given.
    """
    parameters = inspect.signature(make).parameters
    chosen = parameters["fused"].default is not None if "fused" in parameters else True
    try:
        return make(groups, **({} if chosen or not fused else {"fused": True}))
    except (TypeError, ValueError) as error:
        raise SkimError(f"optimizer cannot be used as configured: {first_line(error)}") from error


def scheduled(make: Scheduler, optimizer: torch.optim.Optimizer, plan: Plan) -> LRScheduler:
    """Make the schedule of the learning rates, which moves on at every optimizer step.

    Args:
        make: takes the optimizer and, if it has a ``plan`` among its arguments, the plan. A class without, such as
            torch's, starts from the peak learning rates and knows neither stages nor a method that begins later.
        optimizer: from :func:`optimized`.
        plan: of the run.

    Raises:
        SkimError: it cannot be made so, or cannot follow the plan.
    """
    follows = "plan" in inspect.signature(make).parameters
    if not follows and (len(plan.stages) > 1 or plan.begin > 0):
        what = "stages" if len(plan.stages) > 1 else "train.method_after"
        raise SkimError(
            f"scheduler: {getattr(make, 'func', make).__name__} knows nothing of {what}.\n"
            "Use scheduler=linear, cosine or constant, or a function of your own that takes (optimizer, plan)."
        )
    try:
        made = make(optimizer, plan=plan) if follows else make(optimizer)
    except (TypeError, ValueError) as error:
        raise SkimError(f"scheduler cannot be used as configured: {first_line(error)}") from error
    if isinstance(made, ReduceLROnPlateau):
        raise SkimError("scheduler: ReduceLROnPlateau waits for a metric, and learning rates here follow the step.")
    return made


def linear(optimizer: torch.optim.Optimizer, plan: Plan) -> LambdaLR:
    """Rise in the warmup of each stage, then fall linearly to 0 at its end."""
    return staged(optimizer, plan, lambda left: left)


def cosine(optimizer: torch.optim.Optimizer, plan: Plan) -> LambdaLR:
    """Rise in the warmup of each stage, then fall along half a cosine to 0 at its end."""
    return staged(optimizer, plan, lambda left: (1 - math.cos(math.pi * left)) / 2)


def constant(optimizer: torch.optim.Optimizer, plan: Plan) -> LambdaLR:
    """Rise in the warmup of each stage, then stay at its peak."""
    return staged(optimizer, plan, lambda left: float(left > 0))


def staged(optimizer: torch.optim.Optimizer, plan: Plan, fall: Callable[[float], float]) -> LambdaLR:
    """A schedule that follows the plan's stages, each from its own peaks.

    Args:
        optimizer: its groups know their ``kind``.
        plan: of the run.
        fall: share of the peak, by the share of the stage behind its warmup that is left.
    """
    for group in optimizer.param_groups:
        group["lr"] = 1.0  # the schedule gives the rate itself, because stages have rates of their own
    return LambdaLR(optimizer, [partial(plan.rate, group["kind"], fall=fall) for group in optimizer.param_groups])
