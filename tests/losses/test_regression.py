"""The regression loss against its twin, its closed forms, its slopes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.losses.regression import negative_cosine

both = jax.jit(jax.value_and_grad(negative_cosine, argnums=(0, 1)))
"""The loss and its gradients to prediction and target."""


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@pytest.mark.parametrize('shape', [(5, 3), (4, 2, 6), (1, 8)])
def test_is_its_float64_twin(x64, shape):
    arrays = [normal(*shape), normal(*shape, seed=1)]
    loss, slopes = both(*arrays)
    np.testing.assert_allclose(loss, reference.negative_cosine(*arrays), rtol=1e-12)
    for at in range(2):
        want = reference.gradient(reference.negative_cosine, arrays, at)
        np.testing.assert_allclose(slopes[at], want, atol=1e-8)


def test_aligned_costs_0_orthogonal_2_opposite_4(x64):
    a, b = jnp.asarray([[3.0, 4.0], [0.0, 2.0]]), jnp.asarray([[-8.0, 6.0], [5.0, 0.0]])
    for target, want in ((a, 0), (7 * a, 0), (b, 2), (-a, 4), (-0.1 * a, 4)):
        np.testing.assert_allclose(negative_cosine(a, target), want, atol=1e-15)


def test_is_the_squared_distance_of_unit_vectors(x64):
    p, t = normal(6, 4), normal(6, 4, seed=1)
    of_length_1 = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (p, t)]
    distance = np.mean(np.sum((of_length_1[0] - of_length_1[1]) ** 2, axis=1))
    np.testing.assert_allclose(both(p, t)[0], distance, rtol=1e-12)


def test_gradient_is_the_slope(x64):
    arguments = jnp.asarray(normal(4, 3)), jnp.asarray(normal(4, 3, seed=1))
    chex.assert_numerical_grads(
        jax.jit(negative_cosine), arguments, order=1, modes=['rev'], atol=1e-6, rtol=1e-6
    )


def test_lengths_do_not_matter():
    p, t = normal(6, 8, dtype=np.float32), normal(6, 8, seed=1, dtype=np.float32)
    lengths = (10.0 ** np.linspace(-30, 30, 6)[:, None]).astype(np.float32)
    want = float(both(p, t)[0])
    assert float(both(p * lengths, t)[0]) == pytest.approx(want, rel=1e-6)
    assert float(both(p, t * lengths)[0]) == pytest.approx(want, rel=1e-6)


def test_zero_vectors_cost_2_and_get_no_gradient():
    p, t = normal(4, 8, dtype=np.float32), normal(4, 8, seed=1, dtype=np.float32)
    zeros = np.zeros_like(p)
    for arguments in ((zeros, t), (p, zeros), (zeros, zeros)):
        loss, slopes = both(*arguments)
        assert float(loss) == 2
        chex.assert_trees_all_equal(slopes, (zeros, zeros))


def test_float32_is_float64_to_1e_6():
    p = normal(64, 32)
    t = p + 0.5 * normal(64, 32, seed=1)
    single = both(p.astype(np.float32), t.astype(np.float32))
    with jax.enable_x64(True):
        double = both(p, t)
    chex.assert_trees_all_close(single, double, rtol=1e-4, atol=1e-6)
    assert single[0].dtype == jnp.float32


def test_bfloat16_is_computed_in_float32():
    p, t = jnp.asarray(normal(8, 32), jnp.bfloat16), jnp.asarray(normal(8, 32, seed=1))
    loss, slopes = both(p, t)
    assert loss.dtype == jnp.float32 and slopes[0].dtype == jnp.bfloat16
    assert float(loss) == pytest.approx(float(both(p.astype(jnp.float32), t)[0]), rel=1e-6)


@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_broken_embedding_shows_in_the_loss(bad):
    p, t = normal(4, 8, dtype=np.float32), normal(4, 8, seed=1, dtype=np.float32)
    p[1, 2] = bad
    assert np.isnan(both(p, t)[0]) and np.isnan(both(t, p)[0])


def test_one_and_eight_devices_agree(x64, mesh8):
    arrays = [jnp.asarray(normal(24, 2, 8)), jnp.asarray(normal(24, 2, 8, seed=1))]
    split = NamedSharding(mesh8, PartitionSpec('data'))
    function = jax.value_and_grad(negative_cosine, argnums=(0, 1))
    with jax.set_mesh(mesh8):
        eight = jax.jit(function, in_shardings=split)(*arrays)
    chex.assert_trees_all_close(eight, both(*arrays), rtol=1e-10, atol=1e-10)
