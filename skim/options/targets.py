"""Classes that a config may name: the one gate through which everything is made from ``_target_``.

What a user types, or writes into files of ``conf``, may name any class. What was read from a run's folder is a
stranger's: there, classes of skim, Lightning and torch that are made for configs pass, those that a file of the user's
``conf`` names as well, and of all others those whose module the user trusts by ``trust_modules`` on this command line.
The name of any other is marked when it is read, and a marked one is neither imported nor called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from skim.errors import SkimError, first_line
from skim.places import CONF

TARGET = "_target_"
CLASSES = (  # packages of which any class may be made, and nothing that they only import
    "skim.methods",
    "skim.lightning.callbacks",
    "skim.lightning.loggers",
    "tasks",
    "torch.optim",
    "pytorch_lightning.callbacks",
    "pytorch_lightning.loggers",
    "pytorch_lightning.profilers",
)
NAMED = (  # what else the project's own files name
    "pytorch_lightning.Trainer",
    "skim.lightning.callbacks.progress.progress_of",
    "skim.lightning.optim.constant",
    "skim.lightning.optim.cosine",
    "skim.lightning.optim.linear",
)
UNTRUSTED = "untrusted:"  # in front of a name: nothing can be imported by it
IN_FILE = re.compile(r"\b_target_\s*:\s*['\"]?([\w.]+)")


def instantiated(node: Any, place: str, **options: Any) -> Any:
    """Make what a part of a config names, with all that stands in it; nothing for null.

    Args:
        node: the part, of OmegaConf's.
        place: where it stands in the config.
        options: further arguments, and Hydra's own such as ``_partial_``.

    Raises:
        SkimError: it names something that may not be made, or that cannot be imported.
        InstantiationException: of Hydra's, about everything else.
    """
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    for _, named in targets(OmegaConf.to_container(node, resolve=True) if OmegaConf.is_config(node) else node):
        admit(named)
    try:
        # convert: lists as lists, also for a class of the user's own, whose file may not ask for it
        return instantiate(node, _convert_="all", **options)
    except InstantiationException as error:
        if "Error locating target" not in str(error):
            raise
        raise SkimError(
            f"{place}._target_={node.get(TARGET)} cannot be imported: {first_line(error.__cause__ or error)}.\n"
            "A module of your own is looked for beside train.py and in PYTHONPATH: export PYTHONPATH=<its folder>."
        ) from None


def located(target: str) -> Any:
    """Import the class, or the function, of a dotted path.

    Raises:
        SkimError: it may not be made.
    """
    from hydra.utils import get_object

    admit(target)
    return get_object(target)


def admit(target: Any) -> None:
    """Refuse what may not be made: a stranger's, and what lies in a package of :data:`CLASSES` and is not its class.

    Raises:
        SkimError: such a one.
    """
    name = str(target)
    if name.startswith(UNTRUSTED):
        raise stranger(name)
    home = next((package for package in CLASSES if name.startswith(f"{package}.")), None)
    if home is None or name in NAMED:
        return
    from hydra.utils import get_object

    try:
        found = get_object(name)
    except Exception:  # which instantiating it says better
        return
    if not (isinstance(found, type) and f"{found.__module__}.".startswith(f"{home}.")):
        raise SkimError(f"_target_={name} is not a class of {home}, and configs make nothing else from there.")


def stranger(target: str, where: str = "") -> SkimError:
    """Make the error for a class that a stored config names and nobody trusts.

    Args:
        target: its name, marked or not.
        where: the file, and a colon.
    """
    name = target.removeprefix(UNTRUSTED)
    module = name.rpartition(".")[0] or name
    return SkimError(
        f"{where}a stored config names {name}, which is none of skim's classes, and no file of your conf/ does.\n"
        f"If you trust the code of that module, say so: 'trust_modules=[{module}]'."
    )


def marked(tree: Any, trusted: Collection[str] = ()) -> Any:
    """Copy a stored config, with every class marked that is not to be made.

    Args:
        tree: of plain dicts and lists.
        trusted: modules, or classes, that the user trusts.
    """
    files = cache(named_by_files)  # read once, and only where a class asks for it: a stored config may name thousands

    def copied(node: Any) -> Any:
        if isinstance(node, list):
            return [copied(one) for one in node]
        if not isinstance(node, Mapping):
            return node
        copy = {key: copied(value) for key, value in node.items()}
        if (target := node.get(TARGET)) is not None and not known(target, trusted, files):
            copy[TARGET] = f"{UNTRUSTED}{str(target).removeprefix(UNTRUSTED)}"
        return copy

    return copied(tree)


def named_by_files() -> set[str]:
    """List what the files of ``conf`` name, and those of every other folder on Hydra's search path."""
    from hydra.core.global_hydra import GlobalHydra

    folders = [str(CONF)]
    if GlobalHydra.instance().is_initialized():
        folders += [one.path for one in GlobalHydra.instance().config_loader().get_search_path().get_path()]
    found = {
        Path(folder.removeprefix("file://")) for folder in folders if not folder.startswith(("pkg:", "structured:"))
    }
    texts = (file.read_text(encoding="utf-8", errors="replace") for folder in found for file in folder.rglob("*.yaml"))
    return {name for text in texts for name in IN_FILE.findall(text)}


def known(target: Any, trusted: Collection[str], files: Callable[[], Collection[str]] = named_by_files) -> bool:
    """Tell whether a stored config may name a class, by its name alone: nothing is imported.

    Args:
        target: its name.
        trusted: modules, or classes, that the user trusts.
        files: gives what the files of ``conf`` name.
    """
    if not (isinstance(target, str) and re.fullmatch(r"\w+(\.\w+)+", target)):  # ${...} may become anything
        return False
    if target in NAMED or target.startswith(tuple(f"{package}." for package in CLASSES)):
        return True
    return any(target == one or target.startswith(f"{one}.") for one in trusted) or target in files()


def targets(tree: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Walk all that a tree of dicts and lists names by ``_target_``, with the path of the part that does."""
    if isinstance(tree, Mapping):
        if TARGET in tree:
            yield place, tree[TARGET]
        for key, value in tree.items():
            yield from targets(value, f"{place}.{key}" if place else str(key))
    elif isinstance(tree, (list, tuple)):
        for number, value in enumerate(tree):
            yield from targets(value, f"{place}.{number}")
