"""Text of ``--help``: the template in ``conf/hydra``, the groups, and options as their YAML comments explain them.

Those comments are the declarations' own words (:mod:`skim.options.comments`), so that help needs no class imported.
Imports nothing heavy.
"""

from __future__ import annotations

import itertools
import re
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path

from skim.options.files import entries, parents


def teach(conf: Path, name: str, overrides: Sequence[str] = ()) -> str:
    """Write the help of an entry point, and of the files that are named behind it their options.

    Args:
        conf: the config folder.
        name: of the primary config.
        overrides: as typed; ``method=ltp`` adds what ``conf/method/ltp.yaml`` explains.
    """
    from omegaconf import OmegaConf

    primary = conf / f"{name}.yaml"
    choice = next(d["hydra"] for d in OmegaConf.load(primary).defaults if "hydra" in d)
    said: str = OmegaConf.load(conf / "hydra" / f"{choice}.yaml").help.template
    said = said.replace("$GROUPS", groups(conf)).replace("$OPTIONS", options(primary))
    for override in overrides:
        group, _, option = override.lstrip("+").partition("=")
        file = conf / group / f"{option}.yaml"
        if file.is_file():
            said += f"\n\nOptions of {group}={option}:\n\n{opening(file)}\n\n{options(file, group)}"
    return said


def groups(conf: Path) -> str:
    """List the files of each group, but those that others start from."""
    lines = []
    for folder in sorted(path for path in conf.iterdir() if path.is_dir() and path.name not in ("hydra", "local")):
        files = sorted(path.stem for path in folder.glob("*.yaml") if not path.stem.startswith("_"))
        lines.append(wrapped(f"  {folder.name + '=':<13}{', '.join(files)}", " " * 15))
    return "\n".join(lines)


def options(file: Path, group: str = "") -> str:
    """List the options of a YAML file, each with its value and below it what the comment above it says."""
    lines = []
    for key, value, comment in explained(file):
        inside = key.startswith(f"{group}.") or not group  # a file for the whole config says where it puts them
        lines.append(f"  {key if inside else f'{group}.{key}'}={value}")
        if comment:
            lines.append(wrapped(f"      {comment}", " " * 6))
    return "\n".join(lines)


def opening(file: Path) -> str:
    """Read the comment that a file opens with: the command that runs it, and what it is for."""
    lines = itertools.takewhile(lambda line: line.startswith("#"), file.read_text().splitlines())
    return "\n".join(f"  {line.lstrip('# ')}" for line in lines if "@package" not in line)


def explained(file: Path) -> list[tuple[str, str, str]]:
    """Read path, value and comment of every option in a file, and in those of its folder that it starts from."""
    found: dict[str, tuple[str, str, str]] = {}
    text = file.read_text()
    listed = long_values(text)
    for parent in parents(text):
        if file.with_name(f"{parent}.yaml").is_file():
            found |= {entry[0]: entry for entry in explained(file.with_name(f"{parent}.yaml"))}
    for entry in entries(text):
        value = listed.get(entry.path, entry.value)
        if value is not None:
            found[entry.path] = (entry.path, value, entry.comment or found.get(entry.path, ("", "", ""))[2])
        elif entry.comment:  # a group of options
            found[entry.path] = (entry.path, "...", entry.comment)
    return list(found.values())


def long_values(text: str) -> dict[str, str]:
    """Read the values of a file that go on below their option: lists, an item a line, and folded texts."""
    import yaml

    found: dict[str, str] = {}
    for key, value in (yaml.safe_load(text) or {}).items():
        if key == "defaults" or re.search(rf"^{key}: *(>-)?$", text, re.MULTILINE) is None:
            continue
        if isinstance(value, list):
            found[key] = "".join(f"\n    - {one}" for one in value)
        elif isinstance(value, str):
            found[key] = value
    return found


def wrapped(line: str, indent: str) -> str:
    """Wrap a line to the width of the terminal."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    return textwrap.fill(line, max(width, 40), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
