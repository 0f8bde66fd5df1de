"""Convolution against its definition; pointwise ones as products; one device and eight."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.test_util import check_grads

from ssljax.nets.conv import Conv, convolve

# kernel, stride, padding: each kind a ResNet has
KINDS = [(1, 1, 0), (1, 2, 0), (3, 1, 1), (3, 2, 1), (7, 2, 3), (4, 4, 0), (5, 4, 1)]


def by_definition(x, kernel, stride, padding):
    n, height, width, _ = x.shape
    k = kernel.shape[0]
    x = np.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    out = np.zeros(
        (
            n,
            (height + 2 * padding - k) // stride + 1,
            (width + 2 * padding - k) // stride + 1,
            kernel.shape[3],
        )
    )
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            window = x[:, i * stride : i * stride + k, j * stride : j * stride + k]
            out[:, i, j] = np.tensordot(window, kernel, axes=3)
    return out


def draw(k, n=2, height=9, width=8):
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(n, height, width, 3))), jnp.asarray(
        rng.normal(size=(k, k, 3, 5))
    )


@pytest.mark.parametrize(('k', 'stride', 'padding'), KINDS)
def test_is_its_definition(x64, k, stride, padding):
    x, kernel = draw(k)
    expected = by_definition(np.asarray(x), np.asarray(kernel), stride, padding)
    np.testing.assert_allclose(convolve(x, kernel, stride, padding), expected, atol=1e-12)


@pytest.mark.parametrize(('k', 'stride', 'padding'), KINDS[:4])
def test_gradients_are_numerical_ones(x64, k, stride, padding):
    x, kernel = draw(k, n=1, height=5, width=4)
    run = lambda x, w: convolve(jnp.asarray(x), jnp.asarray(w), stride, padding)
    check_grads(run, (x, kernel), order=2, eps=1e-4, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize('stride', [1, 2])
def test_pointwise_gradients_are_those_of_the_convolution(x64, stride):
    x, kernel = draw(1)

    def general(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (stride,) * 2, 'VALID', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
        )

    loss = lambda f: lambda x, w: jnp.sum(jnp.sin(f(x, w)))
    ours = jax.grad(loss(lambda x, w: convolve(x, w, stride, 0)), (0, 1))(x, kernel)
    for a, b in zip(ours, jax.grad(loss(general), (0, 1))(x, kernel), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize(('k', 'products'), [(1, True), (3, False)])
def test_pointwise_ones_compile_to_products_alone(k, products):
    x, kernel = (a.astype(jnp.float32) for a in draw(k))
    loss = lambda x, w: jnp.sum(jnp.sin(convolve(x, w, 2, k // 2)))
    text = jax.jit(jax.grad(loss, (0, 1))).lower(x, kernel).as_text()
    assert ('convolution' not in text) == products


def test_padding_is_symmetric_where_same_is_not(x64):
    x, kernel = draw(3, height=8)
    same = lax.conv_general_dilated(
        x, kernel, (2, 2), 'SAME', dimension_numbers=('NHWC', 'HWIO', 'NHWC')
    )
    ours = convolve(x, kernel, 2, 1)
    assert same.shape == ours.shape
    assert np.abs(same - ours).max() > 1


@pytest.mark.parametrize(('k', 'stride', 'padding'), KINDS[:4])
def test_eight_devices_compute_what_one_does(x64, mesh8, k, stride, padding):
    x, kernel = draw(k, n=16)

    def loss(x, kernel):
        return jnp.mean(jnp.sin(convolve(x, kernel, stride, padding)))

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    rows = jax.device_put(x, NamedSharding(mesh8, PartitionSpec('data')))
    spread = step(rows, jax.device_put(kernel, NamedSharding(mesh8, PartitionSpec())))
    assert spread[1][0].sharding.is_equivalent_to(rows.sharding, 4)
    for a, b in zip(jax.tree.leaves(step(x, kernel)), jax.tree.leaves(spread), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize('k', [1, 3])
def test_kernels_start_with_the_variance_of_he(k):
    variables = Conv(256, k).init(jax.random.key(0), jnp.zeros((1, 8, 8, 128)))
    kernel = variables['params']['kernel']
    assert kernel.dtype == jnp.float32
    assert float(kernel.std()) == pytest.approx((2 / (k * k * 256)) ** 0.5, rel=0.02)
    assert float(jnp.abs(kernel).max()) > 3 * float(kernel.std())  # not truncated
