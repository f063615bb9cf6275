"""CKA between layers: published numbers, invariances, and layers that are similar to nothing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skim.analysis.redundancy.similarity import Similarity, linear_cka, minibatch_cka, rbf_cka
from skim.errors import SkimError
from tests.analysis.redundancy.golden import arrays

Cka = Callable[[np.ndarray, int], Similarity]
FORMS: dict[str, Cka] = {
    "linear_gram": linear_cka,
    "linear_feature": linear_cka,
    "linear_debiased_gram": lambda values, layers: linear_cka(values, layers, debiased=True),
    "linear_debiased_feature": lambda values, layers: linear_cka(values, layers, debiased=True),
    "rbf_0p5": rbf_cka,
    "rbf_1p0": lambda values, layers: rbf_cka(values, layers, sigma=1.0),
    "minibatch_unbiased_bs50": lambda values, layers: minibatch_cka(values, layers, batch_size=50),
    "minibatch_unbiased_bs100": lambda values, layers: minibatch_cka(values, layers, batch_size=100),
    "minibatch_unbiased_bs400": lambda values, layers: minibatch_cka(values, layers, batch_size=400),
}
forms = pytest.mark.parametrize("cka", FORMS.values(), ids=FORMS)


def pair(seed: int = 1337) -> np.ndarray:
    """Two layers, as in the notebook of google-research/representation_similarity."""
    draw = np.random.RandomState(seed)
    first = draw.randn(100, 10)
    return np.hstack([first, draw.randn(100, 10) + first])


def test_every_golden_matrix_has_its_form():
    assert set(arrays("cka")) == set(FORMS)


@pytest.mark.parametrize("name", FORMS)
def test_published_matrices(name: str):
    found = FORMS[name](arrays("features")["X"], 5)
    np.testing.assert_allclose(found.matrix, arrays("cka")[name], rtol=0, atol=1e-10)
    assert found.degenerate == []


@pytest.mark.parametrize(
    ("name", "wanted"), [("linear_feature", 0.55761), ("rbf_0p5", 0.65483), ("linear_debiased_feature", 0.51346)]
)
def test_numbers_printed_in_the_notebook(name: str, wanted: float):
    assert FORMS[name](pair(), 2).matrix[0, 1] == pytest.approx(wanted, abs=5e-6)


def test_one_batch_is_debiased_cka_and_shuffled_batches_come_near():
    values = np.tile(pair(), (5, 1)) + 0.1 * np.random.default_rng(0).standard_normal((500, 20))
    exact = linear_cka(values, 2, debiased=True).matrix
    np.testing.assert_allclose(minibatch_cka(values, 2, batch_size=500).matrix, exact, atol=1e-10)
    np.testing.assert_allclose(minibatch_cka(values, 2, batch_size=64, seed=3).matrix, exact, atol=0.05)


def test_sorted_rows_need_a_shuffle():
    """Batches of one class each say nothing of how classes differ."""
    draw = np.random.default_rng(0)
    classes = np.repeat(10 * draw.standard_normal((4, 3)), 50, axis=0)
    values = np.hstack([classes + draw.standard_normal((200, 3)), classes + draw.standard_normal((200, 3))])
    exact = linear_cka(values, 2, debiased=True).matrix[0, 1]
    assert exact > 0.95
    assert minibatch_cka(values, 2, batch_size=50).matrix[0, 1] < 0.5
    assert minibatch_cka(values, 2, batch_size=50, seed=0).matrix[0, 1] == pytest.approx(exact, abs=0.02)


@forms
def test_constant_layers_are_named_and_not_nan(cka: Cka):
    values = np.hstack([np.full((100, 10), 0.1), pair(), np.full((100, 10), -3e4)])
    found = cka(values, 4)
    assert found.degenerate == [0, 3]
    np.testing.assert_allclose(found.matrix[1:3, 1:3], cka(pair(), 2).matrix, rtol=0, atol=1e-9)
    assert found.matrix[[0, 3]].tolist() == np.zeros((2, 4)).tolist()
    assert np.diag(found.matrix) == pytest.approx([0, 1, 1, 0])


def test_a_layer_of_which_no_estimate_is_above_0_is_degenerate():
    spike = np.zeros((40, 1))
    spike[0] = 1  # no two rows that both differ from the others
    found = minibatch_cka(np.hstack([spike, np.arange(40.0)[:, None]]), 2, batch_size=8)
    assert np.isfinite(found.matrix).all()
    with np.errstate(all="raise"):  # its median distance is 0, by which nothing is divided
        assert rbf_cka(np.hstack([spike, np.arange(40.0)[:, None]]), 2).degenerate == [0]


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(sorted(FORMS)), st.integers(0, 10**6), st.floats(1e-6, 1e6), st.floats(-1e3, 1e3))
def test_rotation_scale_and_offset_change_nothing(name: str, seed: int, scale: float, offset: float):
    values = pair(seed)
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((10, 10)))[0]
    turned = np.hstack([values[:, :10] @ rotation * scale + offset * scale, values[:, 10:]])
    np.testing.assert_allclose(FORMS[name](turned, 2).matrix, FORMS[name](values, 2).matrix, rtol=0, atol=1e-7)


@settings(max_examples=25, deadline=None)
@given(st.integers(5, 40), st.integers(1, 6), st.integers(0, 10**6))
def test_plain_definition_of_linear_cka(rows: int, width: int, seed: int):
    values = np.random.default_rng(seed).standard_normal((rows, 2 * width))
    x, y = values[:, :width] - values[:, :width].mean(0), values[:, width:] - values[:, width:].mean(0)
    wanted = np.linalg.norm(x.T @ y) ** 2 / np.linalg.norm(x.T @ x) / np.linalg.norm(y.T @ y)
    assert linear_cka(values, 2).matrix[0, 1] == pytest.approx(wanted, abs=1e-12)


def test_rows_are_read_in_blocks_and_batches_never_whole(monkeypatch: pytest.MonkeyPatch):
    seen: list[int] = []
    real = np.ndarray.__getitem__

    class Counted(np.ndarray):
        def __getitem__(self, key):
            found = real(self, key)
            seen.append(len(found))
            return np.asarray(found)

    values = np.random.default_rng(0).standard_normal((3000, 8)).view(Counted)
    for cka in (linear_cka, lambda v, n: minibatch_cka(v, n, batch_size=64)):
        seen.clear()
        cka(values, 2)
        assert 0 < max(seen) <= 512


def test_rows_and_values_that_have_no_similarity():
    with pytest.raises(SkimError, match="at least 2 rows"):
        linear_cka(pair()[:1], 2)
    with pytest.raises(SkimError, match="at least 4 rows"):
        linear_cka(pair()[:3], 2, debiased=True)
    with pytest.raises(SkimError, match="batch_size=3"):
        minibatch_cka(pair(), 2, batch_size=3)
    with pytest.raises(SkimError, match="5001 rows are too many"):
        rbf_cka(np.zeros((5001, 2)), 2)
    with pytest.raises(SkimError, match="sigma=0"):
        rbf_cka(pair(), 2, sigma=0)
    broken = pair()
    broken[3, 12] = np.nan
    with pytest.raises(SkimError, match="the first is neuron 12"):
        minibatch_cka(broken, 2)
