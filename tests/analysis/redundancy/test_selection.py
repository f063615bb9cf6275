"""Choices of layers and neurons: against plain loops, and what was planted is found exactly."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skim.analysis.redundancy import selection
from skim.analysis.redundancy.elastic_net import ElasticNet
from skim.analysis.redundancy.probes import Probe, Recipe
from skim.analysis.redundancy.probing import Probing
from skim.analysis.redundancy.ranking import rank
from skim.analysis.redundancy.ridge import Ridge
from skim.analysis.redundancy.rows import Rows
from skim.analysis.redundancy.selection import (
    FINE,
    SHARES,
    LayerScores,
    NeuronSet,
    ccfs,
    first_above,
    layer_scores,
    select_layer,
    select_size,
    sizes_of,
    smallest_sets,
)
from skim.errors import SkimError
from tests.analysis.redundancy.planted import FIRST, LAYERS, SECOND, TOGETHER, WIDTH, planted

RECIPES: dict[str, Recipe] = {"default": Ridge(), "paper": ElasticNet(epochs=16, learning_rate=5e-2)}
SCORES = st.lists(st.sampled_from([0.0, 0.5, 0.7, 0.79, 0.792, 0.8, 0.81, -0.3]), min_size=1, max_size=9)


@cache
def scored(recipe: str) -> tuple[Probing, LayerScores]:
    """Planted rows, and what each layer scores there."""
    probing = planted(RECIPES[recipe])
    return probing, layer_scores(probing, WIDTH)


@given(SCORES, st.sampled_from([0.8, 0.0, -0.3]), st.sampled_from([0, 0.5, 0.9, 1, 100]))
def test_layers_are_chosen_as_by_a_loop(scores: list[float], oracle: float, delta: float) -> None:
    wanted = len(scores) - 1
    for place in reversed(range(len(scores))):
        if scores[place] > oracle * (1 - delta / 100):
            wanted = place
    assert select_layer(scores, oracle, delta) == wanted


@given(SCORES, st.data())
def test_sizes_are_chosen_as_by_a_loop_and_none_is_empty(scores: list[float], data: st.DataObject) -> None:
    sizes = sorted(data.draw(st.lists(st.integers(0, 5), min_size=len(scores), max_size=len(scores))))
    wanted = None
    for size, score in zip(sizes, scores, strict=True):
        if wanted is None and size and score > 0.8 * (1 - 1 / 100):
            wanted = size
    assert select_size(sizes, scores, 0.8, 1) == wanted


def test_the_bar_is_not_reached_by_touching_it() -> None:
    assert first_above([0.99, 0.995], 1.0, 1) == 1
    assert first_above([0.99], 1.0, 1) is None


def test_sizes_are_shares_of_all_neurons() -> None:
    assert len(SHARES) == 27
    assert len(FINE) == 112
    assert sizes_of(9984, 9984)[:6] == [9, 19, 29, 39, 49, 99]
    assert sizes_of(48, 22) == [1, 2, 3, 4, 7, 9, 12, 14, 16, 19, 21, 22]
    assert sizes_of(1, 1) == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_planted_layers_and_neurons_are_found(recipe: str) -> None:
    probing, scores = scored(recipe)
    assert [scores.select(1, mode) for mode in ("up_to", "single")] == [2, TOGETHER]
    plain, clustered = ccfs(probing, scores, WIDTH, [(1, 1)])
    assert (plain.top, plain.threshold, plain.candidates) == (2, None, 3 * WIDTH)
    assert (clustered.top, clustered.threshold, clustered.candidates) == (2, 0.3, 3 * WIDTH - 2)
    assert set(clustered.found.neurons) == {FIRST, SECOND}
    assert clustered.found.scores["test"] == 1.0
    assert clustered.found.tried[0][1] < 0.9, "one neuron must not do, or this test shows nothing"
    assert set(plain.found.neurons) <= {FIRST, FIRST + 1, SECOND, SECOND + 1}


@pytest.mark.parametrize("recipe", RECIPES)
def test_neurons_of_a_single_layer_are_called_by_their_place_in_the_network(recipe: str) -> None:
    probing, scores = scored(recipe)
    (choice,) = ccfs(probing, scores, WIDTH, [(1, 1)], [0.3], mode="single")
    assert choice.top == TOGETHER
    assert set(choice.found.neurons) == {TOGETHER * WIDTH, TOGETHER * WIDTH + 1}


def test_a_regression_finds_its_neurons_by_their_weight() -> None:
    probing = planted(Ridge(), regression=True)
    scores = layer_scores(probing, WIDTH)
    assert scores.oracle["test"] > 0.999
    assert [scores.select(delta) for delta in (2, 0.1)] == [1, 2]
    choices = ccfs(probing, scores, WIDTH, [(2, 1), (0.1, 0.1)], [0.3])
    assert [choice.found.neurons.tolist() for choice in choices] == [[FIRST], [FIRST, SECOND]]


def test_deltas_that_share_a_layer_share_its_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    probing, scores = scored("default")
    calls = []
    whole = selection.cluster
    monkeypatch.setattr(
        selection,
        "cluster",
        lambda values, neurons, **more: calls.append(len(neurons)) or whole(values, neurons, **more),
    )
    searched = []

    def search(probing: Probing, neurons: np.ndarray, deltas: list[float]) -> list[NeuronSet]:
        searched.append(deltas)
        return smallest_sets(probing, neurons, deltas)

    monkeypatch.setattr(selection, "smallest_sets", search)
    choices = ccfs(probing, scores, WIDTH, [(0.5, 60), (0.9, 1), (80, 1)], [None, 0.3, 0.9])
    assert calls == [WIDTH, 3 * WIDTH]
    assert searched == [[1]] * 3 + [[60, 1]] * 3, "of its own layers alone"
    assert [(c.layer_delta, c.found.delta, c.threshold) for c in choices[:4]] == [
        (0.5, 60, None),
        (0.5, 60, 0.3),
        (0.5, 60, 0.9),
        (0.9, 1, None),
    ]
    assert [c.top for c in choices[::3]] == [2, 2, 0]
    assert len(choices[1].found.neurons) == 1
    # layer 0 is constant: nothing can be ranked, and all that was given stays
    assert choices[6].found.neurons.tolist() == list(range(WIDTH))


def test_every_threshold_clusters_the_layers_and_not_what_another_left() -> None:
    probing, scores = scored("default")
    together = ccfs(probing, scores, WIDTH, [(1, 1)], [None, 0.05, 0.3, 0.9])
    for choice in together:
        (alone,) = ccfs(probing, scores, WIDTH, [(1, 1)], [choice.threshold])
        assert choice.candidates == alone.candidates
        assert choice.found.neurons.tolist() == alone.found.neurons.tolist()


def test_waves_choose_as_one_training_after_another_does() -> None:
    draw = np.random.default_rng(3)
    values = draw.normal(size=(900, 200)).astype(np.float32)
    labels = (values[:, ::9] @ draw.normal(size=23) + draw.normal(size=900) > 0).astype(int)
    rows = [Rows(values[part], labels[part]) for part in (slice(500), slice(500, 700), slice(700, None))]
    probing, deltas = Probing(*rows), [30, 8, 2, 0]
    kept = np.arange(20, 180)
    ranked = kept[rank(probing.bank([Probe("base", 0, 160)], kept).weights("base")).order]
    base = probing.scores(probing.bank([Probe("base", 0, 160)], kept))["base"]["dev"]
    for found, delta in zip(smallest_sets(probing, kept, deltas), deltas, strict=True):
        for size in (int(share * 200) for share in SHARES):
            if not size:
                continue
            score = probing.scores(probing.bank([Probe("p", 0, size)], ranked[:size]))["p"]["dev"]
            if score > base * (1 - delta / 100):
                assert found.neurons.tolist() == ranked[:size].tolist()
                break
        else:
            assert found.neurons.tolist() == kept.tolist()


def test_a_search_that_ends_early_trains_no_large_sets() -> None:
    (found,) = smallest_sets(planted(Ridge()), range(3 * WIDTH), [60])
    assert max(size for size, _ in found.tried) <= 0.1 * LAYERS * WIDTH


def test_scores_and_layers_that_cannot_be_are_refused() -> None:
    with pytest.raises(SkimError, match="percentage from 0"):
        first_above([0.5], 0.5, -1)
    with pytest.raises(SkimError, match="finite"):
        first_above([0.5, float("nan")], 0.5, 1)
    with pytest.raises(SkimError, match="no layers"):
        select_layer([], 0.5, 1)
    probing = planted(Ridge())
    with pytest.raises(SkimError, match="48 neurons are not whole layers of 7"):
        layer_scores(probing, 7)
    with pytest.raises(SkimError, match="metric of classes 'pearson'"):
        Probing(probing.train, probing.dev, metric="pearson")
    with pytest.raises(SkimError, match="different numbers of neurons"):
        Probing(probing.train, Rows(probing.dev.values[:, 1:], probing.dev.labels))
