"""Comments of the files in ``conf``, written from the declarations of the options.

$ python -m skim.options.comments conf          # rewrites them; a test holds that there is nothing to rewrite

The declaration is the one source: unit and meaning from the class (:mod:`skim.options.meaning`), kind and bounds from
the annotation. A file that gives an option another value than the class, or than a file that it starts from, may say
why in a comment of its own.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any, cast

from skim.files import write_text
from skim.options.check import PLACES
from skim.options.declared import arguments
from skim.options.files import Entry, entries, parents
from skim.options.meaning import comment

WIDTH = 120
BASES = {  # files that others of their folder start from, and which name no class
    "task/_defaults": "tasks.base.Task",
    "task/_text": "tasks.text.Text",
    "task/_pretraining": "tasks.pretraining.MaskedLanguage",
}


def written(file: Path) -> str:
    """Write the text of a file in ``conf`` with the comments that it should have."""
    text = file.read_text()
    lines = text.splitlines()
    for entry in reversed(entries(text)):
        said = comment_of(file, entry)
        if said is not None:
            indent = " " * (len(lines[entry.line]) - len(lines[entry.line].lstrip()))
            lines[entry.above : entry.line] = wrapped(said, indent)
    return "\n".join(lines) + "\n"


def comment_of(file: Path, entry: Entry) -> str | None:
    """Write the comment that an option should have; ``None`` where the file's own is as good, or none."""
    owner = owners(file).get(entry.place)
    if owner is None or entry.value is None or entry.name not in arguments(owner):
        return None
    path = entry.path.removeprefix(f"{file.parent.name}.")
    if entry.value == file.stem or any(path in paths(parent) for parent in ancestors(file)):
        return None  # its own name, or another value than that of the file it starts from
    default = arguments(owner)[entry.name].default
    differs = default is not inspect.Parameter.empty and value_of(entry) != plain(default)
    return None if differs and entry.comment else comment(owner, entry.name)


def paths(file: Path) -> set[str]:
    """List the options of a file, as a file of its group names them."""
    return {entry.path.removeprefix(f"{file.parent.name}.") for entry in entries(file.read_text())}


def owners(file: Path) -> dict[str, type]:
    """Find the classes whose options stand in a file, by the place where they stand in it."""
    from hydra.utils import get_class
    from omegaconf import DictConfig, OmegaConf

    group, tree = file.parent.name, cast(DictConfig, OmegaConf.load(file))
    places: dict[str, type] = {}
    if group == "conf":
        places |= PLACES.get(file.stem, {})
    elif group in PLACES["train"]:
        places[""] = PLACES["train"][group]
    elif group == "recipe":
        places[""] = PLACES["train"]["train"]
    inner = f"{group}."
    places |= {place.removeprefix(inner): kind for place, kind in PLACES["train"].items() if place.startswith(inner)}
    if group in ("method", "task"):
        place = group if group in tree and OmegaConf.is_dict(tree[group]) else ""  # a file for the whole config
        targets = [OmegaConf.select(OmegaConf.load(one), at) for one in (file, *ancestors(file)) for at in AT[group]]
        targets += [BASES[name] for one in (file, *ancestors(file)) if (name := f"{group}/{one.stem}") in BASES]
        if named := list(filter(None, targets)):
            places[place] = get_class(named[0])
    return places


AT = {"method": ("_target_",), "task": ("_target_", "task._target_")}


def ancestors(file: Path) -> list[Path]:
    """List the files of the same folder that a file starts from, nearest first."""
    found = [file.with_name(f"{name}.yaml") for name in reversed(parents(file.read_text()))]
    found = [one for one in found if one.is_file()]
    return [*found, *(further for one in found for further in ancestors(one))]


def value_of(entry: Entry) -> Any:
    """Read the value of an option, in Python's types."""
    from omegaconf import OmegaConf

    return OmegaConf.to_container(OmegaConf.create(f"value: {entry.value}"), resolve=False)["value"]  # type: ignore[index,call-overload]


def plain(default: Any) -> Any:
    """Write a default as a file says it."""
    return list(default) if isinstance(default, tuple) else default


def wrapped(text: str, indent: str) -> list[str]:
    """Wrap a comment into lines of at most 120 characters."""
    lead = f"{indent}# "
    return textwrap.wrap(
        text, WIDTH, initial_indent=lead, subsequent_indent=lead, break_long_words=False, break_on_hyphens=False
    )


def main() -> None:
    """Rewrite the comments of a config folder's files."""
    for file in sorted(Path(sys.argv[1]).rglob("*.yaml")):
        text = written(file)
        if text != file.read_text():
            write_text(file, text)
            print(file)


if __name__ == "__main__":
    main()
