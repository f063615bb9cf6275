"""Rows drawn so that an epoch has inputs as long as those of another part.

Training rows may be unlike what is evaluated: SST-2 trains on phrases of 13 tokens and evaluates sentences of 25. What
a method learns to retire, and what it spends, it then learns on the wrong lengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def matched(lengths: np.ndarray, like: Sequence[int] | np.ndarray) -> np.ndarray:
    """Lengths of as many rows as there are, distributed as others: of each quantile, that of the nearest row.

    They depend on nothing drawn, so every epoch has the same.

    Args:
        lengths: tokens of each row, (rows,).
        like: tokens of other rows, at least one.

    Returns:
        (rows,), rising.
    """
    there, wanted = np.unique(lengths), np.sort(np.asarray(like))
    wanted = wanted[np.arange(len(lengths)) * len(wanted) // len(lengths)]
    above = np.searchsorted(there, wanted).clip(max=len(there) - 1)
    below = (above - 1).clip(min=0)
    return np.where(there[above] - wanted < wanted - there[below], there[above], there[below])


def drawn(lengths: np.ndarray, wanted: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw a row of each wanted length; a row comes again only when all others of its length have come as often.

    Args:
        lengths: tokens of each row, (rows,).
        wanted: lengths that some row has, (places,).
        rng: draws them.

    Returns:
        Numbers of rows, (places,).
    """
    rows = np.empty(len(wanted), dtype=np.int64)
    for length in np.unique(wanted):
        places, those = np.flatnonzero(wanted == length), np.flatnonzero(lengths == length)
        rounds = [rng.permutation(those) for _ in range(-(-len(places) // len(those)))]
        rows[places] = np.concatenate(rounds)[: len(places)]
    return rows
