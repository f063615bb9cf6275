"""Stages that a config asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any

from omegaconf import DictConfig, OmegaConf

from skim.errors import SkimError, unknown
from skim.methods import Method
from skim.options.members import groups_of
from skim.options.run import Schedule, StageSchedule
from skim.stages import Stage

OPTIONS = tuple(field.name for field in fields(Schedule))  # of a stage
OWN = ("method_lr", "method_weight_decay")  # those that are a method's, and of a chain each member's


def stages_of(cfg: DictConfig, method: Method) -> list[Stage]:
    """The stages that a config asks for: ``method.stages``, each option defaulting to ``train``'s; or just one.

    Stages whose epochs are below 1 divide ``train.epochs`` among themselves.

    Those of a chain are its members', ``method.<label>.stages``: what several of them say of one stage has to agree,
    and each says at which rate its own parameters learn. A member without stages learns by ``train`` in all of them.

    Args:
        cfg: composed from ``conf/train.yaml``.
        method: that it names; its stages are in the order in which they make sense.

    Raises:
        SkimError: for a stage that the method does not have, and if none is left.
    """
    tree: Any = OmegaConf.to_container(cfg.method, resolve=True)
    common = {name: cfg.train[name] for name in OPTIONS}
    groups = dict(zip(method.by_label, groups_of(tree.get("methods")), strict=False))
    asked = {label: listed(part, tree, groups.get(label, label)) for label, part in method.by_label.items()}
    if not method.stages:
        return [Stage(**common)]
    stages = []
    for name in method.stages:
        own = {label: options[name] for label, options in asked.items() if name in options}
        if "" in own:
            stages.append(Stage(name, **common | own[""]))
        elif own:
            apart = [label for label, part in method.by_label.items() if part.stages]
            rates = {label: StageSchedule(**common | own.get(label, {"method_lr": 0.0})) for label in apart}
            stages.append(Stage(name, **common | agreed(name, own), members=rates))
    return divided(stages, cfg.train.epochs)


def divided(stages: Sequence[Stage], epochs: int) -> list[Stage]:
    """Turn shares into epochs: the stages whose epochs are below 1 take ``epochs`` together, by these shares."""
    whole = sum(stage.epochs for stage in stages if stage.epochs < 1)
    return [replace(stage, epochs=stage.epochs / whole * epochs) if stage.epochs < 1 else stage for stage in stages]


def listed(part: Method, tree: Mapping[str, Any], group: str) -> dict[str, dict[str, Any]]:
    """Options of the stages of a method, or a chain's member, that are not left out; without those that are null.

    Args:
        part: the method or member.
        tree: options of the method.
        group: of the member's options; empty for a method that is none.

    Raises:
        SkimError: a stage or an option that there is not, and if none is left.
    """
    given, place = (tree.get(group) or {}, f"method.{group}.stages") if group else (tree, "method.stages")
    if "stages" in given:
        asked = given["stages"] or {}
    else:  # as in Python: a member that is given with its options alone
        rates = part.learning_rates if group else {}
        own = {"method_lr": rates, "epochs": part.stage_shares}
        asked = {name: {option: by[name] for option, by in own.items() if name in by} for name in part.stages}
    found = {}
    for name, options in asked.items():
        if name not in type(part).stages:
            raise unknown(f"stage in {place}", name, part.stages)
        if options is None or name not in part.stages:  # left out, or a stage that another preset has
            continue
        for option in options:
            if option not in OPTIONS:
                raise unknown(f"option of {place}.{name}", option, OPTIONS)
        found[name] = {option: value for option, value in options.items() if value is not None}
    if part.stages and not found:
        raise SkimError(f"{place} leaves every stage out; keep at least one of {', '.join(part.stages)}.")
    return found


def agreed(stage: str, own: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Options of a stage that several members have, apart from those of their own parameters.

    Raises:
        SkimError: one says something else than another.
    """
    found: dict[str, tuple[str, Any]] = {}
    for label, options in own.items():
        for option, value in options.items():
            before, said = found.setdefault(option, (label, value))
            if said != value and option not in OWN:
                one, other = (f"method.{name}.stages.{stage}.{option}" for name in (before, label))
                raise SkimError(
                    f"{one}={said} and {other}={value} speak of the same stage of this run.\n"
                    "Give one of them, or both alike."
                )
    return {option: value for option, (_, value) in found.items() if option not in OWN}
