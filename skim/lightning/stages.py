"""Stages that a config asks for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from omegaconf import DictConfig, OmegaConf

from skim.errors import SkimError, unknown
from skim.stages import Stage


def stages_of(cfg: DictConfig, known: Sequence[str]) -> list[Stage]:
    """The stages that a config asks for: ``method.stages``, each option defaulting to ``train``'s; or just one.

    Args:
        cfg: composed from ``conf/train.yaml``.
        known: the method's stages, in the order in which they make sense.

    Raises:
        SkimError: for a stage that the method does not have, and if none is left.
    """
    names = [field.name for field in fields(Stage) if field.name != "name"]
    common = {name: cfg.train[name] for name in names}
    given: Any = OmegaConf.to_container(cfg.method, resolve=True)
    if not known and not given.get("stages"):
        return [Stage(**common)]
    asked = given["stages"] if "stages" in given else {name: {} for name in known}  # a chain's file names none
    stages = []
    for name, options in (asked or {}).items():
        if name not in known:
            raise unknown("stage in method.stages", name, known)
        if options is None:  # left out
            continue
        for option in options:
            if option not in names:
                raise unknown(f"option of method.stages.{name}", option, names)
        stages.append(Stage(name, **common | {k: v for k, v in options.items() if v is not None}))
    if not stages:
        raise SkimError(f"method.stages leaves every stage out; keep at least one of {', '.join(known)}.")
    return sorted(stages, key=lambda stage: known.index(stage.name))
