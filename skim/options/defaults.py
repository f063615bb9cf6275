"""Defaults of options that a run's configuration does not name: it is from a version that did not have them yet."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from inspect import Parameter
from typing import Any

from skim.options.check import PLACES
from skim.options.declared import arguments

RESOLVED = {"train.distill": 0.0, "train.distill_hidden": 0.0}  # a run fills their null in; before them, it was off
OURS = ("skim.", "tasks.")  # classes that may be imported because a file names them
Flat = dict[str, Any]


def filled(flats: Sequence[Flat], configs: Sequence[Mapping[str, Any]]) -> list[Flat]:
    """Give configurations that are compared the same options: one that is missing has its declared default.

    An option without one stays missing.

    Args:
        flats: options by dotted path.
        configs: the whole configurations that they are from.
    """
    names = {name for flat in flats for name in flat}
    made = []
    for flat, config in zip(flats, configs, strict=True):
        known = {name: default_of(name, config) for name in names - flat.keys()}
        made.append(flat | {name: value for name, value in known.items() if value is not Parameter.empty})
    return made


def default_of(path: str, config: Mapping[str, Any]) -> Any:
    """The declared default of an option, in JSON's types; ``Parameter.empty`` if it has none."""
    if path in RESOLVED:
        return RESOLVED[path]
    place, _, name = path.rpartition(".")
    node: Any = config
    for part in filter(None, place.split(".")):
        node = node.get(part) if isinstance(node, Mapping) else None
    target = node.get("_target_") if isinstance(node, Mapping) else None
    found = PLACES["train"].get(place)
    defaults = defaults_of(found) if found is not None else declared_by(str(target)) if target else {}
    return defaults.get(name, Parameter.empty)


@cache
def declared_by(target: str) -> Flat:
    """The defaults of a class of skim's own, by its dotted path; none of another, which is not imported."""
    module, _, name = target.rpartition(".")
    if not target.startswith(OURS):
        return {}
    try:
        return defaults_of(getattr(import_module(module), name))
    except (ImportError, AttributeError):  # of a version that had it
        return {}


def defaults_of(owner: type) -> Flat:
    """The defaults of a class's options, in JSON's types."""
    given = {name: one.default for name, one in arguments(owner).items() if one.default is not Parameter.empty}
    return json.loads(json.dumps(given, default=str))  # type: ignore[no-any-return]
