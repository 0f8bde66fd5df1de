"""The loss of a painted region against its twin, its closed forms, its slopes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.losses.inpainting import region_mse

loss_of = jax.jit(region_mse)
both = jax.jit(jax.value_and_grad(region_mse, argnums=(0, 1)))


def arrays(n=3, size=4, channels=2, seed=0):
    """Prediction, image, and weights of 0, 1 and 10."""
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(2, n, size, size, channels))
    return *images, rng.choice([0.0, 1.0, 10.0], size=(n, size, size))


def test_is_its_float64_twin(x64):
    given = arrays()
    loss, slopes = both(*given)
    np.testing.assert_allclose(loss, reference.region_mse(*given), rtol=1e-12)
    want = reference.gradient(reference.region_mse, given, 0)
    np.testing.assert_allclose(slopes[0], want, atol=1e-8)
    np.testing.assert_allclose(slopes[1], -want, atol=1e-8)


def test_is_the_mean_square_over_the_region(x64):
    prediction, target, _ = arrays()
    everywhere = np.ones((3, 4, 4))
    np.testing.assert_allclose(
        loss_of(prediction, target, everywhere), np.mean((prediction - target) ** 2)
    )
    # An error of 2 in a rim of 10, one of 1 in the hole, 12 of 16 pixels in the rim.
    weight = np.full((1, 4, 4), 10.0)
    weight[:, 1:3, 1:3] = 1
    error = np.where(weight > 1, 2.0, 1.0)[..., None]
    loss = loss_of(error, 0 * error, weight)
    np.testing.assert_allclose(loss, (12 * 10 * 4 + 4 * 1 * 1) / 16, rtol=1e-12)


def test_outside_the_region_nothing_counts_and_nothing_moves():
    prediction, target, weight = arrays()
    elsewhere = np.where(weight[..., None] > 0, prediction, 1e6)
    loss, slopes = both(prediction, target, weight)
    other, others = both(elsewhere, target, weight)
    assert float(loss) == float(other)
    for slope in (slopes[0], others[0]):
        assert (np.asarray(slope)[weight == 0] == 0).all()
        assert (np.asarray(slope)[weight > 0] != 0).all()


def test_is_zero_where_the_region_is_right_and_only_there():
    prediction, target, weight = arrays()
    painted = np.where(weight[..., None] > 0, target, prediction)
    assert float(both(painted, target, weight)[0]) == 0
    at = tuple(np.argwhere(weight > 0)[0])
    painted[at] += 0.1
    assert float(both(painted, target, weight)[0]) > 0


def test_small_and_large_regions_count_alike(x64):
    weight = np.zeros((2, 4, 4))
    weight[0, 0, 0] = 1
    weight[1] = 1
    error = np.stack([np.full((4, 4, 1), 3.0), np.full((4, 4, 1), 1.0)])
    np.testing.assert_allclose(loss_of(error, 0 * error, weight), (9 + 1) / 2)


def test_an_image_without_region_costs_nothing():
    prediction, target, weight = arrays()
    loss, slopes = both(prediction, target, np.zeros_like(weight))
    assert float(loss) == 0
    assert not np.any(slopes[0])


def test_gradient_is_the_slope(x64):
    prediction, target, weight = (jnp.asarray(a) for a in arrays())
    chex.assert_numerical_grads(
        lambda p: loss_of(p, target, weight),
        (prediction,),
        order=1,
        modes=['rev'],
        atol=1e-6,
        rtol=1e-6,
    )


def test_is_computed_in_at_least_float32():
    prediction, target, weight = arrays()
    half = jnp.asarray(prediction, jnp.bfloat16)
    loss = region_mse(half, jnp.asarray(target, jnp.bfloat16), jnp.asarray(weight))
    assert loss.dtype == jnp.float32
    want = region_mse(half.astype(jnp.float32), jnp.asarray(target), jnp.asarray(weight))
    assert float(loss) == pytest.approx(float(want), rel=1e-2)


def test_one_and_eight_devices_agree(x64, mesh8):
    given = [jnp.asarray(a) for a in arrays(n=16)]
    split = NamedSharding(mesh8, PartitionSpec('data'))
    with jax.set_mesh(mesh8):
        eight = jax.jit(region_mse, in_shardings=split)(*given)
    np.testing.assert_allclose(eight, region_mse(*given), rtol=1e-12)
