"""Residual blocks against their definition, and the two pools."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.nets.blocks import BasicBlock, Bottleneck, max_pool, mean_pool
from ssljax.nets.conv import convolve


def fresh(block, x):
    variables = block.init(jax.random.key(0), x, train=False)
    return jax.tree.map(lambda a: a.astype(jnp.float64), variables)


def draw(channels, side=6):
    return jax.random.normal(jax.random.key(1), (2, side, side, channels), jnp.float64)


@pytest.mark.parametrize('kind', [BasicBlock, Bottleneck])
@pytest.mark.parametrize('shortcut', ['conv', 'pool'])
@pytest.mark.parametrize('stride', [1, 2])
def test_with_zero_init_a_block_starts_as_its_shortcut(x64, kind, shortcut, stride):
    x = draw(4)
    block = kind(width=8, stride=stride, zero_init=True, shortcut=shortcut)
    variables = fresh(block, x)
    kernel = np.asarray(variables['params']['shortcut_conv']['kernel'][0, 0])
    assert kernel.shape == (4, 8 if kind is BasicBlock else 32)
    y = np.asarray(x)
    if stride == 2:
        y = y.reshape(2, 3, 2, 3, 2, 4).mean((2, 4)) if shortcut == 'pool' else y[:, ::2, ::2]
    expected = np.maximum(y @ kernel / np.sqrt(1 + 1e-5), 0)
    np.testing.assert_allclose(block.apply(variables, x, train=False), expected, atol=1e-12)


def test_a_block_that_keeps_its_shape_adds_its_input(x64):
    x = draw(8)
    block = BasicBlock(width=8, zero_init=True)
    variables = fresh(block, x)
    assert set(variables['params']) == {'conv1', 'norm1', 'conv2', 'norm2'}
    np.testing.assert_allclose(block.apply(variables, x, train=False), np.maximum(x, 0))


def test_the_stride_of_a_bottleneck_sits_in_its_3x3(x64):
    x = draw(32)
    block = Bottleneck(width=8, inner_width=2, stride=2)
    variables = fresh(block, x)
    p = variables['params']
    assert p['conv2']['kernel'].shape == (3, 3, 16, 16)
    unit = np.sqrt(1 + 1e-5)  # fresh norms divide by this
    y = jax.nn.relu(convolve(x, p['conv1']['kernel'], 1, 0) / unit)
    y = jax.nn.relu(convolve(y, p['conv2']['kernel'], 2, 1) / unit)
    y = convolve(y, p['conv3']['kernel'], 1, 0) / unit
    y += convolve(x, p['shortcut_conv']['kernel'], 2, 0) / unit
    np.testing.assert_allclose(block.apply(variables, x, train=False), np.maximum(y, 0), atol=1e-12)


def test_mean_pooling_counts_only_what_is_there():
    x = np.arange(9.0, dtype=np.float32).reshape(1, 3, 3, 1)
    expected = [[(0 + 1 + 3 + 4) / 4, (2 + 5) / 2], [(6 + 7) / 2, 8]]
    np.testing.assert_allclose(mean_pool(jnp.asarray(x), 2)[0, :, :, 0], expected)


@pytest.mark.parametrize('side', [4, 5])
def test_max_pooling_pads_one_pixel_on_each_side_with_nothing(side):
    x = -1 - np.random.default_rng(0).random((1, side, side, 1), np.float32)  # zeros would win
    out = np.asarray(max_pool(jnp.asarray(x)))[0, :, :, 0]
    starts = range(-1, side - 1, 2)
    expected = [[x[0, max(i, 0) : i + 3, max(j, 0) : j + 3].max() for j in starts] for i in starts]
    np.testing.assert_array_equal(out, np.asarray(expected)[: out.shape[0], : out.shape[1]])
    assert out.shape == ((side + 2 - 3) // 2 + 1,) * 2
