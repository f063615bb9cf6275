"""The whole analysis on planted states: one useful neuron in layer 2 of 3, and a copy of it above."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from skim.analysis.redundancy import analysis, selection
from skim.analysis.redundancy.analysis import Section, Settings, analyse, suffices, told
from skim.analysis.redundancy.selection import Choice, LayerScores, NeuronSet
from skim.analysis.redundancy.states import Splits, States

WIDTH, USEFUL = 6, 2 * 6 + 4  # dimension 4 of layer 2
SMALL = Settings(deltas=(1.0, 5.0), thresholds=(0.3,))


def states(rows: int, seed: int, numbers: tuple[int, ...] = (0, 1, 2, 3), types: bool = False) -> States:
    draw = np.random.default_rng(seed)
    labels = draw.integers(2, size=rows)
    values = draw.normal(size=(rows, 4, WIDTH)).astype(np.float32)
    values[:, 0] = 0.5  # as the embedding of [CLS]
    values[:, 2, 4] = 4 * labels + 0.1 * draw.normal(size=rows)
    values[:, 3, 1] = -values[:, 2, 4]
    ran = np.ones((rows, 4), dtype=bool)
    ran[: rows // 4, 3] = False
    kinds = draw.integers(40, size=rows) if types else None
    return States(values, labels, np.arange(rows), ran, numbers, kinds)


def splits(**options: object) -> Splits:
    return Splits(*(states(rows, seed, **options) for seed, rows in enumerate((400, 120, 120))), ["no", "yes"])


@pytest.fixture(scope="module")
def section() -> Section:
    return analyse(splits(), 3, SMALL, clock=lambda number: 0.1 * number)


def test_the_layer_and_the_neuron_that_were_planted_are_found(section: Section) -> None:
    assert section["layers"]["selected"][0] == {
        "delta": 1.0,
        "layers": 2,
        "up_to": 2,
        "single": 2,
        "train": 1.0,
        "dev": 1.0,
        "test": 1.0,
    }
    assert [one["neurons"] for one in section["neurons"]] == [[USEFUL]] * 4
    assert section["neurons"][0]["by_layer"] == [0, 0, 1, 0]
    assert section["layers"]["computed"] == [1.0, 1.0, 1.0, 0.75]
    assert section["constant"] == {"neurons": list(range(6)), "by_layer": [6, 0, 0, 0]}
    assert section["similarity"]["degenerate"] == [0]
    for kind in ("minibatch", "linear", "debiased", "rbf"):
        cka = section["similarity"][kind]
        assert cka[0] == [None] * 4
        assert cka[2][2] == pytest.approx(1)
        assert cka[2][3] > 0.5 > cka[2][1]  # the copy above, and noise
    (network,) = section["clustering"]["network"]
    assert (network["clusters"], network["widths"]) == (23, {"1": 22, "2": 1})  # the copy is one of two layers
    assert section["sentence"].startswith("At 1 %, layers 0 to 2 of 3 and 1 of 24 neurons suffice; method=layer_drop")
    assert section["control"] is None
    assert json.loads(json.dumps(section)) == section


def test_steps_of_transfer_are_timed_up_to_their_layer(section: Section) -> None:
    steps = [(one["step"], one["up_to"], one["features"], one["extraction_seconds"]) for one in section["transfer"]]
    assert steps[0] == ("all layers", 3, 24, pytest.approx(0.3))
    assert steps[1:] == [("layers", 2, 18, pytest.approx(0.2)), ("neurons", 2, 1, pytest.approx(0.2))]


def test_layers_that_did_not_run_keep_the_others_numbers() -> None:
    found = analyse(splits(numbers=(0, 2, 5, 6)), 6, SMALL)
    assert found["layers"]["not_run"] == [1, 3, 4]
    assert (found["layers"]["selected"][0]["up_to"], found["layers"]["selected"][0]["layers"]) == (5, 5)
    assert found["transfer"] is None


def test_a_task_that_no_probe_has_learned_is_said_to_be_one() -> None:
    some = splits()
    for one in (some.train, some.dev, some.test):
        one.values[:] = np.random.default_rng(1).normal(size=one.values.shape)
        one.labels[:] = np.arange(len(one.labels)) % 10 == 0
    found = analyse(some, 3, SMALL)
    assert found["chance"] == {"dev": 0.9, "test": 0.9}
    assert found["sentence"].startswith("The task was not learned (dev 0.")


def test_a_probe_within_two_standard_errors_of_chance_has_not_learned(section: Section) -> None:
    by = {"chance": {"dev": 0.5}, "rows": {"dev": 100}}
    for oracle, learned in ((0.51, False), (0.59, False), (0.62, True)):
        layers = {**section["layers"], "oracle": {"dev": oracle}}
        assert told({**section, **by, "layers": layers}, 1.0).startswith("At 1 %") == learned
    numbers = {**section, "chance": None, "layers": {**section["layers"], "oracle": {"dev": -0.1}}}
    assert told(numbers, 1.0).startswith("The task was not learned (dev -0.100), so")


def test_neurons_of_clusters_suffice_only_if_all_layers_say_so(section: Section) -> None:
    assert all(one["suffices"] for one in section["neurons"])
    found = NeuronSet(1.0, np.array([3]), {"dev": 0.79}, {"dev": 0.795}, [])  # enough beside the clusters' 0.795
    scores = LayerScores({"dev": 0.8}, [], [])
    assert not suffices(Choice(1.0, 2, 0.3, 9, found), scores)
    assert suffices(Choice(2.0, 2, 0.3, 9, found), scores)


def test_the_paper_correlates_in_float64_and_draws_representatives(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []
    for module in (analysis, selection):
        whole = module.cluster

        def watched(*args: Any, whole: Any = whole, **options: Any) -> Any:
            asked.append((options["precision"], ""))
            found = whole(*args, **options)
            monkeypatch.setattr(
                type(found),
                "representatives",
                lambda self, threshold, choice, seed: asked.append((choice, seed)) or self.neurons[:1],
            )
            return found

        monkeypatch.setattr(module, "cluster", watched)
    analyse(splits(), 3, replace(SMALL, preset="paper", seed=9, deltas=(1.0,)))
    assert asked == [("float64", ""), ("float64", ""), ("random", 9)]


def test_words_have_a_control_task() -> None:
    found = analyse(splits(types=True), 3, SMALL)
    useless, useful = found["control"][1], found["control"][2]
    assert useful["number"] == 2
    assert useful["test"] < 0.8 < useful["test"] + useful["selectivity"]["test"]
    assert abs(useless["selectivity"]["test"]) < 0.3
