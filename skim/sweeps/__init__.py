"""Sweeps: several jobs in one command, in a folder that remembers which have finished. Imports nothing heavy."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

from skim.sweeps.plan import Plan, planned

__all__ = ["planned", "register"]


def register(plan: Plan, command: str) -> None:
    """Make Hydra know the sweepers of this package by the names that files in ``conf/hydra/sweeper`` give them.

    It makes sweepers only of what goes by a name under ``hydra_plugins``, which is where packages of plugins are; this
    one is no such package, and its sweepers know what the command asks for before Hydra does.

    Args:
        plan: what is asked for.
        command: as typed.
    """
    from hydra.core.plugins import Plugins

    from skim.sweeps.grid import Grid
    from skim.sweeps.search import Search

    known = cast(dict[str, Any], Plugins.instance().class_name_to_class)
    known["hydra_plugins.skim.Grid"] = partial(Grid, plan, command)
    known["hydra_plugins.skim.Search"] = partial(Search, plan, command)
