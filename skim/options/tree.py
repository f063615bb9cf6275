"""The tree of options that chosen files compose: what exists in it, and what was meant by a name that does not."""

from __future__ import annotations

import copy
import difflib
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from skim.errors import SkimError

# what papers call an option -> what it is called here; written in place of it everywhere
ALIASES = {"method.lambda": "method.coefficient", "method.from": "method.report"}
# below these stand the options of others, who know them: a model's config, and a run that is looked at
OPEN = ("backbone.overrides", "overrides")
# what other projects call an option, where no likeness leads to it
SYNONYMS = {"learning_rate": "lr", "device": "accelerator", "dataset": "task", "model": "backbone", "gpus": "devices"}
# groups that take parts of the user's own: of any name, with a class
PARTS = ("callbacks", "logger")
# arguments of a part that a run fills, and an override cannot
FILLED = {
    "optimizer": ("params", "lr", "weight_decay"),
    "trainer": ("callbacks", "logger"),
    "scheduler": ("optimizer",),
}
HYDRA = ("_target_", "_partial_", "_args_", "_convert_", "_recursive_")  # its words about a part
Tree = dict[str, Any]


@dataclass
class Chosen:
    """A config composed from files alone.

    Attributes:
        tree: its options, without those of Hydra.
        choices: the file of each group.
        files: what ``conf/experiment``, ``conf/local`` and ``conf/debug`` made of it; equal to ``tree`` without them.
        params: overrides that these files want swept over.
        targets: classes that the user names, by the dotted path of the part; several where they are swept over.
    """

    tree: Tree
    choices: dict[str, str]
    files: Tree
    params: list[str] = field(default_factory=list)
    targets: dict[str, list[str]] = field(default_factory=dict)


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Walk every option of a tree with its dotted path; a group without options is one itself."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def branches(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Tree]]:
    """Walk every group of options of a tree with its dotted path."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield f"{prefix}{key}", value
            yield from branches(value, f"{prefix}{key}.")


def names(node: Tree) -> list[str]:
    """List the options of a group, without what is Hydra's."""
    return [str(key) for key in node if not str(key).startswith("_")]


def node_at(key: str, tree: Tree) -> Any:
    """Return the option or group at a path.

    Raises:
        KeyError: nothing does.
    """
    node: Any = tree
    for part in key.split("."):
        if isinstance(node, list) and part.isdigit() and int(part) < len(node):
            node = node[int(part)]
        elif isinstance(node, dict) and part in node:
            node = node[part]
        else:
            raise KeyError(key)
    return node


def listed(key: str, tree: Tree) -> bool:
    """Tell whether a tree has an option or a group at a path."""
    try:
        node_at(key, tree)
    except KeyError:
        return False
    return True


def exists(key: str, chosen: Chosen) -> bool:
    """Tell whether an option exists, or could: in an open place, as a part of the user's, or as a class's argument."""
    if listed(key, chosen.tree) or key in chosen.targets:
        return True
    for place in OPEN:
        if key.startswith(f"{place}."):
            return exists(place, chosen)
    place, _, last = key.rpartition(".")
    if last in HYDRA:
        return place.rpartition(".")[0] in PARTS or (not listed(place, chosen.tree) and exists(place, chosen))
    while place:
        if targets := targets_at(place, chosen):
            argument = key[len(place) + 1 :].partition(".")[0]
            return any(argument in known or "**" in known for known in map(arguments, targets))
        place = place.rpartition(".")[0]
    return False


def targets_at(place: str, chosen: Chosen) -> list[str]:
    """The classes whose arguments stand below a path, the user's before the files'; none of those of this project.

    The options of skim's own classes are all in their files.
    """
    if place in chosen.targets:
        return chosen.targets[place]
    node = node_at(place, chosen.tree) if listed(place, chosen.tree) else None
    target = str(node.get("_target_", "")) if isinstance(node, dict) else ""
    return [target] if target and not target.startswith(("skim.", "tasks.")) else []


def arguments(target: str) -> list[str]:
    """Names of a class's arguments, ``**`` for any: also if it cannot be imported, which the run then says better."""
    from skim.options.targets import located

    try:
        parameters = inspect.signature(located(target)).parameters.values()
    except Exception:
        return ["**"]
    return ["**" if p.kind is p.VAR_KEYWORD else p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]


def no_option(key: str, chosen: Chosen, where: str = "") -> SkimError:
    """Make the error for an option that does not exist: the nearest that does, and all that stand in that place."""
    group = key.partition(".")[0]
    of = f" of {group}={chosen.choices[group]}" if "." in key and group in chosen.choices else ""
    alias = next((alias for alias, name in ALIASES.items() if name == key), None)
    tree = copy.deepcopy(chosen.tree)
    parent, groups = key.rpartition(".")[0], dict(branches(tree))
    while parent and parent not in groups:
        parent = parent.rpartition(".")[0]
    for target in targets_at(parent, chosen) if parent else ():
        for argument in arguments(target):
            if argument not in FILLED.get(parent, ()):
                groups[parent].setdefault(argument, None)  # as if its file had said so
    near = meant(key, tree)
    hint = f" Did you mean {near}?" if near else ""
    known = names(groups[parent] if parent else tree)
    here = (
        f"{f'{parent} has' if parent else 'There are'}: {', '.join(known)}." if known else f"{parent} has no options."
    )
    said = f"{key} (also called {alias})" if alias else key
    return SkimError(f"{where}{said} is not an option{of}.{hint}\n{here}")


def meant(key: str, tree: Tree) -> str | None:
    """Guess the option that was most likely meant: of the same name elsewhere, alike beside it, or alike anywhere."""
    parent, _, last = key.rpartition(".")
    last = SYNONYMS.get(last, last)
    paths = [path for path, _ in leaves(tree) if not path.rpartition(".")[2].startswith("_")]
    paths += [] if parent else list(tree)
    by_name: dict[str, list[str]] = {}
    for path in paths:
        by_name.setdefault(path.rpartition(".")[2], []).append(path)
    for alias, name in ALIASES.items():
        if name in paths:
            by_name.setdefault(alias.rpartition(".")[2], []).append(name)
    beside = [path.rpartition(".")[2] for path in paths if path.rpartition(".")[0] == parent]
    found = [last] if last in by_name else []
    found = found or difflib.get_close_matches(last, beside, n=1, cutoff=0.65)
    if found and found[0] in beside:
        return f"{parent}.{found[0]}" if parent else found[0]
    found = found or difflib.get_close_matches(last, list(by_name), n=1, cutoff=0.75)
    if not found:
        return None
    return max(by_name[found[0]], key=lambda path: difflib.SequenceMatcher(None, key, path).ratio())
