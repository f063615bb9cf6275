"""Choice of the training rows to evaluate on instead: by chance, or so that each class keeps its share."""

from __future__ import annotations

import numpy as np


def held_out(rows: int, share: float, rng: np.random.Generator, classes: np.ndarray | None = None) -> np.ndarray:
    """Numbers of the rows that are held out.

    With classes, each gives its share of rows, and one at least if it has two, but never all of them: what has a single
    row is trained on. So many small classes give more than the share together.

    Args:
        rows: how many there are.
        share: of them, between 0 and 1.
        rng: decides which.
        classes: the class of each row, (rows,), from 0; ``None`` for rows of no class.
    """
    order = rng.permutation(rows)
    count = round(share * rows)
    if classes is None:
        return order[:count]
    sizes = np.bincount(classes)
    quota = share * sizes
    most = np.maximum(sizes - 1, 0)
    given = np.clip(np.floor(quota).astype(np.int64), np.minimum(most, 1), most)
    rest = np.argsort(given - quota, kind="stable")  # the largest remainders first
    given[rest[: max(count - int(given.sum()), 0)]] += 1
    given = np.minimum(given, most)
    grouped = order[np.argsort(classes[order], kind="stable")]
    place = np.arange(rows) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return grouped[place < np.repeat(given, sizes)]
