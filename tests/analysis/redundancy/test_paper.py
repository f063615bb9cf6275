"""``preset=paper``: the published pipeline, written out as plain loops, and the same choices by the parts of skim."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from skim.analysis.redundancy import SHARES, ElasticNet, LayerScores, Probing, ccfs, rank
from tests.analysis.redundancy.planted import LAYERS, WIDTH, planted

L1, EPOCHS, RATE, SEED = 1e-2, 4, 2e-2, 5
TOTAL = LAYERS * WIDTH


def starts(sizes: dict[str, int]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    draw = np.random.default_rng(1)
    return {name: (draw.normal(size=(4, size)) / 9, draw.normal(size=4) / 9) for name, size in sizes.items()}


def published_probe(x: np.ndarray, y: np.ndarray, start: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, ...]:
    """Adam on mean cross entropy + l1 sum|W| + l2 ||W||_F, rows in their order, nothing standardised."""
    weight, bias = (torch.tensor(part, dtype=torch.float32, requires_grad=True) for part in start)
    adam, x, y = torch.optim.Adam([weight, bias], lr=RATE), torch.from_numpy(x), torch.from_numpy(y)
    for _ in range(EPOCHS):
        for begin in range(0, len(x), 128):
            adam.zero_grad()
            lost = F.cross_entropy(x[begin : begin + 128] @ weight.T + bias, y[begin : begin + 128])
            (lost + L1 * weight.abs().sum() + L1 * weight.norm()).backward()
            adam.step()
    return weight.detach().numpy(), bias.detach().numpy()


def published_order(weights: np.ndarray) -> list[int]:
    """The search over 1,000 shares of mass; within a step in our order, the published being a hash's."""
    order: list[int] = []
    ours = rank(weights).order.tolist()
    mass = np.abs(weights)
    for step in range(1001):
        new = set()
        for one in mass:
            ranks = np.argsort(-one, kind="stable")
            # the smallest prefix that holds the share
            count = int((np.cumsum(one[ranks]) < one.sum() * np.float32(step / 1000)).sum()) + 1
            new |= set(ranks[:count].tolist())
        order += [neuron for neuron in ours if neuron in new and neuron not in order]
    return order


@pytest.mark.parametrize(("threshold", "delta"), list(product([-1, 0.3], [2, 60])))
def test_ccfs_is_the_published_one(threshold: float, delta: float) -> None:
    probing = planted(ElasticNet())
    x, y = probing.train.values, probing.train.labels
    top = 2
    kept = list(range((top + 1) * WIDTH))
    if threshold != -1:
        with np.errstate(invalid="ignore"):
            corr = np.nan_to_num(np.corrcoef(x[:, kept].astype(np.float64).T))
        corr = (corr + corr.T) / 2
        np.fill_diagonal(corr, 1)
        tree = linkage(squareform(1 - np.abs(corr), checks=False), method="average")
        labels = fcluster(tree, t=threshold, criterion="distance")
        draw = np.random.RandomState(SEED)
        kept = [int(draw.choice(np.flatnonzero(labels == one))) for one in range(1, labels.max() + 1)]
    sizes = {str(size): size for size in {int(share * TOTAL) for share in SHARES} if 0 < size <= len(kept)}
    initial = starts({"base": len(kept), **sizes, str(len(kept)): len(kept)})

    def dev(chosen: list[int], start: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, float]:
        weight, bias = published_probe(np.ascontiguousarray(x[:, chosen]), y, start)
        found = (probing.dev.values[:, chosen] @ weight.T + bias).argmax(1)
        return weight, float((found == probing.dev.labels).mean())

    weights, base = dev(kept, initial["base"])
    order = [kept[place] for place in published_order(weights)]
    wanted = kept
    for share in SHARES:
        size = min(int(share * TOTAL), len(order))
        if size and dev(order[:size], initial[str(size)])[1] > base * (1 - delta / 100):
            wanted = order[:size]
            break

    recipe = ElasticNet(L1, L1, EPOCHS, learning_rate=RATE, initial=initial)
    ours = Probing(**probing.splits, recipe=recipe)
    zero = {"train": 0.0, "dev": 0.0, "test": 0.0}
    scores = LayerScores({**zero, "dev": 0.8}, [zero] * LAYERS, [{**zero, "dev": 0.4 * k} for k in range(LAYERS)])
    options = {"representative": "random", "seed": SEED, "precision": "float64"}
    (found,) = ccfs(ours, scores, WIDTH, [(1, delta)], [threshold], **options)
    assert (found.top, found.candidates) == (top, len(kept))
    assert found.found.base["dev"] == pytest.approx(base, abs=1e-9)
    assert found.found.neurons.tolist() == wanted
    assert 0 < len(wanted) < len(kept)
    tried = [size for size, _ in found.found.tried]  # shares are of all neurons of the network
    assert tried == sorted({min(int(share * TOTAL), len(order)) for share in SHARES} - {0})[: len(tried)]
