"""Collapse measures of features whose values are known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.evaluate.collapse import alarms, alignment, effective_rank, feature_std, uniformity

SPREAD = np.random.default_rng(0).normal(size=(4000, 16)).astype(np.float32)


@pytest.mark.parametrize('d', [4, 16, 128])
def test_std_of_isotropic_directions_is_one_over_root_d(d):
    x = np.random.default_rng(1).normal(size=(20000, d))
    assert feature_std(jnp.asarray(x, jnp.float32)) == pytest.approx(d**-0.5, rel=0.02)


def test_std_of_equal_directions_is_zero_whatever_their_length():
    x = jnp.arange(1.0, 9.0)[:, None] * jnp.array([[3.0, 4.0]])
    assert feature_std(x) == pytest.approx(0.0, abs=1e-6)


def test_std_of_plus_and_minus_one_axis():
    x = jnp.array([[1.0, 0.0], [-2.0, 0.0]])
    assert feature_std(x) == pytest.approx(0.5)


@pytest.mark.parametrize('d', [2, 7, 64])
def test_effective_rank_of_an_isotropic_frame_is_its_dimension(d):
    frame = jnp.tile(jnp.eye(d), (5, 1))
    assert effective_rank(frame) == pytest.approx(d, rel=1e-4)


def test_effective_rank_of_rank_one_is_one_in_many_dimensions():
    rng = np.random.default_rng(2)
    x = np.outer(rng.normal(size=300), rng.normal(size=256)).astype(np.float32)
    assert effective_rank(jnp.asarray(x)) == pytest.approx(1.0, abs=5e-3)


def test_effective_rank_of_two_unequal_directions():
    p = np.array([0.75, 0.25])
    expected = np.exp(-np.sum(p * np.log(p)))
    assert effective_rank(jnp.diag(jnp.array([3.0, 1.0]))) == pytest.approx(expected, rel=1e-5)


def test_effective_rank_knows_scale_and_rotation_from_shape():
    rotation, _ = np.linalg.qr(np.random.default_rng(3).normal(size=(16, 16)))
    x = SPREAD * np.linspace(0.1, 2, 16, dtype=np.float32)
    turned = np.float32(1e3 * x @ rotation)
    rank = float(effective_rank(jnp.asarray(x)))
    assert effective_rank(jnp.asarray(turned)) == pytest.approx(rank, rel=1e-4)
    assert 5 < rank < 15.9


def test_effective_rank_of_nothing_is_one():
    assert effective_rank(jnp.zeros((5, 3))) == 1


def test_alignment_of_identical_views_is_zero():
    assert alignment(SPREAD, 5 * SPREAD) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(('alpha', 'expected'), [(1.0, 2.0), (2.0, 4.0), (3.0, 8.0)])
def test_alignment_of_opposite_views(alpha, expected):
    assert alignment(SPREAD, -SPREAD, alpha=alpha) == pytest.approx(expected, rel=1e-5)


def test_alignment_of_orthogonal_views_is_two():
    a, b = jnp.array([[1.0, 0.0], [0.0, 2.0]]), jnp.array([[0.0, 3.0], [1.0, 0.0]])
    assert alignment(a, b) == pytest.approx(2.0)


def test_uniformity_of_two_antipodal_points():
    x = jnp.array([[1.0, 0.0], [-3.0, 0.0]])
    assert uniformity(x) == pytest.approx(-8.0)
    assert uniformity(x, t=0.5) == pytest.approx(-2.0)


def test_uniformity_of_a_single_direction_is_zero():
    assert uniformity(jnp.ones((10, 4))) == pytest.approx(0.0, abs=1e-5)


def test_uniformity_of_features_that_are_zero():
    assert uniformity(jnp.zeros((10, 4))) == pytest.approx(0.0, abs=1e-6)
    x = np.concatenate([np.eye(3), np.zeros((2, 3))])
    square = ((x[:, None] - x[None]) ** 2).sum(-1)[np.triu_indices(5, 1)]
    expected = np.log(np.mean(np.exp(-2 * square)))
    assert uniformity(jnp.asarray(x, jnp.float32)) == pytest.approx(expected, rel=1e-5)


def test_uniformity_of_orthogonal_axes():
    assert uniformity(jnp.eye(6)) == pytest.approx(-4.0, rel=1e-6)


@pytest.mark.parametrize('n', [2, 63, 64, 65, 150])
def test_uniformity_counts_each_pair_once_in_tiles(n):
    x = SPREAD[:n] / np.linalg.norm(SPREAD[:n], axis=1, keepdims=True)
    square = ((x[:, None] - x[None]) ** 2).sum(-1)[np.triu_indices(n, 1)]
    expected = np.log(np.mean(np.exp(-2 * square)))
    assert uniformity(jnp.asarray(SPREAD[:n]), tile=64) == pytest.approx(expected, rel=1e-4)


def test_uniformity_needs_no_matrix_of_all_pairs():
    x = jax.ShapeDtypeStruct((8192, 16), jnp.float32)
    compiled = uniformity.lower(x, tile=128).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * 8192**2 / 16


def test_alarms_ring_below_the_thresholds_and_for_nan():
    healthy = {'feature_std': 0.3 / 16, 'effective_rank': 5.1}
    assert alarms(healthy, 256) == ()
    (spread,) = alarms({**healthy, 'feature_std': 0.19 / 16}, 256)
    assert 'feature_std' in spread and '0.0125' in spread
    (rank,) = alarms({**healthy, 'effective_rank': 4.9}, 256)
    assert 'effective_rank' in rank and 'below 5' in rank
    assert len(alarms(dict.fromkeys(healthy, float('nan')), 256)) == 2


def test_two_dimensions_cannot_have_rank_five():
    assert alarms({'effective_rank': 1.9}, 2) == ()
    assert len(alarms({'effective_rank': 0.9}, 2)) == 1
