"""The masked reconstruction loss against its twin, its closed forms, its slopes."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.losses.reconstruction import masked_mse, normalized


@pytest.fixture(params=[True, False], ids=['normalized', 'plain'])
def normalize(request):
    return request.param


def both(normalize):
    """The loss and its gradients to prediction and target."""
    function = functools.partial(masked_mse, normalize=normalize)
    return jax.jit(jax.value_and_grad(function, argnums=(0, 1)))


loss_of = jax.jit(masked_mse, static_argnames='normalize')


def arrays(n=3, t=5, d=6, seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    prediction, target = rng.normal(size=(2, n, t, d)).astype(dtype)
    return prediction, 0.3 + 2 * target, rng.random((n, t)) < 0.6


def test_is_its_float64_twin(x64, normalize):
    prediction, target, mask = arrays()
    loss, slopes = both(normalize)(prediction, target, mask)
    twin = lambda p, t: reference.masked_mse(p, t, mask, normalize)
    np.testing.assert_allclose(loss, twin(prediction, target), rtol=1e-12)
    for at in range(2):
        want = reference.gradient(twin, [prediction, target], at)
        np.testing.assert_allclose(slopes[at], want, atol=1e-8)


@pytest.mark.parametrize('values', [2, 16, 768])
def test_predicting_0_of_normalised_patches_costs_all_but_one_value(x64, values):
    target = 50 * arrays(2, 4, values)[1]
    mask = np.ones((2, 4), bool)
    loss = loss_of(np.zeros_like(target), target, mask, normalize=True)
    spread = np.var(target, axis=-1, ddof=1)
    want = np.mean(spread / (spread + 1e-6)) * (values - 1) / values
    np.testing.assert_allclose(loss, want, rtol=1e-12)
    if values == 768:
        assert float(loss) == pytest.approx(0.998698, abs=1e-6)


def test_the_target_itself_costs_nothing_and_an_error_its_square(x64, normalize):
    _, target, mask = arrays()
    right = normalized(jnp.asarray(target)) if normalize else jnp.asarray(target)
    assert float(loss_of(right, target, mask, normalize=normalize)) < 1e-28
    np.testing.assert_allclose(loss_of(right - 3, target, mask, normalize=normalize), 9, rtol=1e-12)


def test_patches_that_were_seen_neither_cost_nor_get_a_gradient(normalize):
    prediction, target, mask = arrays(dtype=np.float32)
    other = np.where(mask[:, :, None], prediction, 1e3).astype(np.float32)
    loss, slopes = both(normalize)(prediction, target, mask)
    assert float(loss) == float(both(normalize)(other, target, mask)[0])
    for slope in slopes:
        assert not np.any(slope[~mask]) and np.all(np.any(slope[mask], axis=-1))


def test_every_hidden_patch_counts_alike_however_many_its_image_has(x64):
    error = np.zeros((2, 4, 3))
    error[0, 0], error[1] = 2.0, 1.0
    mask = np.array([[1, 0, 0, 0], [1, 1, 1, 0]], bool)
    loss = loss_of(error, np.zeros_like(error), mask, normalize=False)
    np.testing.assert_allclose(loss, (4 + 1 + 1 + 1) / 4, rtol=1e-12)


def test_normalising_takes_out_each_patchs_own_offset_and_scale(x64):
    prediction, target, mask = arrays()
    rng = np.random.default_rng(1)
    moved = 1e3 * (target * rng.uniform(1, 2, (3, 5, 1)) + rng.normal(size=(3, 5, 1)))
    one, other = (both(True)(prediction, 1e3 * y, mask)[0] for y in (target, moved / 1e3))
    np.testing.assert_allclose(one, other, rtol=1e-9)


def test_flat_patches_have_the_target_0_and_a_finite_gradient():
    prediction, _, mask = arrays(dtype=np.float32)
    loss, slopes = both(True)(prediction, np.full_like(prediction, 0.7), mask)
    assert float(loss) == pytest.approx(np.mean(prediction[mask] ** 2), rel=1e-5)
    assert all(np.all(np.isfinite(slope)) for slope in slopes)


def test_nothing_masked_costs_0(normalize):
    prediction, target, mask = arrays(dtype=np.float32)
    loss, slopes = both(normalize)(prediction, target, np.zeros_like(mask))
    assert float(loss) == 0 and not np.any(slopes[0])


def test_gradient_is_the_slope(x64, normalize):
    prediction, target, mask = arrays()
    function = lambda p, t: masked_mse(p, t, jnp.asarray(mask), normalize=normalize)
    chex.assert_numerical_grads(
        jax.jit(function), (prediction, target), order=1, modes=['rev'], atol=1e-6, rtol=1e-6
    )


def test_bfloat16_is_computed_in_float32(normalize):
    prediction, target, mask = arrays(dtype=np.float32)
    rounded = jnp.asarray(prediction, jnp.bfloat16), jnp.asarray(target, jnp.bfloat16)
    loss, _ = both(normalize)(*rounded, mask)
    exact, _ = both(normalize)(*(x.astype(jnp.float32) for x in rounded), mask)
    assert loss.dtype == jnp.float32
    assert float(loss) == pytest.approx(float(exact), rel=1e-6)


def test_one_and_eight_devices_agree(x64, mesh8, normalize):
    given = [jnp.asarray(x) for x in arrays(24, 4, 6)]
    split = NamedSharding(mesh8, PartitionSpec('data'))
    function = functools.partial(masked_mse, normalize=normalize)
    with jax.set_mesh(mesh8):
        eight = jax.jit(jax.value_and_grad(function, argnums=(0, 1)), in_shardings=split)(*given)
    chex.assert_trees_all_close(eight, both(normalize)(*given), rtol=1e-10, atol=1e-10)
