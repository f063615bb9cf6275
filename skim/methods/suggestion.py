"""Layers that a redundancy report finds to suffice, read from its file by the method that leaves the others out."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skim.errors import SkimError, first_line


@dataclass(frozen=True)
class Suggestion:
    """Layers that a report suggests to keep, and what it is a report of.

    Attributes:
        kept: the layers, counted from 0.
        layers: those of the backbone, L.
        width: of the backbone, D.
        backbone: its name.
    """

    kept: tuple[int, ...]
    layers: int
    width: int
    backbone: str


def suggested(report: str | Path, delta: float) -> Suggestion:
    """Read which layers suffice by a report of ``evaluate.py what=redundancy``.

    Args:
        report: a run's folder, its ``results.json``, or a file that holds the report alone.
        delta: percent of the score that may be lost.

    Raises:
        SkimError: there is no report, none for this delta, or it finds every layer to be needed.
    """
    file = Path(report) / "results.json" if Path(report).is_dir() else Path(report)
    section = read(file)
    try:
        about = section["layers"]
        found = {float(one["delta"]): int(one["layers"]) for one in about["selected"]}
        layers, width, backbone = int(about["total"]), int(about["width"]), str(section["backbone"])
        gone = {int(number) - 1 for number in about["not_run"]}  # a report counts from the embeddings
    except (KeyError, TypeError, ValueError) as error:
        why = first_line(error)
        raise SkimError(f"{file} is damaged, or no report of this version: {why}. Make it anew.") from None
    there = ", ".join(f"{one:g}" for one in sorted(found))
    near = [one for one in found if math.isclose(one, delta)]
    if not near:
        raise SkimError(f"{file} has no selection of layers for delta={delta:g}; it has one for {there}.")
    kept = tuple(i for i in range(found[near[0]]) if i not in gone)
    if len(kept) == layers:
        raise SkimError(
            f"{file} finds none of the {layers} layers redundant at delta={delta:g}: there is nothing to leave out.\n"
            f"Take a larger delta (it has {there}), or name the layers: layers=k."
        )
    return Suggestion(kept, layers, width, backbone)


def read(file: Path) -> Mapping[str, Any]:
    """The report in a JSON file: a section of a run's results, or all of the file."""
    make = "python evaluate.py what=redundancy ckpt=<a dense run> makes one"
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise SkimError(f"No redundancy report is at {file}: {error.strerror}; {make}.") from None
    except ValueError as error:
        raise SkimError(f"{file} cannot be read as a redundancy report: {first_line(error)}; {make}.") from None
    section = content.get("redundancy", content if "layers" in content else None) if isinstance(content, dict) else None
    if not isinstance(section, dict):
        raise SkimError(f"{file} holds no redundancy report; {make}.")
    return section
