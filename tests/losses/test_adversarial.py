"""The two players' losses against their twins, their closed forms, their slopes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.losses.adversarial import discriminator, generator, saturating_generator

LN2 = float(np.log(2))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize('shapes', [((5,), (5,)), ((4, 2), (3,)), ((), ())])
def test_are_their_float64_twins(x64, shapes):
    real, fake = (3 * normal(*shape, seed=i) for i, shape in enumerate(shapes))
    both, slopes = jax.value_and_grad(discriminator, argnums=(0, 1))(real, fake)
    np.testing.assert_allclose(both, reference.gan_discriminator(real, fake), rtol=1e-12)
    for at in range(2):
        want = reference.gradient(reference.gan_discriminator, [real, fake], at)
        np.testing.assert_allclose(slopes[at], want, atol=1e-8)
    loss, slope = jax.value_and_grad(generator)(fake)
    np.testing.assert_allclose(loss, reference.gan_generator(fake), rtol=1e-12)
    np.testing.assert_allclose(
        slope, reference.gradient(reference.gan_generator, [fake]), atol=1e-8
    )


def test_a_discriminator_that_cannot_tell_costs_2_ln_2(x64):
    half = jnp.zeros((8,))
    np.testing.assert_allclose(discriminator(half, half), 1.386294, atol=5e-7)
    np.testing.assert_allclose(generator(half), LN2, rtol=1e-15)
    np.testing.assert_allclose(saturating_generator(half), -LN2, rtol=1e-15)


def test_a_sure_one_costs_nothing_and_a_sure_mistake_its_logit():
    sure = jnp.full((4,), 200.0)
    assert float(discriminator(sure, -sure)) == 0
    assert float(discriminator(-sure, -sure)) == 200
    assert float(discriminator(sure, sure)) == 200
    assert float(generator(-sure)) == 200 and float(generator(sure)) == 0


@pytest.mark.parametrize('fakes', [1, 3, 9])
def test_the_best_verdict_is_the_share_of_real(x64, fakes):
    """arXiv 1406.2661, proposition 1: D = p_real / (p_real + p_fake), at one point in space."""

    def loss(logit):
        """Of a point that is one in ten of the real, and `fakes` in ten of the painted ones."""
        sure = jnp.full((9,), 100.0)
        real = jnp.append(sure, logit)
        fake = jnp.append(-sure[fakes - 1 :], jnp.tile(logit, fakes))
        return discriminator(real, fake)

    np.testing.assert_allclose(jax.grad(loss)(-jnp.log(fakes)), 0, atol=1e-12)
    assert float(jax.grad(loss)(-jnp.log(fakes) + 0.1)) > 0


def test_the_generator_has_the_slope_where_the_discriminator_is_sure(x64):
    caught = jnp.asarray(-20.0)
    np.testing.assert_allclose(jax.grad(generator)(caught), -1, rtol=1e-8)
    np.testing.assert_allclose(jax.grad(saturating_generator)(caught), 0, atol=1e-8)


def test_gradients_are_the_slopes(x64):
    real, fake = jnp.asarray(normal(5)), jnp.asarray(normal(5, seed=1))
    bounds = {'order': 1, 'modes': ['rev'], 'atol': 1e-6, 'rtol': 1e-6}
    chex.assert_numerical_grads(jax.jit(discriminator), (real, fake), **bounds)
    chex.assert_numerical_grads(jax.jit(generator), (fake,), **bounds)
    chex.assert_numerical_grads(jax.jit(saturating_generator), (fake,), **bounds)


def test_huge_logits_overflow_nothing():
    for logits in (jnp.asarray([1e30, -1e30]), jnp.asarray([300.0, -300.0], jnp.bfloat16)):
        value, slopes = jax.value_and_grad(discriminator, argnums=(0, 1))(logits, logits)
        assert np.isfinite(float(value)) and value.dtype == jnp.float32
        assert all(np.isfinite(np.asarray(s, np.float32)).all() for s in slopes)


def test_a_nan_shows():
    broken, good = jnp.asarray([0.0, np.nan]), jnp.zeros((2,))
    assert np.isnan(discriminator(broken, good)) and np.isnan(discriminator(good, broken))
    assert np.isnan(generator(broken)) and np.isnan(saturating_generator(broken))


def test_one_and_eight_devices_agree(x64, mesh8):
    logits = [jnp.asarray(normal(24, seed=i)) for i in range(2)]
    function = jax.value_and_grad(discriminator, argnums=(0, 1))
    split = NamedSharding(mesh8, PartitionSpec('data'))
    with jax.set_mesh(mesh8):
        eight = jax.jit(function, in_shardings=split)(*logits)
    chex.assert_trees_all_close(eight, function(*logits), rtol=1e-10, atol=1e-10)
