"""Text of ``--help``: the template in ``conf/hydra``, the groups, and options as their YAML comments explain them.

Imports nothing heavy.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Sequence
from pathlib import Path


def teach(conf: Path, name: str, overrides: Sequence[str] = ()) -> str:
    """The help of an entry point; of the files that are named behind it, their options too.

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
            said += f"\n\nOptions of {group}={option}:\n\n{options(file, group)}"
    return said


def groups(conf: Path) -> str:
    """The files of each group, but those that others start from."""
    lines = []
    for folder in sorted(path for path in conf.iterdir() if path.is_dir() and path.name not in ("hydra", "local")):
        files = sorted(path.stem for path in folder.glob("*.yaml") if not path.stem.startswith("_"))
        lines.append(wrapped(f"  {folder.name + '=':<13}{', '.join(files)}", " " * 15))
    return "\n".join(lines)


def options(file: Path, group: str = "") -> str:
    """The options of a YAML file, each with its value and below it what the comment above it says."""
    lines = []
    for key, value, comment in explained(file):
        inside = key.startswith(f"{group}.") or not group  # a file for the whole config says where it puts them
        lines.append(f"  {key if inside else f'{group}.{key}'}={value}")
        if comment:
            lines.append(wrapped(f"      {comment}", " " * 6))
    return "\n".join(lines)


def explained(file: Path) -> list[tuple[str, str, str]]:
    """Path, value and comment of every option in a file, and in those of its folder that it starts from.

    The comment that a file opens with is about the file, up to an empty line.
    """
    found: dict[str, tuple[str, str, str]] = {}
    above: list[str] = []
    comments: list[str] = []
    starts = False  # within the list of defaults
    lines = file.read_text().splitlines()
    while lines and lines[0].startswith("#"):
        del lines[0]
    for line in lines:
        parent = re.fullmatch(r"(?:  - (?:/\w+/)?|defaults: \[)(\w+)(?:@\w+)?\]?", line)
        if parent is not None and (starts or line.startswith("defaults")):
            if (file.with_name(f"{parent[1]}.yaml")).is_file():
                found |= {entry[0]: entry for entry in explained(file.with_name(f"{parent[1]}.yaml"))}
            continue
        key = re.match(r"( *)(\w+):(?: +(.*?))?(?: +#.*)?$", line)
        starts = line.startswith("defaults") or (starts and key is None)
        if line.strip().startswith("#"):
            comments.append(line.strip().lstrip("# "))
        elif key is not None and not starts:
            del above[len(key[1]) // 2 :]
            above.append(key[2])
            path = ".".join(above)
            if key[3] is not None and not key[2].startswith("_"):
                found[path] = (path, key[3], " ".join(comments) or found.get(path, ("", "", ""))[2])
            elif comments and key[3] is None:  # a group of options
                found[path] = (path, "...", " ".join(comments))
        if not line.strip().startswith("#"):
            comments = []
    return [entry for path, entry in found.items() if not path.startswith("defaults")]


def wrapped(line: str, indent: str) -> str:
    """A line in the width of the terminal."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 120)
    return textwrap.fill(line, max(width, 40), subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
