"""Clusters of neurons: the published partitions at every threshold, and the plain definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skim.analysis.redundancy.clustering import cluster, cluster_layers, correlation, members, redundant_by_layer
from skim.errors import SkimError
from tests.analysis.redundancy.golden import arrays, table

WIDTH = 12  # of the golden features' five layers
CLUSTERS = table("clusters")
precisions = pytest.mark.parametrize("precision", ["float32", "float64"])


@pytest.fixture
def features() -> np.ndarray:
    return arrays("features")["X"]


@precisions
@pytest.mark.parametrize("signed", [False, True])
def test_published_partitions_at_every_threshold(features: np.ndarray, signed: bool, precision: str):
    found = cluster(features, signed=signed, precision=precision)
    for threshold in CLUSTERS["thresholds"]:
        wanted = CLUSTERS["clusters"][f"abs={not signed},t={threshold:.2f}"]
        np.testing.assert_array_equal(found.labels(threshold), wanted)


def test_published_partitions_with_a_spread_of_1e_31_and_an_offset_of_5000():
    """In float32 the variance of the one underflows, and the other one loses its digits."""
    features, wanted = arrays("features_edge")["X"], table("clusters_edge")
    assert features[:, 3].std() == 0  # float32
    found = cluster(features)
    assert not found.constant[3]
    for threshold, labels in wanted.items():
        np.testing.assert_array_equal(found.labels(float(threshold.removeprefix("t="))), labels)


def test_published_variant_on_signed_distances_without_the_constant(features: np.ndarray):
    found = cluster(features, neurons=np.delete(np.arange(60), 41), signed=True)
    for threshold, labels in CLUSTERS["scikit_variant_clusters_without_col41"].items():
        np.testing.assert_array_equal(found.labels(float(threshold.removeprefix("t="))), labels)


def test_published_correlation_and_tree(features: np.ndarray):
    golden = arrays("correlation")
    np.testing.assert_allclose(correlation(features, precision="float64"), golden["corr"], rtol=0, atol=1e-14)
    np.testing.assert_allclose(correlation(features), golden["corr"], rtol=0, atol=2e-6)
    tree = cluster(features, precision="float64").tree
    np.testing.assert_allclose(tree, golden["linkage_abs_average"], rtol=0, atol=1e-14)


@pytest.mark.parametrize(("seed", "threshold"), [(s, t) for s in (0, 7361) for t in (0.1, 0.3, 0.5, 0.7)])
def test_published_draws_of_representatives(features: np.ndarray, seed: int, threshold: float):
    wanted = CLUSTERS["independent_neurons"][f"seed={seed},t={threshold:.2f}"]
    assert cluster(features).representatives(threshold, "random", seed).tolist() == wanted


def test_a_memory_map_and_a_half_precision_array_are_read_alike(features: np.ndarray, tmp_path):
    np.save(tmp_path / "x.npy", features)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    np.testing.assert_array_equal(cluster(mapped).tree, cluster(features).tree)
    half = features.astype(np.float16)
    np.testing.assert_array_equal(cluster(half).tree, cluster(half.astype(np.float32)).tree)


def test_duplicates_and_opposites_are_one_cluster_and_constants_are_alone():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 200))
    values = np.stack([a, b, 3 * a + 7, -a, np.full(200, 0.1), np.full(200, 5.0), b + 0.2 * a], axis=1)
    found = cluster(values)
    assert [c.tolist() for c in sorted(members(found.labels(0.01)), key=lambda c: c[0])] == [
        [0, 2, 3],
        [1],
        [4],
        [5],
        [6],
    ]
    assert found.representatives(0.01).tolist().count(0) == 1  # the first of three that are equally near
    assert np.flatnonzero(found.constant).tolist() == [4, 5]
    assert found.count(0.01) == 5
    assert found.redundant(0.01) == pytest.approx(2 / 7)
    assert cluster(values, signed=True).count(0.01) == 6
    assert found.count(-1) == 7  # the published code's word for no clustering


def test_a_variance_floor_makes_constants_of_what_hardly_moves():
    features = arrays("features_edge")["X"]
    floor = cluster(features, variance_floor=1e-20)
    assert np.flatnonzero(floor.constant).tolist() == [3, 41]
    alone = floor.labels(0.7) == floor.labels(0.7)[3]
    assert alone.sum() == 1


def test_neurons_are_called_by_their_index_in_the_network(features: np.ndarray):
    chosen = np.arange(24, 60)
    found = cluster(features, chosen)
    whole = cluster(np.ascontiguousarray(features[:, 24:]))
    np.testing.assert_array_equal(found.tree, whole.tree)
    np.testing.assert_array_equal(found.representatives(0.5), whole.representatives(0.5) + 24)
    assert found.windows(0.7, WIDTH).max() <= 3


def test_layers_by_themselves(features: np.ndarray):
    layers = cluster_layers(features, WIDTH)
    for number, layer in enumerate(layers):
        alone = cluster(np.ascontiguousarray(features[:, number * WIDTH : (number + 1) * WIDTH]))
        np.testing.assert_array_equal(layer.labels(0.5), alone.labels(0.5))
        assert set(layer.representatives(0.5)) <= set(range(number * WIDTH, (number + 1) * WIDTH))


def test_windows_and_shares_by_layer():
    rng = np.random.default_rng(1)
    a, b, c = rng.standard_normal((3, 100))
    values = np.stack([a, b, c, a, rng.standard_normal(100), -a], axis=1)  # three layers of two
    found = cluster(values)
    assert sorted(found.windows(0.1, 2)) == [1, 1, 1, 3]
    kept = found.representatives(0.1)
    assert redundant_by_layer(kept, 2, 3).tolist() == [0, 0.5, 0.5]


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 9), st.integers(3, 40), st.integers(0, 10**6), st.sampled_from([0.2, 0.5, 0.8]), st.booleans())
def test_plain_definitions(neurons: int, rows: int, seed: int, threshold: float, signed: bool):
    """Correlations are NumPy's; clusters are separate at the threshold; a medoid is nearest to its cluster."""
    rng = np.random.default_rng(seed)
    values = (
        rng.standard_normal((rows, neurons)) @ rng.standard_normal((neurons, neurons)) * 10.0 ** rng.integers(-9, 4)
    )
    plain = np.corrcoef(values.T)
    np.testing.assert_allclose(correlation(values, precision="float64"), plain, rtol=0, atol=1e-9)
    distance = 1 - (plain if signed else np.abs(plain))
    found = cluster(values, signed=signed, precision="float64")
    clusters = members(found.labels(threshold))
    assert sorted(np.concatenate(clusters)) == list(range(neurons))
    for i, one in enumerate(clusters):
        for other in clusters[i + 1 :]:
            assert distance[np.ix_(one, other)].mean() > threshold  # else average linkage would have joined them
    for representative, one in zip(found.representatives(threshold), clusters, strict=True):
        means = distance[np.ix_(one, one)].mean(0)
        assert means[one == representative][0] <= means.min() + 1e-5


def test_rows_and_values_that_cannot_be_clustered(features: np.ndarray):
    with pytest.raises(SkimError, match="at least 2 rows"):
        cluster(features[:1])
    broken = features.copy()
    broken[399, 31] = np.nan
    broken[7, 33] = np.inf
    with pytest.raises(SkimError, match=r"2 of 60 neurons are NaN or infinite; the first is neuron 31"):
        cluster(broken)
    with pytest.raises(SkimError, match=r"2 of 30 .* neuron 31"):
        cluster(broken, np.arange(30, 60))
    with pytest.raises(SkimError, match="no neurons"):
        cluster(features, [])
    with pytest.raises(SkimError, match="Did you mean 'medoid'"):
        cluster(features).representatives(0.3, "mediod")
