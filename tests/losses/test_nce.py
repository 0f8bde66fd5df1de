"""The losses against a memory bank: twins, closed forms, slopes, tiles, devices."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.losses.nce import (
    counts,
    instance_softmax,
    log_partition,
    nce,
    sampled_softmax,
    similarities,
    similarities_to_all,
)


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def units(*shape, seed=0):
    rows = normal(*shape, seed=seed)
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture
def v(x64):
    return jnp.asarray(normal(5, 4))


@pytest.fixture
def bank(x64):
    return jnp.asarray(units(11, 4, seed=1))


INDEX = jnp.asarray([3, 0, 9, 7, 3])
ROWS = jnp.asarray(np.random.default_rng(2).integers(0, 11, (5, 6)), jnp.int32)


@functools.partial(jax.jit, static_argnums=4)
def softmax(v, bank, index, temperature, tile):
    """`instance_softmax` and its gradients to v and bank."""

    def loss(v, bank):
        return instance_softmax(v, bank, index, temperature=temperature, tile=tile)

    return jax.value_and_grad(loss, argnums=(0, 1))(v, bank)


# The softmax over the whole bank


@pytest.mark.parametrize('tile', [None, 1, 2, 3, 100])
def test_instance_softmax_is_its_float64_twin(v, bank, tile):
    loss, slopes = softmax(v, bank, INDEX, 0.3, tile)
    twin = lambda v, bank: reference.instance_softmax(v, bank, INDEX, 0.3)
    np.testing.assert_allclose(loss, twin(v, bank), rtol=1e-12)
    for at in range(2):
        want = reference.gradient(twin, [v, bank], at)
        np.testing.assert_allclose(slopes[at], want, atol=1e-8)


def test_equal_rows_cost_the_logarithm_of_their_number(x64):
    bank = jnp.tile(units(1, 4), (4096, 1))
    v = jnp.asarray(normal(5, 4))
    loss, _ = softmax(v, bank, INDEX, 0.07, 2)
    assert float(loss) == pytest.approx(8.317766, abs=5e-7)


def test_orthogonal_rows_and_found_ones_have_their_closed_form(x64):
    loss, _ = softmax(7 * jnp.eye(16), jnp.eye(16), jnp.arange(16), 0.1, None)
    np.testing.assert_allclose(loss, np.log(1 + 15 * np.exp(-10)), rtol=1e-10)


def test_gradient_of_instance_softmax_is_the_slope(v, bank):
    for tile in (None, 2):
        loss = jax.jit(
            lambda v, bank, t, tile=tile: instance_softmax(v, bank, INDEX, temperature=t, tile=tile)
        )
        chex.assert_numerical_grads(
            loss, (v, bank, jnp.asarray(0.3)), order=1, modes=['rev'], atol=1e-6, rtol=1e-6
        )


# Estimates of it


def test_similarities_are_products_with_the_rows_asked_for(v, bank):
    want = np.einsum('nd,nkd->nk', units(5, 4), np.asarray(bank)[ROWS]) / 0.3

    def squares(v, bank, tile):
        return jnp.sum(similarities(v, bank, ROWS, temperature=0.3, tile=tile) ** 2)

    wanted = jax.grad(squares, argnums=(0, 1))(v, bank, None)
    for tile in (None, 1, 2, 3, 100):
        s = similarities(v, bank, ROWS, temperature=0.3, tile=tile)
        np.testing.assert_allclose(s, want, rtol=1e-12, atol=1e-15)
        found = jax.grad(squares, argnums=(0, 1))(v, bank, tile)
        chex.assert_trees_all_close(found, wanted, rtol=1e-12, atol=1e-12)
    dense = lambda v, bank: squares(v, bank, None)
    chex.assert_numerical_grads(
        jax.jit(dense), (v, bank), order=1, modes=['rev'], atol=1e-6, rtol=1e-6
    )


def test_nce_is_its_float64_twin(x64):
    positive, noise, z = jnp.asarray(normal(5)), jnp.asarray(normal(5, 7, seed=1)), 13.0
    f = jax.jit(lambda positive, noise: nce(positive, noise, float(np.log(z)), rows=50))
    twin = lambda positive, noise: reference.nce(positive, noise, z, 50)
    loss, slopes = jax.value_and_grad(f, argnums=(0, 1))(positive, noise)
    np.testing.assert_allclose(loss, twin(positive, noise), rtol=1e-12)
    for at in range(2):
        want = reference.gradient(twin, [positive, noise], at)
        np.testing.assert_allclose(slopes[at], want, atol=1e-8)
    chex.assert_numerical_grads(f, (positive, noise), order=1, modes=['rev'], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ('k', 'value'),
    [
        (1024, 7.931960),
        (4096, 9.317888),
        (16_384, 10.704091),
        (32_000, 11.373507),
        (65_536, 12.090363),
    ],
)
def test_nce_of_uniform_chances_has_its_closed_form(x64, k, value):
    rows, s = 1_281_167, 0.7
    loss = nce(jnp.full(2, s), jnp.full((2, k), s), s + np.log(rows), rows=rows)
    assert float(loss) == pytest.approx(np.log(k + 1) + k * np.log(1 + 1 / k), rel=1e-10)
    assert float(loss) == pytest.approx(value, abs=5e-7)


def test_nce_stays_finite_where_h_rounds_to_0_or_1():
    positive, noise = jnp.asarray([-200.0, 200.0]), jnp.asarray([[200.0], [-200.0]])
    loss, slopes = jax.value_and_grad(lambda *s: nce(*s, 0.0, rows=10), (0, 1))(positive, noise)
    # Two wrong answers cost 200 each for the first example, up to the logarithm of k P_n.
    assert float(loss) == pytest.approx(200.0, rel=1e-5)
    np.testing.assert_allclose(slopes[0], [-0.5, 0])
    np.testing.assert_allclose(slopes[1], [[0.5], [0]])


def test_z_is_the_number_of_rows_times_the_mean_of_what_was_seen(v, bank):
    positive, noise = jnp.asarray(normal(3)), jnp.asarray(normal(3, 4, seed=1))
    seen = np.exp(np.concatenate([positive[:, None], noise], axis=1))
    np.testing.assert_allclose(log_partition(positive, noise, 50), np.log(50 * seen.mean()))
    # Over all rows it is the sum of equation 2: nothing is left to be estimated.
    s = similarities(v, bank, jnp.tile(jnp.arange(11), (5, 1)), temperature=0.3)
    z = np.exp(np.asarray(s[:1])).sum()
    np.testing.assert_allclose(log_partition(s[0, :1], s[:1, 1:], 11), np.log(z))


@pytest.mark.parametrize('loss', [log_partition, nce, sampled_softmax])
def test_all_rows_by_their_counts_are_the_rows_drawn(v, bank, loss):
    """Rows come more than once here: 20 are drawn of 11."""
    drawn = jnp.asarray(np.random.default_rng(3).integers(0, 11, (5, 20)), jnp.int32)
    at = {log_partition: (11,), nce: (1.3,), sampled_softmax: ()}[loss]
    loss = functools.partial(loss, rows=11) if loss is nce else loss

    def by_rows(v):
        s = similarities(v, bank, jnp.concatenate([INDEX[:, None], drawn], 1), temperature=0.3)
        return loss(s[:, 0], s[:, 1:], *at)

    def by_counts(v):
        own = similarities(v, bank, INDEX[:, None], temperature=0.3)[:, 0]
        every = similarities_to_all(v, bank, temperature=0.3)
        return loss(own, every, *at, times=counts(drawn, len(bank)))

    want, found = (jax.jit(jax.value_and_grad(f))(v) for f in (by_rows, by_counts))
    chex.assert_trees_all_close(found, want, rtol=1e-12, atol=1e-14)


def test_counts_are_those_of_each_example():
    rows = jnp.asarray([[3, 0, 3], [1, 1, 1]])
    np.testing.assert_array_equal(counts(rows, 5), [[1, 0, 0, 2, 0], [0, 3, 0, 0, 0]])


def test_cross_entropy_with_all_other_rows_is_the_full_softmax(v, bank):
    others = np.stack([np.delete(np.arange(11), own) for own in INDEX])
    rows = jnp.concatenate([INDEX[:, None], others], axis=1)

    def sampled(v):
        s = similarities(v, bank, rows, temperature=0.3)
        return sampled_softmax(s[:, 0], s[:, 1:])

    loss, slope = jax.value_and_grad(sampled)(v)
    want, slopes = softmax(v, bank, INDEX, 0.3, None)
    np.testing.assert_allclose(loss, want, rtol=1e-12)
    np.testing.assert_allclose(slope, slopes[0], rtol=1e-10, atol=1e-12)


def test_cross_entropy_of_equal_similarities_counts_the_candidates(x64):
    loss = sampled_softmax(jnp.ones(3), jnp.ones((3, 65_536)))
    assert float(loss) == pytest.approx(11.090370, abs=5e-7)


# What all share


def losses(v, bank, index, rows, tile=None):
    s = similarities(v, bank, rows, temperature=0.3, tile=tile)
    full = instance_softmax(v, bank, index, temperature=0.3, tile=tile)
    every, times = similarities_to_all(v, bank, temperature=0.3), counts(rows, len(bank))
    return (
        full
        + nce(s[:, 0], every, 2.0, rows=len(bank), times=times)
        + 2 * nce(s[:, 0], s[:, 1:], 1.0, rows=len(bank))
        + 3 * sampled_softmax(s[:, 0], s[:, 1:])
    )


@pytest.mark.slow
@pytest.mark.parametrize('tile', [None, 8, 12])
def test_one_and_eight_devices_agree(x64, mesh8, tile):
    v, bank = jnp.asarray(normal(24, 4)), jnp.asarray(units(50, 4, seed=1))
    rng = np.random.default_rng(3)
    index, rows = jnp.asarray(rng.permutation(50)[:24]), jnp.asarray(rng.integers(0, 50, (24, 6)))
    both = jax.value_and_grad(functools.partial(losses, tile=tile), argnums=(0, 1))
    split, whole = (NamedSharding(mesh8, PartitionSpec(*axes)) for axes in (('data',), ()))
    with jax.set_mesh(mesh8):
        eight = jax.jit(both, in_shardings=(split, whole, split, split))(v, bank, index, rows)
    chex.assert_trees_all_close(eight, both(v, bank, index, rows), rtol=1e-10, atol=1e-10)


def test_lengths_of_v_do_not_matter_and_zero_vectors_get_no_gradient(v, bank):
    lengths = 10.0 ** np.linspace(-30, 30, 5)[:, None]
    for f in (
        lambda v: softmax(v, bank, INDEX, 0.3, None)[0],
        lambda v: jnp.sum(similarities(v, bank, ROWS, temperature=0.3)),
    ):
        np.testing.assert_allclose(f(v * lengths), f(v), rtol=1e-12)
        np.testing.assert_array_equal(jax.grad(f)(np.zeros_like(v)), 0)


def test_bfloat16_is_computed_in_float32():
    v = jnp.asarray(normal(5, 4), jnp.bfloat16)
    bank = jnp.asarray(units(11, 4, seed=1), jnp.float32)
    loss, slopes = softmax(v, bank, INDEX, 0.3, None)
    assert loss.dtype == jnp.float32 and slopes[0].dtype == jnp.bfloat16
    single, _ = softmax(v.astype(jnp.float32), bank, INDEX, 0.3, None)
    assert float(loss) == pytest.approx(float(single), rel=1e-6)
    assert similarities(v, v, ROWS % 5, temperature=0.3).dtype == jnp.float32


def test_rows_of_tiles_are_not_held_for_the_backward_pass():
    def size(tile):
        v, bank = (jax.ShapeDtypeStruct((rows, 32), jnp.float32) for rows in (128, 1000))
        rows = jax.ShapeDtypeStruct((128, 256), jnp.int32)
        f = lambda v, bank, rows: jnp.sum(
            similarities(v, bank, rows, temperature=0.3, tile=tile) ** 2
        )
        compiled = jax.jit(jax.value_and_grad(f)).lower(v, bank, rows).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert size(8) < size(None) / 4


def test_bad_input_is_refused_with_advice(v, bank):
    for temperature in (0.0, float('nan')):
        with pytest.raises(ValueError, match=r'temperature is .*expected > 0'):
            instance_softmax(v, bank, INDEX, temperature=temperature)
        with pytest.raises(ValueError, match=r'temperature is .*expected > 0'):
            similarities(v, bank, ROWS, temperature=temperature)
        with pytest.raises(ValueError, match=r'temperature is .*expected > 0'):
            similarities_to_all(v, bank, temperature=temperature)
    with pytest.raises(ValueError, match=r'tile is 0 rows, expected at least 1'):
        instance_softmax(v, bank, INDEX, temperature=0.3, tile=0)
    with pytest.raises(ValueError, match=r'tile is -1 rows, expected at least 1'):
        similarities(v, bank, ROWS, temperature=0.3, tile=-1)
