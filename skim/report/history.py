"""Training curves of a run, from its ``metrics.csv``."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from skim.errors import SkimError
from skim.report.runs import FOLDER, Results

SPENT = "train/relative_flops"
LOSS = "train/loss"


def history(run: Results, points: int) -> dict[str, list[list[float]]]:
    """Read the steps and values of the metric that counts, the loss and relative FLOPs; empty without the file.

    Args:
        run: that was loaded from its folder.
        points: the most of each curve; of longer ones, so many are taken evenly.

    Raises:
        SkimError: a file that holds something else.
    """
    path = Path(run[FOLDER]) / "metrics.csv"
    columns = {"metric": f"val/{run['monitor']}", "loss": LOSS, "flops": SPENT}
    found: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in columns}
    if path.is_file():
        try:
            _read(path, columns, found)
        except (ValueError, csv.Error) as error:
            raise SkimError(f"{path} does not hold the curves of a run: {error}.") from None
    return {name: [_thinned(list(one), points) for one in curve] for name, curve in found.items() if curve[0]}


def _read(path: Path, columns: dict[str, str], found: dict[str, tuple[list[float], list[float]]]) -> None:
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        lines = csv.reader(line for line in file if line.endswith("\n"))  # a run that was killed may end in half a line
        heads = {head: place for place, head in enumerate(next(lines, []))}
        places = [(name, heads[column]) for name, column in columns.items() if column in heads]
        if "step" not in heads:
            return
        step = heads["step"]
        for line in lines:
            if len(line) == len(heads):
                for name, place in places:
                    if line[place]:
                        found[name][0].append(_number(line[step]))
                        found[name][1].append(_number(line[place]))


def _thinned(values: list[Any], points: int) -> list[Any]:
    """Take some, evenly, the first and the last among them."""
    if len(values) <= points:
        return values
    return [values[round(i * (len(values) - 1) / (points - 1))] for i in range(points)]


def _number(text: str) -> Any:
    value = float(text)
    return (
        int(value) if value.is_integer() else float(f"{value:.4g}") if value == value and abs(value) < 1e300 else None
    )
