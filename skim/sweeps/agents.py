"""Sweeps of W&B's own agents: the file that describes one, from values as they are typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from skim.errors import SkimError, unknown
from skim.files import write_text
from skim.options.agents import Agents
from skim.options.check import typed
from skim.options.members import values_of
from skim.options.words import written

ASKS = "sweep=wandb"
OPTION = "sweep.agents."


def split(overrides: Sequence[str]) -> tuple[Agents, list[str]]:
    """Take the options of the agents out of overrides; returns them and what is left, without ``sweep=wandb``.

    Raises:
        SkimError: an option that there is not, or a value that it cannot have.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    own = [override for override in overrides if override.lstrip("+").startswith(OPTION)]
    known = [field.name for field in fields(Agents)]
    given: dict[str, Any] = {}
    for override in OverridesParser.create().parse_overrides(own):
        name = override.key_or_group.removeprefix(OPTION)
        if name not in known:
            raise unknown("option of sweep.agents", name, known)
        given[name] = override.value()
    with typed(OPTION.rstrip(".")):
        return Agents(**given), [override for override in overrides if override not in (*own, ASKS)]


def described(options: Agents, overrides: Sequence[str]) -> dict[str, Any]:
    """Describe a sweep as ``wandb sweep`` reads it.

    Args:
        options: of the agents.
        overrides: of its jobs, in which at least one is swept over.

    Raises:
        SkimError: nothing is swept over, or an interval by a grid.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser

    fixed, swept, project = [], {}, "skim"
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        key = override.get_key_element().lstrip("+")
        if override.is_sweep_override():
            swept[key] = values(key, override, options.search)
        else:
            fixed.append(str(override.input_line))
        if key == "logger.wandb.project":
            project = str(override.value())
    if not swept:
        raise SkimError(
            f"{ASKS} sweeps over nothing: no option has several values.\n"
            "Give some to one of them, such as method.target=0.3,0.5."
        )
    if not any(line.startswith("logger=") and "wandb" in line for line in fixed):
        fixed.insert(0, "logger=wandb")
    return {
        "project": project,
        "program": "train.py",
        # no ${program}: the module runs in a checkout and wherever skim is installed
        "command": ["${env}", "python", "-m", "skim.train", *fixed, "${args_no_hyphens}"],
        "method": options.search,
        "metric": {"name": options.metric, "goal": options.goal},
        **({} if options.runs is None else {"run_cap": options.runs}),
        "parameters": swept,
    }


def values(key: str, override: Any, search: str) -> dict[str, Any]:
    """Describe what an option is swept over: values, or an interval."""
    if override.is_discrete_sweep():
        return {"values": [plain(value) for value in values_of(override)]}
    interval = override.value()
    if search == "grid":
        raise SkimError(
            f"{override.input_line}: a grid has no end in an interval.\n"
            f"Use {OPTION}search=random or bayes, or name values: {key}={interval.start:g},{interval.end:g}"
        )
    whole = isinstance(interval.start, int) and isinstance(interval.end, int)
    kind = "log_uniform_values" if "log" in interval.tags else "int_uniform" if whole else "uniform"
    return {"distribution": kind, "min": interval.start, "max": interval.end}


def plain(value: Any) -> Any:
    """A value such that what an agent makes of it, ``str(value)``, is read by Hydra as that value again."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    word = isinstance(value, str) and re.fullmatch(r"[\w./-]+", value) is not None
    return value if number or word else written(value)


def write(options: Agents, overrides: Sequence[str]) -> str:
    """Write the file of a sweep; returns what to type next."""
    import yaml

    told = described(options, overrides)
    path = Path(options.file)
    write_text(path, yaml.safe_dump(told, sort_keys=False, width=120))
    return (
        f"{path} sweeps over {', '.join(told['parameters'])}. Give it to W&B, and start as many agents as you like:\n"
        f"  wandb sweep {shlex.quote(str(path))}\n"
        f"  wandb agent <the id that it prints>"
    )
