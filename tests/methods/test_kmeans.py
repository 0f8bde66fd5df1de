"""k-means: what it finds, what never happens, and what it holds in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import normalized_mutual_info_score

from ssljax.methods.kmeans import kmeans, mutual_information


def blobs(count=4, each=25, apart=20.0, seed=0):
    """Rows of well separated blobs, and the blob of each."""
    rng = np.random.default_rng(seed)
    blob = rng.permutation(np.repeat(np.arange(count), each))
    return apart * np.eye(count, 6)[blob] + rng.normal(size=(count * each, 6)), blob


def cloud(n=200, d=5, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def sizes(found, clusters):
    return np.bincount(found.assignment, minlength=clusters)


def test_separated_blobs_are_found(x64):
    rows, blob = blobs()
    runs = [kmeans(jax.random.key(s), rows, clusters=4, iterations=10) for s in range(20)]
    best = min(runs, key=lambda found: found.inertia[-1])
    assert mutual_information(best.assignment, blob) == pytest.approx(1, abs=1e-12)
    means = np.stack([rows[blob == b].mean(0) for b in range(4)])
    order = np.argsort(np.argmax(best.centroids[:, :4], axis=1))
    np.testing.assert_allclose(best.centroids[order], means, rtol=1e-12, atol=1e-12)


def test_what_is_found_is_at_rest(x64):
    """Every row is with the nearest centroid, and every centroid is the mean of its rows."""
    rows = cloud()
    found = kmeans(jax.random.key(0), rows, clusters=7, iterations=100)
    distances = np.sum((rows[:, None] - found.centroids[None]) ** 2, axis=2)
    np.testing.assert_array_equal(found.assignment, np.argmin(distances, axis=1))
    means = [rows[found.assignment == c].mean(0) for c in range(7)]
    np.testing.assert_allclose(found.centroids, means, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(found.inertia[-1], distances.min(1).mean(), rtol=1e-12)


def test_an_iteration_moves_centroids_to_the_means_of_their_rows(x64):
    rows, key = cloud(), jax.random.key(1)
    # Nothing is split here, so both runs begin alike whatever their other keys are.
    first, second = (kmeans(key, rows, clusters=9, iterations=i) for i in (1, 2))
    means = [rows[first.assignment == c].mean(0) for c in range(9)]
    np.testing.assert_allclose(second.centroids, means, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(second.inertia[:2], first.inertia, rtol=1e-12)


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('kind', ['cloud', 'blobs', 'few_distinct'])
def test_inertia_never_rises(x64, kind, seed):
    few = cloud(12)[np.random.default_rng(seed).integers(0, 12, 300)]
    rows = {'cloud': cloud(300), 'blobs': blobs(8)[0], 'few_distinct': few}[kind]
    found = kmeans(jax.random.key(seed), rows, clusters=12, iterations=30)
    assert found.inertia.shape == (31,)
    assert np.diff(found.inertia).max() <= 1e-12
    assert found.inertia[-1] < 0.9 * found.inertia[0]


@pytest.mark.parametrize('seed', range(3))
def test_no_cluster_is_left_empty(seed):
    rows = cloud(400, 8).astype(np.float32)
    found = kmeans(jax.random.key(seed), rows, clusters=60, iterations=20)
    assert sizes(found, 60).min() > 0


def test_empty_clusters_take_over_a_part_of_others(x64):
    """Ten distinct rows, many times over: centroids that start at equal rows are of no use."""
    points = cloud(10, 4)
    rows = points[np.random.default_rng(0).integers(0, 10, 300)]
    found = kmeans(jax.random.key(3), rows, clusters=10, iterations=60)
    start = kmeans(jax.random.key(3), rows, clusters=10, iterations=1)
    assert (sizes(start, 10) == 0).any()  # as drawn, some coincide
    assert (sizes(found, 10) > 0).all()
    np.testing.assert_allclose(found.inertia[-1], 0, atol=1e-12)


def test_fewer_distinct_rows_than_clusters_leave_some_empty():
    rows = np.repeat(np.eye(3, dtype=np.float32), 4, axis=0)
    found = kmeans(jax.random.key(0), rows, clusters=6, iterations=20)
    assert sizes(found, 6).sum() == 12 and np.isfinite(found.centroids).all()
    same = kmeans(jax.random.key(0), np.zeros((12, 3), np.float32), clusters=6, iterations=5)
    assert np.isfinite(same.centroids).all()
    np.testing.assert_array_equal(same.inertia, 0)


def test_one_row_a_cluster_costs_nothing(x64):
    found = kmeans(jax.random.key(0), cloud(9), clusters=9, iterations=1)
    np.testing.assert_array_equal(np.sort(found.assignment), np.arange(9))
    np.testing.assert_array_equal(found.inertia, 0)


@pytest.mark.parametrize('tile', [1, 70, 451, 10_000])
def test_tiles_change_nothing(x64, tile):
    rows = cloud(157)
    whole = kmeans(jax.random.key(0), rows, clusters=10, iterations=15)
    tiled = kmeans(jax.random.key(0), rows, clusters=10, iterations=15, tile=tile)
    np.testing.assert_array_equal(tiled.assignment, whole.assignment)
    np.testing.assert_allclose(tiled.centroids, whole.centroids, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(tiled.inertia, whole.inertia, rtol=1e-10)


def test_the_distances_of_all_rows_are_never_held():
    rows = jax.ShapeDtypeStruct((20_000, 8), jnp.float32)
    run = functools.partial(kmeans, clusters=500, iterations=3, tile=100_000)
    compiled = jax.jit(run).lower(jax.random.key(0), rows).compile()
    # All distances are 40 MB; a tile is 0.4 MB, the rows 0.64 MB.
    assert compiled.memory_analysis().temp_size_in_bytes < 8e6


def test_the_key_decides():
    rows = cloud().astype(np.float32)
    run = functools.partial(kmeans, rows=rows, clusters=12, iterations=5)
    one, again, other = (run(jax.random.key(s)) for s in (0, 0, 1))
    for x, y in zip(one, again, strict=True):
        np.testing.assert_array_equal(x, y)
    assert (one.assignment != other.assignment).mean() > 0.5


def test_float32_stays_float32_and_float64_float64():
    rows = blobs(6, 40)[0].astype(np.float32)
    single = kmeans(jax.random.key(2), rows, clusters=6, iterations=10)
    with jax.enable_x64(True):
        double = kmeans(jax.random.key(2), rows.astype(np.float64), clusters=6, iterations=10)
    for found, dtype in ((single, np.float32), (double, np.float64)):
        assert found.centroids.dtype == found.inertia.dtype == dtype
        assert found.assignment.dtype == np.int32


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'clusters': 201}, '201 clusters of 200 rows'),
        ({'clusters': 0}, '0 clusters of 200 rows'),
        ({'iterations': 0}, 'iterations is 0'),
        ({'tile': 0}, 'tile 0'),
    ],
)
def test_refuses_what_it_cannot_do(changes, message):
    with pytest.raises(ValueError, match=message):
        kmeans(jax.random.key(0), cloud(), **{'clusters': 3, 'iterations': 2, **changes})


@pytest.mark.parametrize('seed', range(4))
def test_mutual_information_is_that_of_scikit_learn(seed):
    rng = np.random.default_rng(seed)
    a = rng.integers(0, 7, 300)
    b = np.where(rng.random(300) < 0.6, (a + 2) % 7, rng.integers(3, 12, 300))
    want = normalized_mutual_info_score(a, b, average_method='geometric')
    assert mutual_information(a, b) == pytest.approx(want, rel=1e-9)
    assert mutual_information(b, a) == pytest.approx(want, rel=1e-9)


def test_names_of_clusters_do_not_matter_to_their_mutual_information():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 9, 500)
    assert mutual_information(a, rng.permutation(9)[a]) == pytest.approx(1, abs=1e-12)
    assert mutual_information(a, np.zeros(500, int)) == 0
    assert mutual_information(np.zeros(5, int), np.zeros(5, int)) == 0
    many = rng.integers(0, 4, (2, 100_000))
    assert mutual_information(*many) < 1e-3
