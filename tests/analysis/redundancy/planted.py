"""Made-up states whose redundancy is known: which neurons tell the label, which repeat others, which say nothing."""

from __future__ import annotations

import numpy as np

from skim.analysis.redundancy.probes import Recipe
from skim.analysis.redundancy.probing import Probing
from skim.analysis.redundancy.rows import Rows

WIDTH, LAYERS = 8, 6
FIRST = 1 * WIDTH + 3  # half of the label is here, and again, to the sign and an offset, in the next neuron
SECOND = 2 * WIDTH + 5  # the other half
TOGETHER = 4  # the layer that has both halves, in dimensions 0 and 1
SIZES = {"train": 600, "dev": 300, "test": 300}


def planted(recipe: Recipe, regression: bool = False, seed: int = 0) -> Probing:
    """Rows of 6 layers of 8 neurons; layer 0 is constant, as that of [CLS] is, and layers 3 and 5 are noise.

    The class of four is a pair of signs; a number of a regression is their sum, ten times the first and once the other.
    """
    draw = np.random.default_rng(seed)
    splits = {}
    for name, rows in SIZES.items():
        halves = draw.integers(2, size=(rows, 2)) * 2.0 - 1
        values = draw.normal(size=(rows, LAYERS * WIDTH))
        values[:, :WIDTH] = 0.75
        values[:, FIRST] = halves[:, 0] + draw.normal(size=rows) / 20
        values[:, FIRST + 1] = 1 - 2 * values[:, FIRST]
        values[:, SECOND] = halves[:, 1] + draw.normal(size=rows) / 20
        values[:, SECOND + 1] = 3 * values[:, SECOND]
        values[:, TOGETHER * WIDTH : TOGETHER * WIDTH + 2] = halves + draw.normal(size=halves.shape) / 20
        labels = halves @ [10, 1] if regression else (halves > 0) @ [2, 1]
        splits[name] = Rows(values.astype(np.float32), labels)
    return Probing(**splits, metric="pearson" if regression else "accuracy", recipe=recipe)
