"""Efficient feature-based transfer: fewer layers, then fewer neurons, and what each saves (Dalvi et al., section 7)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from skim.analysis.redundancy.probes import Probe
from skim.analysis.redundancy.probing import Probing, Scores
from skim.analysis.redundancy.rows import Rows
from skim.errors import SkimError


@dataclass(frozen=True)
class Step:
    """A probe on some features, and its cost.

    Attributes:
        name: "all layers", "layers" or "neurons".
        top: place of the highest layer that is run.
        features: columns that the probe reads.
        scores: of the probe.
        extraction_seconds: wall time of the model up to that layer, whatever rows ``extract`` runs.
        training_seconds: wall time of the probe's training.
    """

    name: str
    top: int
    features: int
    scores: Scores
    extraction_seconds: float
    training_seconds: float


def transfer_steps(
    probing: Probing,
    width: int,
    top: int,
    neurons: Sequence[int] | np.ndarray,
    extract: Callable[[int], float],
    repeats: int = 3,
) -> list[Step]:
    """Compare all layers with the selected ones, and with the selected neurons of those.

    Models and probes are timed in turn, ``repeats`` times, and each time is the median of its own; steps with the same
    top layer share that of the model. The neurons are copied before the clock starts: who extracts them alone stores
    nothing else.

    Args:
        probing: rows, recipe and metric.
        width: neurons of a layer.
        top: place of the highest layer that was selected.
        neurons: global ids of those that were selected, none above that layer.
        extract: runs the model up to the layer at a place on a fixed set of rows, and returns its seconds.
        repeats: times that each is measured.
    """
    total, chosen = probing.train.neurons, np.asarray(neurons, dtype=np.int64)
    if not 0 <= top < total // width:
        raise SkimError(f"Layers are at places 0 to {total // width - 1}; there is none at {top}.")
    if not len(chosen) or not 0 <= chosen.min() <= chosen.max() < (top + 1) * width:
        raise SkimError(f"Transfer needs at least one neuron, and all of them from the layers at places 0 to {top}.")
    if repeats < 1:
        raise SkimError(f"Times need at least one measurement; repeats={repeats}.")
    alone = probing.changed(lambda _, rows: _copied(rows, chosen))
    plans = [
        ("all layers", total // width - 1, probing, total),
        ("layers", top, probing, (top + 1) * width),
        ("neurons", top, alone, len(chosen)),
    ]
    extractions: dict[int, list[float]] = {highest: [] for _, highest, *_ in plans}
    trainings: dict[str, list[float]] = {name: [] for name, *_ in plans}
    scores: dict[str, Scores] = {}
    for repeat in range(repeats):
        for highest, seconds in extractions.items():  # what runs the same layers takes the same time
            seconds.append(extract(highest))
        for name, _, source, features in plans:
            start = time.perf_counter()
            bank = source.bank([Probe(name, 0, features)], range(features))  # and reads no others
            trainings[name].append(time.perf_counter() - start)
            if not repeat:
                scores |= source.scores(bank)
    return [
        Step(name, highest, features, scores[name], median(extractions[highest]), median(trainings[name]))
        for name, highest, _, features in plans
    ]


def _copied(rows: Rows, neurons: np.ndarray) -> Rows:
    blocks = [block.numpy() for _, block in rows.blocks(neurons)]
    return Rows(np.concatenate(blocks), rows.labels)
