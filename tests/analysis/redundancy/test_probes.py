"""Probes: the published numbers, scikit-learn's, each other's in a bank; and what they refuse."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import linear_model
from sklearn.preprocessing import StandardScaler

from skim.analysis.redundancy.elastic_net import ElasticNet
from skim.analysis.redundancy.probes import Probe, Recipe, train_probes
from skim.analysis.redundancy.recipes import RECIPES
from skim.analysis.redundancy.ridge import Ridge
from skim.analysis.redundancy.rows import Rows, target_of
from skim.errors import SkimError
from tests.analysis.redundancy import golden

FEATURES = golden.arrays("features")
PROBES = [Probe("oracle", 0, 60), Probe("layer 1", 12, 24), Probe("layers 0 to 2", 0, 36), Probe("odd", 17, 50)]
EXACT = Ridge(tolerance=1e-5, passes=400)


def labels(kind: str) -> np.ndarray:
    return FEATURES["y_class"] if kind == "classification" else FEATURES["y_reg"]


@pytest.mark.parametrize("penalty", ["1e-05", "0.01", "0"])
@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_published_training_is_reproduced(kind: str, penalty: str) -> None:
    published = golden.arrays("elastic_net")
    start, bias, weights, end = (
        published[f"{kind}_l1={penalty}_l2={penalty}|{name}"] for name in ("W0", "b0", "W", "b")
    )
    rows = Rows(published["X_standardized"], labels(kind))
    recipe = ElasticNet(l1=float(penalty), l2=float(penalty), initial={"probe": (start, bias)})
    bank = train_probes(rows, [Probe("probe", 0, 60)], target_of(rows.labels), recipe)
    np.testing.assert_allclose(bank.weights("probe"), weights, atol=1e-5, rtol=0)
    np.testing.assert_allclose(bank.bias("probe"), end, atol=1e-5, rtol=0)
    if kind == "classification":
        right = published[f"{kind}_l1={penalty}_l2={penalty}|acc"][0]
        assert bank.scores(rows, "accuracy")["probe"] == pytest.approx(right, abs=1e-9)


def test_the_norm_has_no_gradient_at_zero() -> None:
    rows = Rows(np.zeros((8, 3), np.float32), np.arange(8) % 2)
    recipe = ElasticNet(l2=1.0, initial={"probe": (np.zeros((2, 3)), np.zeros(2))})
    bank = train_probes(rows, [Probe("probe", 0, 3)], target_of(rows.labels), recipe)
    assert (bank.weights("probe") == 0).all()


@pytest.mark.parametrize("kind", ["classification", "regression"])
def test_the_default_finds_the_optimum_of_scikit_learn(kind: str) -> None:
    rows = Rows(FEATURES["X"], labels(kind))
    bank = train_probes(rows, PROBES, target_of(rows.labels), EXACT)
    for probe in PROBES:
        strength = len(rows) * EXACT.decay(probe.stop - probe.start, len(rows))
        x = StandardScaler().fit_transform(rows.values[:, probe.start : probe.stop])
        if kind == "classification":
            right = linear_model.LogisticRegression(C=1 / strength, tol=1e-8, max_iter=5000)
        else:
            right = linear_model.Ridge(alpha=strength / 2)  # without a half before the squares
        right.fit(x, rows.labels)
        np.testing.assert_allclose(bank.weights(probe.name), np.atleast_2d(right.coef_), atol=5e-4)


@pytest.mark.parametrize("kind", ["classification", "regression"])
@pytest.mark.parametrize("recipe", [EXACT, ElasticNet(epochs=3, l1=1e-2, l2=1e-2)])
def test_a_bank_learns_what_its_probes_learn_alone(recipe: Recipe, kind: str) -> None:
    rows = Rows(FEATURES["X"], labels(kind))
    target = target_of(rows.labels)
    if isinstance(recipe, ElasticNet):
        draw = np.random.default_rng(0)
        initial = {
            probe.name: (draw.normal(size=(target.outputs, probe.stop - probe.start)), draw.normal(size=target.outputs))
            for probe in PROBES
        }
        recipe = ElasticNet(epochs=3, l1=1e-2, l2=1e-2, initial=initial)
    bank = train_probes(rows, PROBES, target, recipe)
    for probe in PROBES:
        alone = train_probes(rows, [probe], target, recipe)
        np.testing.assert_allclose(bank.weights(probe.name), alone.weights(probe.name), atol=2e-4)
        np.testing.assert_allclose(bank.bias(probe.name), alone.bias(probe.name), atol=2e-4)


@pytest.mark.parametrize("recipe", RECIPES.values())
def test_neurons_are_read_in_the_order_that_was_asked_for(recipe: Recipe) -> None:
    rows, target = Rows(FEATURES["X"], FEATURES["y_class"]), target_of(FEATURES["y_class"])
    chosen = [40, 3, 17, 5]
    found = train_probes(rows, [Probe("a", 0, 2), Probe("b", 0, 4)], target, recipe, chosen)
    copied = train_probes(
        Rows(rows.values[:, chosen], rows.labels), [Probe("a", 0, 2), Probe("b", 0, 4)], target, recipe
    )
    np.testing.assert_allclose(found.weights("b"), copied.weights("b"), atol=1e-6)
    assert (found.predict(rows)["a"] == copied.predict(Rows(rows.values[:, chosen], rows.labels))["a"]).all()


def test_rows_come_from_a_memory_map_of_float16(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", FEATURES["X"].astype(np.float16))
    mapped = Rows(np.load(tmp_path / "x.npy", mmap_mode="r"), FEATURES["y_class"])
    held = Rows(FEATURES["X"].astype(np.float16).astype(np.float32), FEATURES["y_class"])
    one, other = (train_probes(rows, PROBES, target_of(rows.labels), Ridge()) for rows in (mapped, held))
    np.testing.assert_allclose(one.weights("oracle"), other.weights("oracle"), atol=1e-5)


def test_weights_are_drawn_as_linear_layers_are() -> None:
    rows = Rows(FEATURES["X"], FEATURES["y_class"])
    bank = train_probes(rows, PROBES[:2], target_of(rows.labels), ElasticNet(epochs=0, seed=7))
    torch.manual_seed(7)
    for probe in PROBES[:2]:
        layer = torch.nn.Linear(probe.stop - probe.start, 3)
        np.testing.assert_allclose(bank.weights(probe.name), layer.weight.detach(), atol=1e-7)
        np.testing.assert_allclose(bank.bias(probe.name), layer.bias.detach(), atol=1e-7)


@pytest.mark.parametrize("recipe", RECIPES.values())
def test_a_class_that_training_lost_is_wrong_and_nothing_else(recipe: Recipe) -> None:
    """Labels need not be 0 to C - 1, and one that only dev has is out of no bounds."""
    useful = np.repeat(np.arange(3.0, dtype=np.float32), 40)
    x = np.stack([useful == place for place in range(3)], 1).astype(np.float32) * 4
    y = np.array([9, 2, 5])[useful.astype(int)]
    train, dev = Rows(x[:80], y[:80]), Rows(x[::2], y[::2])
    target = target_of(train.labels, dev.labels)
    assert target.classes.tolist() == [2, 5, 9]
    recipe = recipe if isinstance(recipe, Ridge) else ElasticNet(epochs=300, learning_rate=1e-2)
    bank = train_probes(train, [Probe("probe", 0, 3)], target, recipe)
    assert bank.weights("probe").shape == (3, 3)
    assert bank.scores(dev, "accuracy")["probe"] == pytest.approx(2 / 3)


def test_constant_columns_and_tiny_ones_are_told_apart() -> None:
    draw = np.random.default_rng(0)
    y = draw.integers(2, size=300)
    x = np.stack([np.full(300, 0.75), (y + draw.normal(size=300) / 9) * 1e-31, 5000 + draw.normal(size=300)], 1)
    rows = Rows(x.astype(np.float32), y)
    bank = train_probes(rows, [Probe("all", 0, 3), Probe("constant", 0, 1)], target_of(y), Ridge())
    assert bank.scores(rows, "accuracy")["all"] == 1.0
    assert (bank.weights("all")[:, 0] == 0).all()
    assert bank.scores(rows, "accuracy")["constant"] == max(y.mean(), 1 - y.mean())


@pytest.mark.parametrize(
    ("train", "dev", "message"),
    [
        ([1, 1, 1], [0, 1], "same label"),
        ([0.5, 0.5], [0.1], "same label"),
        ([0.5, np.nan], [0.1], "not finite"),
        ([0, 1], [0.5], "floats"),
        (["a", "b"], ["a"], "integers"),
    ],
)
def test_labels_that_teach_nothing_are_refused(train: list, dev: list, message: str) -> None:
    with pytest.raises(SkimError, match=message):
        target_of(np.array(train), np.array(dev))


@pytest.mark.parametrize("recipe", RECIPES.values())
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_activations_that_are_not_finite_are_refused(recipe: Recipe, bad: float) -> None:
    x = FEATURES["X"].copy()
    x[200, 7] = bad
    rows, target = Rows(x, FEATURES["y_class"]), target_of(FEATURES["y_class"])
    with pytest.raises(SkimError, match=r"not finite|infinite"):
        train_probes(rows, PROBES[:1], target, recipe)
    good = train_probes(Rows(FEATURES["X"], rows.labels), PROBES[:1], target, recipe)
    with pytest.raises(SkimError, match="not finite"):
        good.scores(rows, "accuracy")


def test_probes_that_cannot_be_are_refused() -> None:
    rows, target = Rows(FEATURES["X"], FEATURES["y_class"]), target_of(FEATURES["y_class"])
    for probe in (Probe("none", 5, 5), Probe("beyond", 0, 61), Probe("before", -1, 3)):
        with pytest.raises(SkimError, match=f"'{probe.name}' reads columns"):
            train_probes(rows, [probe], target, Ridge())
    with pytest.raises(SkimError, match="numbered from 0 to 59"):
        train_probes(rows, [Probe("all", 0, 2)], target, Ridge(), [3, 60])
    with pytest.raises(SkimError, match="same name"):
        train_probes(rows, [Probe("a", 0, 2), Probe("a", 2, 4)], target, Ridge())
    with pytest.raises(SkimError, match="must be of shape"):
        train_probes(rows, [Probe("a", 0, 2)], target, ElasticNet(initial={"a": (np.zeros((3, 3)), np.zeros(3))}))
    with pytest.raises(SkimError, match="none of the 2 classes"):
        target_of(np.array([0, 1])).encode(np.array([0, 2]))
    with pytest.raises(SkimError, match="matrix"):
        Rows(FEATURES["X"], FEATURES["y_class"][:-1])
    with pytest.raises(SkimError, match="no rows"):
        Rows(FEATURES["X"][:0], FEATURES["y_class"][:0])


def test_a_probe_that_is_done_waits_for_the_others_unharmed() -> None:
    """Constant columns, as [CLS] has in layer 0, teach nothing where classes are balanced: the gradient is rounding."""
    draw = np.random.default_rng(0)
    y = np.arange(350) % 7
    x = np.concatenate([np.full((350, 8), 0.75), draw.normal(size=(350, 20)) + y[:, None]], 1).astype(np.float32)
    bank = train_probes(Rows(x, y), [Probe("constant", 0, 8), Probe("slow", 8, 28)], target_of(y), Ridge(passes=200))
    assert bank.bias("constant") == pytest.approx(np.zeros(7), abs=1e-3)
    assert bank.scores(Rows(x, y), "accuracy")["slow"] > 0.9
