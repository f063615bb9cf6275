"""Figures as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def write_picture(figure: Any, folder: Path, name: str) -> list[Path]:
    """Write a Matplotlib figure as PNG and SVG, the same bytes on any day.

    Returns:
        The files written, ``<name>.png`` and ``<name>.svg``.
    """
    paths = [folder / f"{name}.{suffix}" for suffix in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
        figure.set_layout_engine("none")  # the second file is laid out as the first
    return paths
