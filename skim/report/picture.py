"""Figures as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from skim.files import replacing


def write_picture(figure: Any, folder: Path, name: str, kinds: Sequence[str] = ("png", "svg")) -> list[Path]:
    """Write a Matplotlib figure in each of the kinds, the same bytes on any day.

    Returns:
        The files written, such as ``<name>.png`` and ``<name>.svg``.
    """
    paths = [folder / f"{name}.{suffix}" for suffix in kinds]
    for path in paths:
        with replacing(path) as part:
            figure.savefig(part, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
        figure.set_layout_engine("none")  # the second file is laid out as the first
    return paths
