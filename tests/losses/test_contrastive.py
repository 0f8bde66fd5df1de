import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference

from ssljax.losses.contrastive import info_nce, nt_xent, unit


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@functools.partial(jax.jit, static_argnums=2)
def simclr(z, temperature, tile):
    """`nt_xent` and its gradient to z."""
    return jax.value_and_grad(lambda z: nt_xent(z, temperature=temperature, tile=tile))(z)


@functools.partial(jax.jit, static_argnums=2)
def moco(arrays, temperature, tile):
    """`info_nce` and its gradient to query, key and, where given, negatives."""
    return jax.value_and_grad(lambda a: info_nce(*a, temperature=temperature, tile=tile))(arrays)


def relative(got, want):
    """The norm of the difference over the norm of what is wanted."""
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    return np.linalg.norm(got - want) / np.linalg.norm(want)


# Values


@pytest.mark.parametrize('tile', [None, 4])
@pytest.mark.parametrize(
    'shape, temperature', [((5, 2, 4), 0.5), ((3, 4, 2), 0.1), ((1, 3, 5), 1.0)]
)
def test_nt_xent_is_its_float64_twin(x64, shape, temperature, tile):
    z = normal(*shape)
    loss, slopes = simclr(z, temperature, tile)
    twin = functools.partial(reference.nt_xent, temperature=temperature)
    np.testing.assert_allclose(loss, twin(z), rtol=1e-12)
    np.testing.assert_allclose(slopes, reference.gradient(twin, [z]), atol=1e-8)


@pytest.mark.parametrize('tile', [None, 2])
@pytest.mark.parametrize('count', [None, 7])
def test_info_nce_is_its_float64_twin(x64, count, tile):
    arrays = [normal(5, 3, seed=1), normal(5, 3, seed=2)]
    if count:
        arrays.append(normal(count, 3, seed=3))

    def twin(query, key, negatives=None):
        return reference.info_nce(query, key, negatives, temperature=0.2)

    loss, slopes = moco(arrays, 0.2, tile)
    np.testing.assert_allclose(loss, twin(*arrays), rtol=1e-12)
    for at in range(len(arrays)):
        np.testing.assert_allclose(slopes[at], reference.gradient(twin, arrays, at), atol=1e-8)


@pytest.mark.parametrize('tile', [None, 100])
@pytest.mark.parametrize('n, value', [(2, 1.098612), (8, 2.708050), (256, 6.236370)])
def test_nt_xent_of_identical_embeddings_counts_the_candidates(x64, n, value, tile):
    z = jnp.ones((n, 2, 16))
    loss = float(simclr(z, 0.1, tile)[0])
    assert loss == pytest.approx(np.log(2 * n - 1), rel=1e-12)
    assert loss == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize('n, value', [(8, 1.062879), (256, 4.248795), (512, 4.936721)])
def test_nt_xent_of_perfect_pairs_of_orthogonal_examples(x64, n, value):
    z = jnp.repeat(3 * jnp.eye(n)[:, None], 2, axis=1)
    assert float(simclr(z, 0.5, None)[0]) == pytest.approx(value, abs=5e-7)


@pytest.mark.parametrize('tile', [None, 1])
def test_one_pair_has_nothing_to_be_told_from(tile):
    z = jnp.asarray(normal(1, 2, 8, dtype=np.float32))
    for loss, slopes in (simclr(z, 0.1, tile), moco((z[:, 0], z[:, 1]), 0.1, tile)):
        assert float(loss) == 0
        chex.assert_trees_all_equal(slopes, jax.tree.map(jnp.zeros_like, slopes))


@pytest.mark.parametrize(
    'temperature, value', [(0.07, 0.040135), (0.1, 1.380108), (0.2, 6.092617), (0.5, 9.090468)]
)
def test_info_nce_of_65536_orthogonal_negatives(x64, temperature, value):
    query = jnp.asarray([[2.0, 0.0]])
    negatives = jnp.tile(jnp.asarray([[0.0, 1.0]]), (65_536, 1))
    loss, _ = moco((query, query, negatives), temperature, None)
    assert float(loss) == pytest.approx(value, abs=5e-7)


def test_info_nce_of_equal_similarities_counts_the_candidates(x64):
    ones = jnp.ones((4, 8))
    assert float(moco((ones, ones), 0.2, None)[0]) == pytest.approx(np.log(4), rel=1e-12)
    queue = jnp.ones((65_536, 8))
    assert float(moco((ones, ones, queue), 0.2, None)[0]) == pytest.approx(11.090370, abs=5e-7)


def test_nt_xent_is_optax_ntxent():
    z = jnp.asarray(normal(6, 2, 16, dtype=np.float32))
    labels = jnp.repeat(jnp.arange(6), 2)

    def oracle(z):
        return optax.losses.ntxent(z.reshape(12, 16), labels, temperature=0.2)

    want = jax.jit(jax.value_and_grad(oracle))(z)
    for tile in (None, 5):
        chex.assert_trees_all_close(simclr(z, 0.2, tile), want, rtol=1e-4, atol=1e-6)


# Gradients


@pytest.mark.parametrize('tile', [None, 4])
@pytest.mark.parametrize('v', [2, 3])
def test_gradient_of_nt_xent_is_the_slope(x64, v, tile):
    @jax.jit
    def loss(z, temperature):
        return nt_xent(z, temperature=temperature, tile=tile)

    arguments = (jnp.asarray(normal(4, v, 3)), jnp.asarray(0.3))
    chex.assert_numerical_grads(loss, arguments, order=1, modes=['rev'], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize('tile', [None, 2])
@pytest.mark.parametrize('count', [None, 9])
def test_gradient_of_info_nce_is_the_slope(x64, count, tile):
    @jax.jit
    def loss(query, key, negatives, temperature):
        return info_nce(query, key, negatives, temperature=temperature, tile=tile)

    negatives = None if count is None else jnp.asarray(normal(count, 3, seed=3))
    arguments = (jnp.asarray(normal(5, 3)), jnp.asarray(normal(5, 3, seed=1)), negatives)
    chex.assert_numerical_grads(
        loss, (*arguments, jnp.asarray(0.3)), order=1, modes=['rev'], atol=1e-6, rtol=1e-6
    )


@pytest.mark.parametrize('tile', [None, 96])
@pytest.mark.parametrize('temperature', [0.5, 0.1, 0.02])
def test_float32_gradient_is_the_float64_gradient_to_1e_5(temperature, tile):
    z = normal(256, 2, 128)
    # Two views of one example are alike, as in training.
    z = (z[:, :1] + 0.5 * z).astype(np.float32)
    loss, slopes = simclr(z, temperature, tile)
    with jax.enable_x64(True):
        exact = simclr(z.astype(np.float64), temperature, None)
    assert loss.dtype == slopes.dtype == jnp.float32
    # The loss is a difference of logits of 1 / temperature, each exact to float32's epsilon.
    assert abs(float(loss) - float(exact[0])) < 1e-6 / temperature
    assert relative(slopes, exact[1]) < 1e-5


# Invariances


@pytest.mark.parametrize('tile', [None, 5])
def test_nt_xent_forgets_the_order_of_examples_and_views(x64, tile):
    z = normal(6, 3, 4)

    def loss(z):
        return simclr(z, 0.2, tile)[0]

    np.testing.assert_allclose(loss(np.random.default_rng(1).permutation(z)), loss(z), rtol=1e-12)
    np.testing.assert_allclose(loss(z[:, ::-1]), loss(z), rtol=1e-12)
    # Two views of one example exchanged, the rest left alone.
    swapped = np.concatenate([z[:1, [1, 0, 2]], z[1:]])
    np.testing.assert_allclose(loss(swapped), loss(z), rtol=1e-12)
    # Views of different examples exchanged: another loss.
    mixed = np.concatenate([z[[1, 0, 2, 3, 4, 5], :1], z[:, 1:]], axis=1)
    assert abs(loss(mixed) - loss(z)) > 1e-3


def test_info_nce_forgets_the_order_of_examples_and_of_negatives(x64):
    q, k, negatives = (normal(8, 4, seed=seed) for seed in range(3))
    order = np.random.default_rng(1).permutation(8)

    def loss(*arrays):
        return moco(arrays, 0.2, None)[0]

    np.testing.assert_allclose(loss(q[order], k[order]), loss(q, k), rtol=1e-12)
    want = loss(q, k, negatives)
    np.testing.assert_allclose(loss(q[order], k[order], negatives), want, rtol=1e-12)
    np.testing.assert_allclose(loss(q, k, negatives[order]), want, rtol=1e-12)
    assert abs(loss(q, k[order], negatives) - want) > 1e-3


def test_lengths_do_not_matter():
    z = normal(6, 2, 16, dtype=np.float32)
    lengths = (10.0 ** np.linspace(-30, 30, 12).reshape(6, 2, 1)).astype(np.float32)
    loss, slopes = simclr(z, 0.2, None)
    of_scaled, scaled_slopes = simclr(z * lengths, 0.2, None)
    assert float(of_scaled) == pytest.approx(float(loss), rel=1e-6)
    # The gradient shrinks as the vector grows.
    assert relative(scaled_slopes * lengths, slopes) < 1e-5
    arrays = z[:4, 0], z[:4, 1], z[4:, 0]
    scaled = arrays[0] * lengths[:4, 0], arrays[1] * lengths[2:, 1], 1e-20 * arrays[2]
    loss, of_scaled = (moco(a, 0.2, None)[0] for a in (arrays, scaled))
    assert float(of_scaled) == pytest.approx(float(loss), rel=1e-6)


def test_unit_vectors_have_length_one_and_zero_stays_zero():
    x = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [-3e30, 4e30], [3e-30, -4e-30]])
    np.testing.assert_allclose(unit(x), [[0.6, 0.8], [0, 0], [-0.6, 0.8], [0.6, -0.8]], rtol=1e-6)


@pytest.mark.parametrize('tile', [None, 3])
def test_zero_vectors_give_finite_loss_and_no_gradient(tile):
    z = normal(4, 2, 8, dtype=np.float32)
    z[1, 0] = 0
    for batch in (z, np.zeros_like(z)):
        loss, slopes = simclr(batch, 0.1, tile)
        assert np.isfinite(loss) and np.isfinite(slopes).all()
        np.testing.assert_array_equal(slopes[1, 0], 0)
    # Similarity 0 to everything, so a batch of zeros costs as much as one of equal vectors.
    assert float(loss) == pytest.approx(np.log(7))

    zeros = np.zeros((4, 8), np.float32)
    for arrays in ((zeros, z[:, 0]), (zeros, z[:, 0], z[:, 1])):
        loss, slopes = moco(arrays, 0.1, tile)
        assert float(loss) == pytest.approx(np.log(4 if len(arrays) == 2 else 5))
        chex.assert_tree_all_finite(slopes)
        np.testing.assert_array_equal(slopes[0], 0)


@pytest.mark.parametrize('tile', [None, 3])
@pytest.mark.parametrize('bad', [np.nan, np.inf])
def test_a_broken_embedding_shows_in_the_loss(bad, tile):
    z = normal(4, 2, 8, dtype=np.float32)
    z[1, 0, 3] = bad
    assert np.isnan(simclr(z, 0.1, tile)[0])
    assert np.isnan(moco((z[:, 0], z[:, 1]), 0.1, tile)[0])


@pytest.mark.parametrize('tile', [None, 6])
def test_bfloat16_is_computed_in_float32(tile):
    half = jnp.asarray(normal(8, 2, 32), jnp.bfloat16)
    loss, slopes = simclr(half, 0.1, tile)
    assert loss.dtype == jnp.float32 and slopes.dtype == jnp.bfloat16
    single, of_single = simclr(half.astype(jnp.float32), 0.1, tile)
    assert float(loss) == pytest.approx(float(single), rel=1e-6)
    assert relative(slopes, of_single) < 2**-8
    arrays = half[:, 0], half[:, 1], half[:, 1].astype(jnp.float32)
    loss, slopes = moco(arrays, 0.1, tile)
    single, _ = moco([a.astype(jnp.float32) for a in arrays], 0.1, tile)
    assert loss.dtype == jnp.float32 and [a.dtype for a in slopes] == [a.dtype for a in arrays]
    assert float(loss) == pytest.approx(float(single), rel=1e-6)


# Bad input


def test_bad_input_is_refused_with_advice():
    z, q = jnp.ones((4, 2, 8)), jnp.ones((4, 8))
    with pytest.raises(ValueError, match=r'z has 1 view.*needs two'):
        nt_xent(z[:, :1], temperature=0.1)
    for temperature in (0.0, -1.0, float('nan')):
        with pytest.raises(ValueError, match=r'temperature is .*expected > 0'):
            nt_xent(z, temperature=temperature)
        with pytest.raises(ValueError, match=r'temperature is .*expected > 0'):
            info_nce(q, q, temperature=temperature)
    for tile in (0, -3):
        with pytest.raises(ValueError, match=r'tile is .*expected at least 1'):
            nt_xent(z, temperature=0.1, tile=tile)
        with pytest.raises(ValueError, match=r'tile is .*expected at least 1'):
            info_nce(q, q, temperature=0.1, tile=tile)
    with pytest.raises(ValueError, match=r'0 rows.*pass None'):
        info_nce(q, q, q[:0], temperature=0.1)
