"""Values of a composed config, held against the declarations of what they are for, in the words of the command line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from skim.errors import SkimError
from skim.options.agents import Agents
from skim.options.declared import OptionError, check_options
from skim.options.look import (
    Look,
    LookBenchmark,
    LookDepth,
    LookExport,
    LookHardware,
    LookRedundancy,
    LookSearch,
    Tagged,
)
from skim.options.run import Benchmark, Callbacks, Hardware, Options, Run, StageSchedule, Training
from skim.options.sweep import Sweep

# by primary config: whose options stand where in it; the empty place is the config itself
PLACES: dict[str, dict[str, type[Options]]] = {
    "train": {
        "": Run,
        "train": Training,
        "hardware": Hardware,
        "callbacks": Callbacks,
        "benchmark": Benchmark,
        "sweep": Sweep,
        "sweep.agents": Agents,
    },
    "evaluate": {
        "": Look,
        "hardware": LookHardware,
        "depth": LookDepth,
        "depth.tagged": Tagged,
        "redundancy": LookRedundancy,
        "export": LookExport,
        "search": LookSearch,
        "benchmark": LookBenchmark,
    },
}


@contextlib.contextmanager
def typed(place: str) -> Iterator[None]:
    """Say what is wrong with options as one types them: ``method.target=2 must be ...``.

    Args:
        place: the group that they stand in, such as ``method`` or ``task``; empty for options that stand in none.
    """
    from hydra.errors import InstantiationException

    try:
        yield
    except (OptionError, InstantiationException) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else error
        if isinstance(cause, OptionError):
            raise SkimError(cause.typed(place)) from None
        if isinstance(cause, SkimError):
            raise cause from None
        raise


def check_places(tree: Mapping[str, Any], name: str) -> None:
    """Refuse a value that the option of a run, or of a look at one, cannot have.

    Args:
        tree: the composed config, as plain dicts and lists.
        name: of its primary config: ``train`` or ``evaluate``.

    Raises:
        SkimError: the option, its value, and what it has to be.
    """
    for place, owner in PLACES[name].items():
        options: Any = tree
        for part in filter(None, place.split(".")):
            options = options.get(part, {})
        if not isinstance(options, Mapping):
            raise SkimError(f"{place}={options} must be a group of options.")
        with typed(place):
            check_options(owner, options)
    method = tree.get("method") or {}
    members = {f"method.{label}": options for label, options in method.items() if isinstance(options, Mapping)}
    for place, options in {"method": method, **members}.items():
        check_stages(options.get("stages"), f"{place}.stages")


def check_stages(stages: Any, place: str) -> None:
    """Refuse a value that an option of a method's stage, of :class:`StageSchedule`, cannot have; null is train's."""
    if not isinstance(stages or {}, Mapping):
        raise SkimError(f"{place}={stages} must be a group of stages, such as {place}.soft.epochs=2.")
    for name, options in (stages or {}).items():
        if not isinstance(options or {}, Mapping):
            raise SkimError(f"{place}.{name}={options} must be a group of options, or null to leave the stage out.")
        with typed(f"{place}.{name}"):
            check_options(StageSchedule, {key: value for key, value in (options or {}).items() if value is not None})
