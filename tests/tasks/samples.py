"""A few rows of each data set in the schema that it has on the hub, and the mirror folder that they make."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Value

SPLITS = ("train", "validation", "test")
TEXTS = ["a good film", "the soup was not very good", "it is a bad film and it is not good", "the film was bad"]


def texts(names: list[str], column: str = "label", splits: tuple[str, ...] = SPLITS) -> dict[str, Dataset]:
    """Texts and classes."""
    features = Features({"text": Value("string"), column: ClassLabel(names=names)})
    rows = {"text": TEXTS * 3, column: [i % len(names) for i in range(12)]}
    return {split: Dataset.from_dict(rows, features=features) for split in splits}


# by file in conf/task: the splits of its data set
SAMPLES: dict[str, Callable[[], dict[str, Dataset]]] = {
    "rotten_tomatoes": lambda: texts(["neg", "pos"]),
}

# by file in conf/task that has no data set: writes files into a folder and returns the overrides that name them
FILES: dict[str, Callable[[Path], list[str]]] = {}
# by file in conf/task that only predicts: what is said to whoever trains it
NOT_TRAINED: dict[str, str] = {}
# by file in conf/task whose test split is not to be had: how it predicts all the same
PREDICTED: dict[str, list[str]] = {}


def write(mirror: Path, task: str, cfg: Any) -> None:
    """Write a task's sample where its config looks for it.

    Args:
        mirror: the folder that ``SKIM_MIRROR`` will name.
        task: of :data:`SAMPLES`.
        cfg: the task's config.
    """
    folder = mirror / "datasets" / cfg.hub_id / (cfg.get("config") or "default")
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in SAMPLES[task]().items():
        rows.to_parquet(folder / f"{split}.parquet")
