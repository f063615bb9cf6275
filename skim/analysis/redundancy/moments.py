"""Mean, spread and constancy of every neuron, in float64 and in blocks of rows.

A single pass in float32 is not enough: the last layers of real models have dimensions whose values are of the order of
1e-31, so that their variance underflows, and others whose offset is thousands of times their spread. Both change which
neurons are found to be alike. So a first pass takes mean and range, and a second one the squares about that mean.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from skim.errors import SkimError

ROWS = 512  # rows of a block: 40 MB in float64 at 9,984 neurons


@dataclass(frozen=True)
class Moments:
    """Statistics of neurons over the rows of an array.

    Attributes:
        rows: number of rows.
        mean: (neurons,) float64.
        std: (neurons,) float64, of the population: the divisor is ``rows``.
        constant: (neurons,) bool; neurons that tell no two rows apart.
    """

    rows: int
    mean: np.ndarray
    std: np.ndarray
    constant: np.ndarray

    def standardized(self, block: np.ndarray) -> np.ndarray:
        """Shift and scale rows in float64 to mean 0 and standard deviation 1; constant neurons become 0."""
        scale = np.divide(1.0, self.std, where=~self.constant, out=np.zeros_like(self.std))
        shifted = block - self.mean
        shifted *= scale
        return shifted


def moments(values: np.ndarray, neurons: np.ndarray | None = None, variance_floor: float = 0.0) -> Moments:
    """Measure mean and standard deviation in two passes.

    Args:
        values: (rows, all neurons) of any float type; an array or a memory map.
        neurons: indices of the columns to look at; all of them by default.
        variance_floor: neurons whose variance is at most this are constant, too. At 0 only those are whose largest
            value equals their smallest, as in the published code, which keeps dimensions that live at 1e-31.

    Raises:
        SkimError: fewer than two rows, or values that are NaN or infinite.
    """
    if len(values) < 2:
        raise SkimError(f"Statistics of neurons need at least 2 rows of activations; there are {len(values)}.")
    total: np.ndarray = 0.0  # type: ignore[assignment]
    low, high = np.inf, -np.inf
    for block in row_blocks(values, neurons):
        total = total + block.sum(0)
        low, high = np.minimum(low, block.min(0)), np.maximum(high, block.max(0))
    _refuse_broken(total, neurons)
    mean = total / len(values)
    squares = np.zeros_like(mean)
    for block in row_blocks(values, neurons):
        block -= mean
        squares += np.einsum("ij,ij->j", block, block)
    variance = squares / len(values)
    return Moments(len(values), mean, np.sqrt(variance), (low == high) | (variance <= variance_floor))


def row_blocks(values: np.ndarray, neurons: np.ndarray | None = None, rows: int = ROWS) -> Iterator[np.ndarray]:
    """Read float64 copies of successive rows; pages of a memory map are given back after each, and count no more."""
    for start in range(0, len(values), rows):
        block = values[start : start + rows]
        yield np.array(block if neurons is None else block[:, neurons], dtype=np.float64)
        if isinstance(values, np.memmap) and values.mode == "r" and hasattr(mmap, "MADV_DONTNEED"):
            values._mmap.madvise(mmap.MADV_DONTNEED)  # else a file of 20 GB would seem to be 20 GB of memory


def _refuse_broken(total: np.ndarray, neurons: np.ndarray | None) -> None:
    broken = np.flatnonzero(~np.isfinite(total))
    if broken.size:
        first = broken[0] if neurons is None else neurons[broken[0]]
        raise SkimError(
            f"Activations of {broken.size} of {total.size} neurons are NaN or infinite; the first is neuron {first}.\n"
            "Look at the checkpoint's weights, or extract in float32 if these were stored in float16."
        )
