"""Correlation clustering: groups of neurons that say the same, at any number of thresholds from one tree.

Two neurons are as far apart as ``1 - |r|``, r their Pearson correlation over rows (``1 - r`` if signed). Average
linkage makes a tree of all of them, and a threshold cuts it: one neuron of each cluster is kept, the others are
redundant (Dalvi et al., EMNLP 2020, section 5.2). A constant neuron correlates with none, and stays alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from skim.analysis.redundancy.moments import moments, row_blocks
from skim.errors import SkimError, unknown

THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CHOICES = ("medoid", "random")
TIE = 1e-6  # mean distances that differ by less are equal: the product of a correlation is in float32


@dataclass(frozen=True)
class Clustering:
    """A tree of neurons, which a threshold cuts into clusters.

    Attributes:
        neurons: (n,) indices of the neurons in the network.
        constant: (n,) bool; neurons that tell no two rows apart.
        distances: (n (n - 1) / 2,) float64, the upper triangle row by row, as SciPy has it.
        tree: (n - 1, 4) SciPy's linkage matrix.
    """

    neurons: np.ndarray
    constant: np.ndarray
    distances: np.ndarray
    tree: np.ndarray

    def labels(self, threshold: float) -> np.ndarray:
        """Number the cluster of every neuron, from 1, where the tree is cut; below 0 each is its own."""
        from scipy.cluster.hierarchy import fcluster

        if len(self.neurons) == 1:
            return np.ones(1, dtype=np.int32)
        return fcluster(self.tree, t=threshold, criterion="distance")

    def count(self, threshold: float) -> int:
        """Count the clusters, which is the number of neurons that are kept."""
        return int(self.labels(threshold).max())

    def redundant(self, threshold: float) -> float:
        """Share of the neurons that can go because another of their cluster stays."""
        return 1 - self.count(threshold) / len(self.neurons)

    def representatives(
        self, threshold: float, choice: Literal["medoid", "random"] = "medoid", seed: int = 0
    ) -> np.ndarray:
        """Choose one neuron of each cluster, in the order of the labels.

        Args:
            threshold: of distance, where the tree is cut.
            choice: ``medoid`` takes the neuron nearest to all others of its cluster, the first of those that are
                equally near; ``random`` draws one, with the draws of the published code under that seed.
            seed: of ``random``.

        Returns:
            (clusters,) indices of neurons in the network.
        """
        if choice not in CHOICES:
            raise unknown("choice of a representative", choice, CHOICES)
        draw = np.random.RandomState(seed)
        clusters = members(self.labels(threshold))
        chosen = [draw.choice(cluster) if choice == "random" else self._medoid(cluster) for cluster in clusters]
        return self.neurons[chosen]

    def windows(self, threshold: float, width: int) -> np.ndarray:
        """Measure over how many layers each cluster stretches: last layer - first layer + 1.

        Args:
            threshold: of distance, where the tree is cut.
            width: neurons of a layer.

        Returns:
            (clusters,) in the order of the labels.
        """
        layers = self.neurons // width
        return np.array([np.ptp(layers[cluster]) + 1 for cluster in members(self.labels(threshold))])

    def _medoid(self, cluster: np.ndarray) -> int:
        n, total = len(self.neurons), np.zeros(len(cluster))
        for place, i in enumerate(cluster[:-1].tolist()):
            start = i * n - i * (i + 1) // 2 - i - 1  # of row i in the triangle, less the column of its first entry
            row = self.distances[start + cluster[place + 1 :]]
            total[place] += row.sum()
            total[place + 1 :] += row
        return cluster[np.argmax(total <= total.min() + TIE * len(cluster))]


def cluster(
    values: np.ndarray,
    neurons: Sequence[int] | np.ndarray | None = None,
    signed: bool = False,
    variance_floor: float = 0.0,
    precision: Literal["float32", "float64"] = "float32",
) -> Clustering:
    """Build the tree of neurons by average linkage.

    Memory is 16 bytes per pair of neurons, whatever the number of rows.

    Args:
        values: (rows, all neurons) activations, an array or a memory map; a neuron's index is ``layer * width +
            dimension``.
        neurons: indices of those to cluster, in rising order; all by default.
        signed: whether neurons that are opposite to each other are far apart.
        variance_floor: variance up to which a neuron counts as constant.
        precision: of the product of standardized activations; statistics are in float64 always.

    Raises:
        SkimError: fewer than two rows, values that are NaN or infinite, or no neurons.
    """
    from scipy.cluster.hierarchy import linkage

    indices = np.arange(values.shape[1]) if neurons is None else np.asarray(neurons, dtype=np.int64)
    if not len(indices):
        raise SkimError("There are no neurons to cluster: the list of neurons is empty.")
    square, constant = _correlation(values, None if neurons is None else indices, variance_floor, precision)
    distances = _distances(square, signed)
    del square  # before the linkage takes as much
    tree = linkage(distances, method="average") if len(indices) > 1 else np.empty((0, 4))
    return Clustering(indices, constant, distances, tree)


def cluster_layers(values: np.ndarray, width: int, **options: bool | float | str) -> list[Clustering]:
    """Cluster the neurons of each layer by themselves; options as in :func:`cluster`."""
    layers = range(0, values.shape[1], width)
    return [cluster(values, np.arange(start, start + width), **options) for start in layers]  # type: ignore[arg-type]


def correlation(
    values: np.ndarray,
    neurons: np.ndarray | None = None,
    variance_floor: float = 0.0,
    precision: Literal["float32", "float64"] = "float32",
) -> np.ndarray:
    """Correlate every neuron with every other; arguments as in :func:`cluster`.

    Returns:
        (n, n), symmetric, with a diagonal of 1; a constant neuron's correlations with others are 0.
    """
    square, _ = _correlation(values, neurons, variance_floor, precision)
    upper = np.triu(square, 1)
    return np.eye(len(square), dtype=square.dtype) + upper + upper.T


def redundant_by_layer(kept: np.ndarray, width: int, layers: int) -> np.ndarray:
    """Share of each layer's neurons that are not among those kept (indices in the network)."""
    return 1 - np.bincount(np.asarray(kept) // width, minlength=layers) / width


def members(labels: np.ndarray) -> list[np.ndarray]:
    """List the positions of each label's neurons, in rising order."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.cumsum(np.bincount(labels)[1:])[:-1])


def _correlation(
    values: np.ndarray, neurons: np.ndarray | None, variance_floor: float, precision: str
) -> tuple[np.ndarray, np.ndarray]:
    """Correlations above the diagonal (what stands elsewhere is undefined), and which neurons are constant."""
    from scipy.linalg import get_blas_funcs

    found = moments(values, neurons, variance_floor)
    n = len(found.mean)
    square = np.zeros((n, n), dtype=precision, order="F")
    update = get_blas_funcs("syrk", dtype=square.dtype)  # half the work of a product, added up in place
    for block in row_blocks(values, neurons):
        rows = found.standardized(block).astype(precision)
        square = update(1 / found.rows, rows.T, beta=1, c=square, lower=1, overwrite_c=1)
    return np.clip(square.T, -1, 1, out=square.T), found.constant


def _distances(square: np.ndarray, signed: bool) -> np.ndarray:
    n = len(square)
    distances = np.empty(n * (n - 1) // 2)
    start = 0
    for i in range(n - 1):
        row = square[i, i + 1 :]
        distances[start : start + len(row)] = row if signed else np.abs(row)
        start += len(row)
    return np.subtract(1, distances, out=distances)
