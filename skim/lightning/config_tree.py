"""The config of a run as a tree that people read: what is set in each group, without what Hydra and Lightning need."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from skim.files import write_text
from skim.methods import method_name
from skim.options.words import shown

FILE = "config_tree.txt"  # in a run's folder
# in the order of reading; trainer repeats hardware and train, paths and parts are in config.yaml
GROUPS = (
    "task",
    "backbone",
    "method",
    "train",
    "optimizer",
    "scheduler",
    "hardware",
    "callbacks",
    "logger",
    "benchmark",
)
WIDTH = 100  # characters of a line in the file


def config_tree(cfg: DictConfig) -> Tree:
    """Draw a run's config: a branch for each group with its options, those that are null or empty left out.

    A part with a class of its own, such as a callback, is its name alone.
    """
    options: Any = OmegaConf.to_container(cfg, resolve=True)
    names = {"task": options["task"]["name"], "backbone": options["backbone"]["name"]}
    names["method"] = method_name(options["method"]["_target_"])
    tree = Tree("config")
    branch(tree, {name: value for name, value in options.items() if not isinstance(value, Mapping)})
    for group in GROUPS:
        content = {name: value for name, value in (options.get(group) or {}).items() if name != "name"}
        said = names.get(group) or str(content.get("_target_", "")).rpartition(".")[2]
        branch(tree.add(Text.assemble((group, "bold"), f" = {said}" if said else "")), content)
    return tree


def branch(tree: Tree, options: Mapping[str, Any]) -> None:
    """Hang a group's options on a branch: plain ones on one line, groups on branches of their own."""
    plain: list[str] = []
    parts: list[str] = []
    groups: dict[str, Mapping[str, Any]] = {}
    for name, value in options.items():
        if str(name).startswith("_") or value is None or value in ([], {}, ""):
            continue
        if not isinstance(value, Mapping):
            plain.append(f"{name}={shown(value)}")
        elif "_target_" in value:
            parts.append(str(name))
        elif any(one is not None for one in value.values()):
            groups[str(name)] = value
    for line in filter(None, ("  ".join(plain), ", ".join(parts))):
        tree.add(Text(line))
    for name, value in groups.items():
        branch(tree.add(Text(name, "bold")), value)


def write_tree(cfg: DictConfig, folder: Path) -> None:
    """Write the tree into a run's folder."""
    with io.StringIO() as text:
        Console(file=text, width=WIDTH).print(config_tree(cfg), highlight=False)
        lines = [line.rstrip() for line in text.getvalue().splitlines()]  # rich fills them up
    write_text(folder / FILE, "\n".join([*lines, ""]))
