"""Choice of rows: those held out from training, by chance or by class, and those whose length is within bounds."""

from __future__ import annotations

import numpy as np

from skim.errors import SkimError


def held_out(rows: int, share: float, rng: np.random.Generator, classes: np.ndarray | None = None) -> np.ndarray:
    """Draw the numbers of the rows that are held out.

    With classes, each gives its share of rows, and at least one if it has two, but never all: a class of a single row
    is trained on. So many small classes give more than the share together.

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


def fitting(lengths: np.ndarray, low: int | None, high: int | None, where: str) -> np.ndarray:
    """Mask the rows whose number of tokens is within the bounds, (rows,) bool.

    Args:
        lengths: tokens of each row, (rows,).
        low: fewest tokens; ``None`` for no bound.
        high: most tokens; ``None`` for no bound.
        where: file or split, for the error.

    Raises:
        SkimError: no row is.
    """
    fits = (lengths >= (low or 0)) & (lengths <= (high or np.inf))
    if not fits.any():
        raise SkimError(
            f"{where}: {bounds(low, high)} leaves no rows; its texts have {lengths.min()} to {lengths.max()} tokens.\n"
            f"Change {' or '.join(_set(low, high))}, or set it to null."
        )
    return fits


def bounds(low: int | None, high: int | None) -> str:
    """Name the bounds that are set as the user writes them: ``task.length_min=3, task.length_max=9``."""
    return ", ".join(f"{key}={bound}" for key, bound in _set(low, high).items())


def _set(low: int | None, high: int | None) -> dict[str, int]:
    both = {"task.length_min": low, "task.length_max": high}
    return {key: bound for key, bound in both.items() if bound is not None}
