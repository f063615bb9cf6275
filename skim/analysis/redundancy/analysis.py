"""Redundancy of a model for a task, from its states to one section of plain JSON, the ``redundancy`` of a results.json.

What the section holds, by key; a *number* is that of a layer (0 the embeddings, k what comes out of encoder layer k),
a neuron an index among those of all extracted layers, and a delta the percentage of a score that may be lost:

``dev_seen``
    true if the model was trained on the rows of dev, so that scores there are too high.
``layers``
    ``numbers``, ``names``, ``width``, ``total`` (layers of the encoder), ``not_run`` (numbers of those that the method
    leaves out), ``computed`` (share of rows that the layer computed); scores of probes ``oracle`` (all layers),
    ``single`` (a layer alone), ``up_to`` (the embeddings to it); and ``selected``, one for each delta: ``up_to``,
    the top layer by LayerSelector; ``single``, the first whose own states suffice, or null; ``layers``, the number of
    encoder layers to keep, so that all of them together suffice and so do the states of the last, which a head reads.
``chance``
    scores on dev and test of the label that is most frequent in training; null for scores other than accuracy.
``constant``
    ``neurons`` that tell no two rows apart, and how many ``by_layer``.
``similarity``
    CKA between layers: ``minibatch`` over all rows; ``linear`` and ``debiased`` over at most 5,000 and ``rbf`` over at
    most 1,000, evenly spread; null where one of the two is among the ``degenerate``.
``clustering``
    for each of ``thresholds`` the clusters of all neurons (``network``: ``clusters``, ``redundant`` as a share, and by
    the layers that they stretch over how many there are, ``widths``) and of each layer's own (``layers``).
``neurons``
    the fewest that suffice beside all of the ``clusters`` they are chosen from, whose score is ``base``, for each delta
    and with or without clusters: ``neurons``, best first, ``by_layer``, scores; ``suffices`` if also beside all layers.
``control``
    by layer the score on a random task of the same words and what the real one has above it; null for texts.
``transfer``
    steps of feature-based transfer at the smallest delta: features, scores, and seconds of the model on
    ``benchmark.samples`` texts and of the probe's training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from skim.analysis.redundancy.clustering import THRESHOLDS, cluster, cluster_layers
from skim.analysis.redundancy.control import control_task, selectivity
from skim.analysis.redundancy.extraction import name_of
from skim.analysis.redundancy.probing import Probing
from skim.analysis.redundancy.recipes import RECIPES
from skim.analysis.redundancy.rows import Rows
from skim.analysis.redundancy.selection import Choice, LayerScores, ccfs, first_above, layer_scores, single_scores
from skim.analysis.redundancy.similarity import Similarity, linear_cka, minibatch_cka, rbf_cka
from skim.analysis.redundancy.states import Splits, States
from skim.analysis.redundancy.transfer import transfer_steps
from skim.report.redundancy import sentence

VERSION = 1
LINEAR_ROWS = 5000  # of linear CKA, whose cost grows with rows x neurons^2
RBF_ROWS = 1000  # of CKA with a Gaussian kernel, which keeps rows^2 numbers a layer
Section = dict[str, Any]


@dataclass(frozen=True)
class Settings:
    """Choices of an analysis.

    Attributes:
        preset: ``paper`` trains the published probe, correlates neurons in float64 and keeps a random one of a cluster;
            ``default`` trains a ridge on standardised neurons, correlates in float32 and keeps the medoid.
        metric: of the probes; ``None``: accuracy, and of a regression the mean of Pearson's and Spearman's correlation.
        deltas: percent.
        thresholds: at which clusters are counted.
        cut: threshold at which one neuron of each cluster is kept before the fewest are looked for; ``None``: none is.
        seed: of whatever is random.
    """

    preset: Literal["default", "paper"] = "default"
    metric: str | None = None
    deltas: Sequence[float] = (1.0, 2.0, 3.0)
    thresholds: Sequence[float] = THRESHOLDS
    cut: float | None = 0.3
    seed: int = 0

    @property
    def precision(self) -> Literal["float32", "float64"]:
        """Numbers in which neurons are correlated."""
        return "float64" if self.preset == "paper" else "float32"


def analyse(
    splits: Splits,
    layers: int,
    settings: Settings = Settings(),
    stage: Callable[[str], None] = lambda name: None,
    clock: Callable[[int], float] | None = None,
    dev_seen: bool = False,
) -> Section:
    """Analyse the states of a model.

    Args:
        splits: of all layers that ran.
        layers: of the encoder, those that did not run included.
        settings: choices.
        stage: is told what is done next.
        clock: runs the model up to the layer of a number, and returns its seconds; ``None``: no transfer is measured.
        dev_seen: whether the model itself was trained on the rows of dev, which its scores there do not show.

    Raises:
        SkimError: rows from which nothing can be learned.
    """
    train, seconds = splits.train, dict[str, float]()

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        stage(name)
        started = time.perf_counter()
        yield
        seconds[name] = time.perf_counter() - started

    probing = probing_of(splits, settings)
    with timed("similarity"):
        similarity = similarity_of(train, settings.seed)
    with timed("clustering"):
        clustering, constant = clustering_of(train, settings.thresholds, settings.precision)
    with timed("probes"):
        scores = layer_scores(probing, train.width)
    with timed("selection"):
        choices = ccfs(
            probing,
            scores,
            train.width,
            deltas=[(delta, delta) for delta in settings.deltas],
            thresholds=[None] if settings.cut is None else [None, settings.cut],
            representative="random" if settings.preset == "paper" else "medoid",
            seed=settings.seed,
            precision=settings.precision,
        )
    with timed("control"):
        control = control_of(probing, scores, splits, settings.seed)
    with timed("transfer"):
        steps = transfer_of(probing, scores, choices, train, clock) if clock is not None else None
    section: Section = {
        "version": VERSION,
        "preset": settings.preset,
        "metric": probing.metric,
        "dev_seen": dev_seen,
        "rows": {name: states.rows for name, states in splits.named.items()},
        "classes": splits.label_names,
        "layers": {
            "numbers": list(train.numbers),
            "names": [name_of(number) for number in train.numbers],
            "width": train.width,
            "total": layers,
            "not_run": [number for number in range(1, layers + 1) if number not in train.numbers],
            "computed": train.ran.mean(0).tolist(),
            **scores_of(scores, train.numbers),
            "selected": [selected(scores, train.numbers, delta) for delta in settings.deltas],
        },
        "chance": chance_of(splits, probing.metric),
        "constant": {"neurons": constant.tolist(), "by_layer": by_layer(constant, train)},
        "similarity": similarity,
        "clustering": clustering,
        "neurons": [chosen(choice, scores, train) for choice in choices],
        "control": control,
        "transfer": steps,
    }
    return {**section, "sentence": told(section, min(settings.deltas)), "seconds": seconds}


def told(section: Section, delta: float) -> str:
    """Say what suffices, and that it says little where all layers score within two standard errors of chance."""
    said, oracle = sentence(section, delta), section["layers"]["oracle"]["dev"]
    if section["chance"] is None:
        return said if oracle > 0 else f"The task was not learned (dev {oracle:.3f}), so this says little: {said}"
    chance = section["chance"]["dev"]
    error = math.sqrt(oracle * (1 - oracle) / section["rows"]["dev"])
    if oracle - chance > 2 * error:
        return said
    return (
        f"The task was not learned (dev {oracle:.3f} +- {error:.3f}, most frequent label {chance:.3f}), so this says "
        f"little: {said}"
    )


def chance_of(splits: Splits, metric: str) -> dict[str, float] | None:
    """Score the most frequent label of the training rows."""
    if metric != "accuracy":
        return None
    labels, counts = np.unique(splits.train.labels, return_counts=True)
    return {name: float((splits.named[name].labels == labels[counts.argmax()]).mean()) for name in ("dev", "test")}


def probing_of(splits: Splits, settings: Settings) -> Probing:
    """Put together rows, recipe and metric of the probes."""
    train, dev, test = (Rows(states.flat, states.labels) for states in splits.named.values())
    metric = settings.metric or ("pearson_and_spearman" if splits.regression else "accuracy")
    recipe: Any = RECIPES[settings.preset]
    if hasattr(recipe, "seed"):
        recipe = replace(recipe, seed=settings.seed)
    return Probing(train, dev, test, metric, recipe)


def similarity_of(states: States, seed: int = 0) -> dict[str, Any]:
    """Compare all layers by CKA: over all rows in batches, and in the forms that cost more over some, evenly spread."""
    layers = len(states.numbers)
    some, few = (states.flat[:: -(-states.rows // rows)] for rows in (LINEAR_ROWS, RBF_ROWS))
    found = {
        "minibatch": minibatch_cka(states.flat, layers, seed=seed),
        "linear": linear_cka(some, layers),
        "debiased": linear_cka(some, layers, debiased=True),
        "rbf": rbf_cka(few, layers),
    }
    degenerate = sorted({place for one in found.values() for place in one.degenerate})
    return {
        **{kind: _matrix(one) for kind, one in found.items()},
        "degenerate": [states.numbers[place] for place in degenerate],
    }


def _matrix(similarity: Similarity) -> list[list[float | None]]:
    gone = set(similarity.degenerate)
    return [
        [None if {a, b} & gone else float(value) for b, value in enumerate(line)]
        for a, line in enumerate(similarity.matrix)
    ]


def clustering_of(
    states: States, thresholds: Sequence[float], precision: Literal["float32", "float64"] = "float32"
) -> tuple[dict[str, Any], np.ndarray]:
    """Count the clusters of all neurons and of each layer's own, at all thresholds; and list the constant neurons."""
    tree = cluster(states.flat, precision=precision)
    network = []
    for threshold in thresholds:
        widths = np.bincount(tree.windows(threshold, states.width))
        network.append(
            {
                "threshold": threshold,
                "clusters": tree.count(threshold),
                "redundant": tree.redundant(threshold),
                "widths": {str(width): int(count) for width, count in enumerate(widths) if count},
            }
        )
    constant = np.flatnonzero(tree.constant)
    del tree  # with its distances, of which there are as many as pairs
    own = [
        {"number": number, "redundant": [one.redundant(threshold) for threshold in thresholds]}
        for number, one in zip(
            states.numbers, cluster_layers(states.flat, states.width, precision=precision), strict=True
        )
    ]
    return {"thresholds": list(thresholds), "network": network, "layers": own}, constant


def scores_of(scores: LayerScores, numbers: Sequence[int]) -> dict[str, Any]:
    """List the scores of probes by layer."""
    return {
        "oracle": scores.oracle,
        "single": [{"number": number, **one} for number, one in zip(numbers, scores.single, strict=True)],
        "up_to": [{"number": number, **one} for number, one in zip(numbers, scores.up_to, strict=True)],
    }


def selected(scores: LayerScores, numbers: Sequence[int], delta: float) -> dict[str, Any]:
    """Select layers at a delta: for a probe that reads all of them, and for a head that reads the last."""
    top = scores.select(delta)
    alone = [one["dev"] for one in scores.single]
    single = first_above(alone, scores.oracle["dev"], delta)
    least = max(top, 1)
    further = first_above(alone[least:], scores.oracle["dev"], delta)
    kept = len(numbers) - 1 if further is None else least + further
    return {
        "delta": delta,
        "layers": numbers[kept],
        "up_to": numbers[top],
        "single": None if single is None else numbers[single],
        **scores.up_to[top],
    }


def suffices(choice: Choice, scores: LayerScores) -> bool:
    """Tell whether neurons keep the score of all layers, and not that of the layers and clusters they are of alone."""
    return first_above([choice.found.scores["dev"]], scores.oracle["dev"], choice.layer_delta) is not None


def chosen(choice: Choice, scores: LayerScores, states: States) -> dict[str, Any]:
    """List the neurons of a choice."""
    return {
        "delta": choice.layer_delta,
        "threshold": choice.threshold,
        "up_to": states.numbers[choice.top],
        "clusters": choice.candidates,
        "base": choice.found.base,
        "suffices": suffices(choice, scores),
        "neurons": choice.found.neurons.tolist(),
        "by_layer": by_layer(choice.found.neurons, states),
        **choice.found.scores,
    }


def control_of(probing: Probing, scores: LayerScores, splits: Splits, seed: int) -> list[dict[str, Any]] | None:
    """Score each layer on a random task of the same words, and what the real one has above it; ``None`` for texts."""
    types = {name: states.types for name, states in splits.named.items() if states.types is not None}
    if not types:
        return None
    found = single_scores(control_task(probing, types, seed), splits.train.width)
    above = (selectivity(task, control) for task, control in zip(scores.single, found, strict=True))
    return [
        {"number": number, **control, "selectivity": more}
        for number, control, more in zip(splits.train.numbers, found, above, strict=True)
    ]


def transfer_of(
    probing: Probing,
    scores: LayerScores,
    choices: Sequence[Choice],
    states: States,
    clock: Callable[[int], float],
) -> list[dict[str, Any]]:
    """Measure features, scores and seconds at the smallest delta: all layers, those selected, and their neurons."""
    least = min(choice.layer_delta for choice in choices)
    nearest = [one for one in choices if one.layer_delta == least]
    choice = min(nearest, key=lambda one: (not suffices(one, scores), len(one.found.neurons)))
    steps = transfer_steps(
        probing, states.width, choice.top, choice.found.neurons, lambda place: clock(states.numbers[place])
    )
    return [
        {
            "delta": least,
            "step": step.name,
            "up_to": states.numbers[step.top],
            "features": step.features,
            "dev": step.scores["dev"],
            "test": step.scores["test"],
            "extraction_seconds": step.extraction_seconds,
            "training_seconds": step.training_seconds,
        }
        for step in steps
    ]


def by_layer(neurons: np.ndarray, states: States) -> list[int]:
    """Count neurons by layer."""
    return np.bincount(neurons // states.width, minlength=len(states.numbers)).tolist()
