"""Layers and neurons that suffice for a task: LayerSelector and minimal sets (Dalvi et al., EMNLP 2020, section 6).

A choice suffices at a delta of d percent if ``dev(choice) > dev(everything) * (1 - d / 100)``. The first such choice is
taken: the fewest layers, then the fewest neurons of those, best first. Scores decide and nothing else, so a choice can
be made again from scores that were stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from skim.analysis.redundancy.clustering import cluster
from skim.analysis.redundancy.probes import Probe
from skim.analysis.redundancy.probing import Probing, Scores
from skim.analysis.redundancy.ranking import rank
from skim.errors import SkimError

# of all neurons of the network, tried one after another
SHARES = (
    *(0.001, 0.002, 0.003, 0.004, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08, 0.09, 0.1, 0.15, 0.2, 0.25),
    *(0.3, 0.35, 0.4, 0.45, 0.5, 0.6, 0.7, 0.8, 0.9),
)
# those of the published search for the fewest neurons of all layers
FINE = (*(step / 1000 for step in range(1, 101)), *SHARES[15:])
# sizes up to each share of all neurons are trained together, so that a search that ends early stays cheap
WAVES = (0.01, 0.1, 0.25, 0.5, 1.0)


def first_above(scores: Sequence[float], base: float, delta: float) -> int | None:
    """Find the first score strictly above ``base * (1 - delta / 100)``; ``None`` if there is none.

    Args:
        scores: on dev, the cheapest choice first.
        base: score on dev of what the choices are to replace.
        delta: percent of it that may be lost.
    """
    if not 0 <= delta < math.inf:
        raise SkimError(f"A performance delta is a percentage from 0 on, not {delta}.")
    if not math.isfinite(base) or not all(math.isfinite(score) for score in scores):
        raise SkimError("Scores of probes must be finite numbers to choose by; one is NaN or infinite.")
    bar = base * (1 - delta / 100)
    return next((place for place, score in enumerate(scores) if score > bar), None)


def select_layer(scores: Sequence[float], oracle: float, delta: float) -> int:
    """Select the lowest layer whose score suffices, or the top one if none does (LayerSelector).

    Args:
        scores: on dev, one for each layer: of layers 0 to k together, or of layer k alone.
        oracle: score on dev of all layers together.
        delta: percent of it that may be lost.
    """
    if not len(scores):
        raise SkimError("There are no layers to select from.")
    found = first_above(scores, oracle, delta)
    return len(scores) - 1 if found is None else found


def select_size(sizes: Sequence[int], scores: Sequence[float], base: float, delta: float) -> int | None:
    """Select the first size whose score suffices, never 0; ``None`` if there is none.

    Args:
        sizes: numbers of neurons.
        scores: on dev, one for each size.
        base: score on dev of all neurons that were ranked.
        delta: percent of it that may be lost.
    """
    tried = [(size, score) for size, score in zip(sizes, scores, strict=True) if size > 0]
    found = first_above([score for _, score in tried], base, delta)
    return None if found is None else tried[found][0]


def sizes_of(total: int, ranked: int, shares: Sequence[float] = SHARES) -> list[int]:
    """List the sizes to try, rising: ``int(share * total)``, none of them 0, none above the number of ranked neurons.

    Args:
        total: neurons of the whole network, which the shares are of.
        ranked: neurons that there are to choose from.
        shares: rising.
    """
    return sorted({min(int(share * total), ranked) for share in shares} - {0})


@dataclass(frozen=True)
class LayerScores:
    """Scores of probes by layer.

    Attributes:
        oracle: of all layers together.
        single: of each layer alone.
        up_to: of layers 0 to k together, k = 0 first.
    """

    oracle: Scores
    single: list[Scores]
    up_to: list[Scores]

    def select(self, delta: float, mode: Literal["up_to", "single"] = "up_to") -> int:
        """Select the place of the lowest layer that suffices, the top one if none does."""
        return select_layer([scores["dev"] for scores in getattr(self, mode)], self.oracle["dev"], delta)


def layer_scores(probing: Probing, width: int) -> LayerScores:
    """Train and score the oracle, every layer alone, and layers 0 to k, in one bank.

    Args:
        probing: rows, recipe and metric.
        width: neurons of a layer.
    """
    single = _single(probing, width)
    oracle = Probe("oracle", 0, probing.train.neurons)
    # layer 0 alone is its own sum; the recipe draws weights for the top sum as for any other
    up_to = [single[0], *(Probe(f"layers 0 to {k}", 0, (k + 1) * width) for k in range(1, len(single)))]
    scores = probing.scores(probing.bank([oracle, *single, *up_to[1:]]))
    return LayerScores(
        scores[oracle.name], [scores[probe.name] for probe in single], [scores[probe.name] for probe in up_to]
    )


def single_scores(probing: Probing, width: int) -> list[Scores]:
    """Train and score every layer alone; arguments as in :func:`layer_scores`."""
    single = _single(probing, width)
    scores = probing.scores(probing.bank(single))
    return [scores[probe.name] for probe in single]


def _single(probing: Probing, width: int) -> list[Probe]:
    total = probing.train.neurons
    if width < 1 or total % width:
        raise SkimError(f"{total} neurons are not whole layers of {width}.")
    return [Probe(f"layer {k}", k * width, (k + 1) * width) for k in range(total // width)]


@dataclass(frozen=True)
class NeuronSet:
    """Fewest neurons, of some, that suffice at a delta.

    Attributes:
        delta: percent of the score of all of them that may be lost.
        neurons: global ids, the most important first.
        scores: of a probe on these neurons.
        base: of a probe on all of them.
        tried: size and score on dev of each set that was trained, rising.
    """

    delta: float
    neurons: np.ndarray
    scores: Scores
    base: Scores
    tried: list[tuple[int, float]]


def smallest_sets(
    probing: Probing, neurons: Sequence[int] | np.ndarray, deltas: Sequence[float], shares: Sequence[float] = SHARES
) -> list[NeuronSet]:
    """Rank neurons by the weights of a probe, and find the first sets of the best that suffice, one for each delta.

    Where no set does, it is all neurons that were given. Neurons whose weights are 0 are in no other set.

    Args:
        probing: rows, recipe and metric.
        neurons: global ids of those to choose from: of the layers that were selected, one of each cluster.
        deltas: percent.
        shares: of all neurons of the network, rising.
    """
    neurons = np.asarray(neurons, dtype=np.int64)
    bank = probing.bank([Probe("base", 0, len(neurons))], neurons)
    base = probing.scores(bank, ("dev", "test"))["base"]
    ranking = rank(bank.weights("base"))
    ranked = neurons[ranking.order[: ranking.cutoffs[-1]]]
    sizes = sizes_of(probing.train.neurons, len(ranked), shares)
    scores: dict[int, Scores] = {}
    for wave in WAVES:
        some = [size for size in sizes if size <= wave * probing.train.neurons and size not in scores]
        if some:
            probes = [Probe(str(size), 0, size) for size in some]
            found = probing.scores(probing.bank(probes, ranked[: some[-1]]), ("dev", "test"))
            scores |= {size: found[str(size)] for size in some}
        dev = [scores[size]["dev"] for size in scores]
        chosen = [select_size(list(scores), dev, base["dev"], delta) for delta in deltas]
        if None not in chosen:
            break
    tried = list(zip(scores, dev, strict=True))
    return [
        NeuronSet(delta, neurons, base, base, tried)
        if size is None
        else NeuronSet(delta, ranked[:size], scores[size], base, tried)
        for delta, size in zip(deltas, chosen, strict=True)
    ]


@dataclass(frozen=True)
class Choice:
    """Layers, and the fewest of their neurons, that suffice.

    Attributes:
        layer_delta: percent that fewer layers may lose of all layers' score.
        top: place of the highest layer that is read.
        threshold: of the clusters that one neuron each was kept of; ``None``: all were kept.
        candidates: neurons that were kept, from which the set was chosen.
        found: the set, with its own delta.
    """

    layer_delta: float
    top: int
    threshold: float | None
    candidates: int
    found: NeuronSet


def ccfs(
    probing: Probing,
    layers: LayerScores,
    width: int,
    deltas: Sequence[tuple[float, float]],
    thresholds: Sequence[float | None] = (None, 0.3),
    mode: Literal["up_to", "single"] = "up_to",
    representative: Literal["medoid", "random"] = "medoid",
    seed: int = 0,
    precision: Literal["float32", "float64"] = "float32",
) -> list[Choice]:
    """Select layers, keep one neuron of each cluster, and of those the fewest that suffice (section 7).

    Each threshold clusters all neurons of the selected layers; layers that two deltas share are clustered once.
    As published: ``representative="random"``, ``precision="float64"``, and the recipe of the probes ``"paper"``.

    Args:
        probing: rows, recipe and metric.
        layers: scores of :func:`layer_scores`.
        width: neurons of a layer.
        deltas: percent for layers and percent for neurons, in pairs.
        thresholds: of clusters; ``None``, or one below 0, keeps all neurons.
        mode: ``up_to`` reads layers 0 to k, as published; ``single`` layer k alone, as the head of a cut model does.
        representative: neuron of a cluster that is kept; ``random`` is the published way.
        seed: of ``random``.
        precision: of the correlations that clusters are made by.

    Returns:
        A choice for each pair and threshold, thresholds of a pair side by side.
    """
    tops = [layers.select(delta, mode) for delta, _ in deltas]
    clustered = [threshold for threshold in thresholds if threshold is not None and threshold >= 0]
    found: dict[tuple[int, float | None, float], NeuronSet] = {}
    counts: dict[tuple[int, float | None], int] = {}
    for top in sorted(set(tops)):
        neurons = np.arange(0 if mode == "up_to" else top * width, (top + 1) * width)
        asked = [neuron for (_, neuron), own in zip(deltas, tops, strict=True) if own == top]
        tree = cluster(probing.train.values, neurons, precision=precision) if clustered else None
        for threshold in thresholds:
            kept = neurons
            if tree is not None and threshold in clustered:
                kept = tree.representatives(threshold, representative, seed)
            counts[top, threshold] = len(kept)
            for one in smallest_sets(probing, kept, asked):
                found[top, threshold, one.delta] = one
    return [
        Choice(delta, top, threshold, counts[top, threshold], found[top, threshold, neuron])
        for (delta, neuron), top in zip(deltas, tops, strict=True)
        for threshold in thresholds
    ]
