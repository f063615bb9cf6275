"""Similarity of layers by centered kernel alignment (CKA; Kornblith et al., ICML 2019), between all of them at once.

``CKA(X, Y) = HSIC(X, Y) / sqrt(HSIC(X, X) HSIC(Y, Y))``, in float64. For a linear kernel ``HSIC(X, Y)`` is the squared
Frobenius norm of ``X'Y`` with columns centered; its bias is large when there are few rows, and *debiased* takes it off.
*Minibatch* averages the unbiased estimate of HSIC (Song et al., 2012) over batches (Nguyen et al., ICLR 2021), which is
what any number of rows can afford. A layer whose states are the same for all rows, such as the embedding of [CLS], is
similar to nothing: it is named, and its entries are 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from skim.analysis.redundancy.moments import Moments, moments, row_blocks
from skim.errors import SkimError

RBF_ROWS = 5000  # whose kernels take 2.6 GB with 13 layers


@dataclass(frozen=True)
class Similarity:
    """CKA between layers.

    Attributes:
        matrix: (layers, layers) float64, symmetric, 1 on the diagonal; 0 where a layer is degenerate. Estimates without
            bias may lie a little outside [0, 1].
        degenerate: places of layers that are constant, or of which so few rows are seen that no estimate is above 0.
    """

    matrix: np.ndarray
    degenerate: list[int]

    @classmethod
    def of(cls, hsic: np.ndarray, constant: np.ndarray) -> Similarity:
        """Normalize HSIC (layers, layers), with the layers named that are constant."""
        scale = np.diag(hsic)
        degenerate = constant | ~(scale > 0)
        norm = np.sqrt(np.where(degenerate, 1, scale))
        matrix = hsic / norm[:, None] / norm
        matrix[degenerate] = 0
        matrix[:, degenerate] = 0
        return cls((matrix + matrix.T) / 2, np.flatnonzero(degenerate).tolist())


def linear_cka(values: np.ndarray, layers: int, debiased: bool = False) -> Similarity:
    """Compute linear CKA over all rows, a pass over them per layer: any number of rows in the memory of one layer's.

    Args:
        values: (rows, layers * width) states, layer by layer; may be a memory map.
        layers: number of layers.
        debiased: takes off what rows of finite number add: ``s - n / (n - 2) sum_i a_i b_i + sum a sum b / ((n - 1)
            (n - 2))``, with a and b the squared norms of centered rows (Kornblith's notebook; Song et al., 2012).

    Raises:
        SkimError: fewer than 2 rows (4 if debiased), or values that are NaN or infinite.
    """
    found, width = _moments(values, layers, least=4 if debiased else 2)
    hsic = np.zeros((layers, layers))
    norms, pairs = np.zeros(layers), np.zeros((layers, layers))
    for first in range(layers):
        start = first * width
        products = np.zeros((width, values.shape[1] - start))
        for block in row_blocks(values):
            block -= found.mean
            products += block[:, start : start + width].T @ block[:, start:]
            if debiased and first == 0:
                squares = np.square(block).reshape(len(block), layers, width).sum(2)
                norms += squares.sum(0)
                pairs += squares.T @ squares
        hsic[first, first:] = np.square(products).reshape(width, -1, width).sum((0, 2))
    hsic = np.triu(hsic) + np.triu(hsic, 1).T
    if debiased:
        n = len(values)
        hsic += np.outer(norms, norms) / ((n - 1) * (n - 2)) - n / (n - 2) * pairs
    return Similarity.of(hsic, _constant(found, layers))


def minibatch_cka(values: np.ndarray, layers: int, batch_size: int = 256, seed: int | None = None) -> Similarity:
    """Compute linear CKA from the unbiased HSIC of batches, averaged; one batch with all rows is debiased CKA.

    Args:
        values: (rows, layers * width) states, layer by layer; may be a memory map.
        layers: number of layers.
        batch_size: most rows of a batch; rows are spread evenly, so that no batch is a short rest.
        seed: shuffles the rows first, which neighbours that belong together (words of a text) ask for; None does not.

    Raises:
        SkimError: batches of fewer than 4 rows, or values that are NaN or infinite.
    """
    found, width = _moments(values, layers, least=4)
    if batch_size < 4:
        raise SkimError(f"Unbiased HSIC needs batches of at least 4 rows; batch_size={batch_size}.")
    total = np.zeros((layers, layers))
    for rows in _batches(len(values), batch_size, seed):
        block = np.asarray(values[rows], dtype=np.float64)
        block = block - block.mean(0)  # alters nothing but the rounding of large offsets
        states = [block[:, start : start + width] for start in range(0, layers * width, width)]
        total += unbiased_hsic(np.stack([part @ part.T for part in states]))
    return Similarity.of(total, _constant(found, layers))


def unbiased_hsic(kernels: np.ndarray) -> np.ndarray:
    """Estimate HSIC between all pairs of kernels without bias (Song et al., 2012, equation 5).

    Args:
        kernels: (layers, n, n) with n of at least 4; their diagonals are set to 0.

    Returns:
        (layers, layers).
    """
    layers, n, _ = kernels.shape
    kernels[:, range(n), range(n)] = 0
    flat, sums = kernels.reshape(layers, -1), kernels.sum(2)
    totals = sums.sum(1)
    return (flat @ flat.T + np.outer(totals, totals) / ((n - 1) * (n - 2)) - 2 / (n - 2) * sums @ sums.T) / (
        n * (n - 3)
    )


def rbf_cka(values: np.ndarray, layers: int, sigma: float = 0.5) -> Similarity:
    """Compute CKA with a Gaussian kernel; its width is ``sigma`` times the median distance of a layer's rows.

    Args:
        values: (rows, layers * width) states, layer by layer; at most 5,000 rows, since the kernels are kept.
        layers: number of layers.
        sigma: share of the median distance.

    Raises:
        SkimError: fewer than 2 rows or more than 5,000, a sigma that is not above 0, or values that are not finite.
    """
    if len(values) > RBF_ROWS:
        raise SkimError(
            f"CKA with a Gaussian kernel keeps (rows x rows) numbers for each layer; {len(values)} rows are too many.\n"
            f"Pass at most {RBF_ROWS} of them, or use linear or minibatch CKA."
        )
    if not sigma > 0:
        raise SkimError(f"The share of the median distance has to be above 0; sigma={sigma}.")
    found, width = _moments(values, layers, least=2)
    constant = _constant(found, layers)
    states = np.asarray(values, dtype=np.float64) - found.mean
    flat = np.zeros((layers, len(values) ** 2))
    for layer in np.flatnonzero(~constant):
        products = (block := states[:, layer * width : (layer + 1) * width]) @ block.T
        squares = np.diag(products)
        distances = squares[:, None] + squares - 2 * products
        median = np.median(distances)
        if median > 0:  # else half of the rows are equal, and there is no width
            kernel = np.exp(-distances / (2 * sigma**2 * median))
            kernel -= kernel.mean(0)
            kernel -= kernel.mean(1, keepdims=True)
            flat[layer] = kernel.ravel()
    return Similarity.of(flat @ flat.T, constant)


def _moments(values: np.ndarray, layers: int, least: int) -> tuple[Moments, int]:
    """Statistics, which refuse broken values, and the width of a layer."""
    if len(values) < least:
        raise SkimError(f"This form of CKA needs at least {least} rows of activations; there are {len(values)}.")
    return moments(values), values.shape[1] // layers


def _constant(found: Moments, layers: int) -> np.ndarray:
    return np.all(found.constant.reshape(layers, -1), axis=1)


def _batches(rows: int, batch_size: int, seed: int | None) -> Iterator[np.ndarray]:
    """Spread rows evenly over the fewest batches of at most that size (or of 4), each in the order of the file."""
    order = np.arange(rows) if seed is None else np.random.default_rng(seed).permutation(rows)
    count = min(-(-rows // batch_size), rows // 4)
    return (np.sort(batch) for batch in np.array_split(order, count))
