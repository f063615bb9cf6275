"""Members of a chain on the command line: ``method=[layer_drop,ltp] method.layer_drop.layers=4 method.ltp.target=0.3``.

Each name in the list brings its file of ``conf/method`` as a group of options of the chain, ``method.ltp``, so that an
option of a member is typed, swept over and checked like any other. Imports nothing heavy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from skim.errors import SkimError

CHAIN = "skim.methods.chain.Chain"


def numbered(names: Iterable[str]) -> list[str]:
    """A label for each name: the name, with a number behind from the second of a kind on."""
    seen: Counter[str] = Counter()
    found = []
    for name in names:
        seen[name] += 1
        found.append(name if seen[name] == 1 else f"{name}_{seen[name]}")
    return found


def groups_of(methods: Any) -> list[str]:
    """Groups below ``method`` in which the options of each member of ``method.methods`` stand."""
    named = methods if isinstance(methods, Sequence) and not isinstance(methods, str) else ()
    return numbered(str(one.get("method")) if isinstance(one, Mapping) else str(one) for one in named)


def brought(methods: Any, files: Sequence[str]) -> list[str]:
    """The overrides by which Hydra puts the files of the members that are given by their names into their groups.

    Args:
        methods: value of ``method.methods``.
        files: of the group ``method``.
    """
    places = zip(groups_of(methods), methods if isinstance(methods, Sequence) else (), strict=False)
    return [f"+method@method.{label}={one}" for label, one in places if isinstance(one, str) and one in files]


def members_asked(overrides: Iterable[Any], tree: Mapping[str, Any]) -> list[Any]:
    """The values of ``method.methods`` that a command line asks for: several where they are swept over; or the files'.

    Args:
        overrides: as Hydra has parsed them.
        tree: composed from the files; of a method that is no chain, there are none.
    """
    method = tree.get("method")
    if not isinstance(method, Mapping) or method.get("_target_") != CHAIN:
        return []
    found = [values_of(override) for override in overrides if override.key_or_group == "method.methods"]
    return found[-1] if found else [method.get("methods")]


def values_of(override: Any) -> list[Any]:
    """The value of an override, or those that it sweeps over."""
    if not override.is_sweep_override():
        return [override.value()]
    return [override._convert_value(one) for one in override.sweep_iterator()] if override.is_discrete_sweep() else []


def unfolded(override: Any) -> list[str] | None:
    """``method=[layer_drop,ltp]`` as a chain of these methods, also swept over; ``None`` for another override.

    Args:
        override: as Hydra has parsed it.

    Raises:
        SkimError: a sweep over chains and single methods.
    """
    if override.key_or_group != "method" or override.package is not None or override.is_delete():
        return None
    lists = [isinstance(value, list) for value in values_of(override)]
    if not any(lists):
        return None
    text = str(override.input_line).partition("=")[2]
    if not all(lists):
        raise SkimError(f"method={text}: a sweep is over single methods, or over chains; type a command for each.")
    return ["method=chain", f"method.methods={text}"]
