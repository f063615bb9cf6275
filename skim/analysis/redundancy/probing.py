"""Splits, recipe and metric that the probes of an analysis share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from skim.analysis.redundancy.metrics import metric
from skim.analysis.redundancy.probes import Bank, Probe, Recipe, train_probes
from skim.analysis.redundancy.recipes import RECIPES
from skim.analysis.redundancy.rows import Rows, Target, target_of
from skim.errors import SkimError

Scores = dict[str, float]  # by split: "train", "dev", "test"


@dataclass(frozen=True)
class Probing:
    """Rows that probes learn from, choices are made by, and results are reported on.

    Attributes:
        train: in the order of the published recipe, which does not shuffle.
        dev: choices are made by it.
        test: reported and nothing else; ``None``: there is none.
        metric: one of ``METRICS``; larger is better.
        recipe: of all probes.
    """

    train: Rows
    dev: Rows
    test: Rows | None = None
    metric: str = "accuracy"
    recipe: Recipe = RECIPES["default"]

    def __post_init__(self) -> None:
        widths = {name: rows.neurons for name, rows in self.splits.items()}
        if len(set(widths.values())) > 1:
            raise SkimError(f"Splits have different numbers of neurons: {widths}. They must be of the same layers.")
        metric(self.metric, self.target.outputs)  # refuses one that is not for such labels, before anything is trained

    @property
    def splits(self) -> dict[str, Rows]:
        """Rows by the name of their split."""
        splits = {"train": self.train, "dev": self.dev}
        return splits if self.test is None else {**splits, "test": self.test}

    def changed(self, change: Callable[[str, Rows], Rows]) -> Probing:
        """Copy it with other rows, made from the name of each split and its rows."""
        rows = {name: change(name, rows) for name, rows in self.splits.items()}
        return replace(self, train=rows["train"], dev=rows["dev"], test=rows.get("test"))

    @cached_property
    def target(self) -> Target:
        """Classes of all splits together, or a number."""
        return target_of(*(rows.labels for rows in self.splits.values()))

    def bank(self, probes: Sequence[Probe], neurons: Sequence[int] | np.ndarray | None = None) -> Bank:
        """Train probes on the columns ``neurons``, global ids; all without them."""
        return train_probes(self.train, probes, self.target, self.recipe, neurons)

    def scores(self, bank: Bank, splits: Sequence[str] = ("train", "dev", "test")) -> dict[str, Scores]:
        """Score a bank: by the name of the probe, then of the split, those that there are."""
        found = {split: bank.scores(self.splits[split], self.metric) for split in splits if split in self.splits}
        return {probe.name: {split: found[split][probe.name] for split in found} for probe in bank.probes}
