"""Numbers that the published code produced (see tests/golden/README.md), by the names of their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

FOLDER = Path(__file__).parents[2] / "golden" / "redundancy"


def arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def table(name: str) -> Any:
    return json.loads((FOLDER / f"{name}.json").read_text())
