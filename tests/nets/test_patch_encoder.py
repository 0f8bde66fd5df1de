"""Patches that overlap, and the networks on and over them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.nets.column_gru import ColumnGRU
from ssljax.nets.patch_encoder import PatchEncoder, grid_patches, grid_size
from ssljax.nets.pixelcnn import PixelCNN
from ssljax.nets.preact_resnet import PreActResNet

KEY = jax.random.key(0)


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(
    ('image', 'patch', 'stride', 'rows'), [(256, 64, 32, 7), (260, 80, 36, 6), (32, 8, 4, 7)]
)
def test_grids_have_the_published_sizes(image, patch, stride, rows):
    assert grid_size(image, image, patch, stride) == (rows, rows)


def test_patches_are_windows_of_the_image():
    x = jax.random.normal(KEY, (2, 11, 9, 3))
    patches = grid_patches(x, 4, 2)
    assert patches.shape == (2, 4, 3, 4, 4, 3)
    for i, j in np.ndindex(4, 3):
        want = x[:, 2 * i : 2 * i + 4, 2 * j : 2 * j + 4]
        np.testing.assert_array_equal(patches[:, i, j], want)


def test_an_image_smaller_than_a_patch_is_refused():
    with pytest.raises(ValueError, match='11 x 9 pixels are smaller than one patch of 10'):
        grid_patches(jnp.zeros((1, 11, 9, 3)), 10, 5)
    with pytest.raises(ValueError, match='patch is 8 and stride 0'):
        PatchEncoder(patch=8, stride=0)


def test_a_place_of_the_grid_is_the_encoder_on_its_patch():
    inner = PreActResNet((4,), (1,), 'cifar', zero_init=False)
    net = PatchEncoder(inner, patch=4, stride=2)
    x = jax.random.normal(KEY, (2, 8, 8, 1))
    variables = net.init(KEY, x, train=False)
    grid = net.apply(variables, x, train=False, method='features')['grid']
    own = {'params': variables['params']['encoder']}
    one = inner.apply(own, x[:, 2:6, 4:8], train=False)
    np.testing.assert_allclose(grid[:, 1, 2], one, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(
        net.apply(variables, x, train=False), grid.mean((1, 2)), rtol=1e-5, atol=1e-6
    )


def test_the_first_three_stacks_of_a_resnet_101_give_1024_features():
    net = PreActResNet()
    init = lambda: net.init_with_output(KEY, jnp.zeros((1, 64, 64, 3)), False, method='features')
    layers, variables = jax.eval_shape(init)
    shapes = {name: leaf.shape[1:] for name, leaf in layers.items()}
    assert shapes == {
        'stem': (16, 16, 64),
        'stack1': (16, 16, 256),
        'stack2': (8, 8, 512),
        'stack3': (4, 4, 1024),
        'pool': (1024,),
    }
    # Of every convolution its kernel and its biases.
    want, channels = 7 * 7 * 3 * 64 + 64, 64
    for width, blocks in zip((64, 128, 256), (3, 4, 23), strict=True):
        out = 4 * width
        want += channels * out + out
        for _ in range(blocks):
            want += channels * width + 9 * width**2 + width * out + 2 * width + out
            channels = out
    assert size(variables['params']) == want
    assert set(variables) == {'params'}


@pytest.mark.slow
@pytest.mark.parametrize('norm', ['none', 'layer', 'batch'])
def test_only_batch_norm_lets_images_know_of_each_other(norm):
    net = PreActResNet((4, 8), (1, 1), 'cifar', norm, zero_init=False)
    x = jax.random.normal(KEY, (4, 8, 8, 3))
    variables = net.init(KEY, x, train=False)
    apply = lambda x: net.apply(variables, x, train=True, mutable=['batch_stats'])[0]
    apart = float(jnp.max(jnp.abs(apply(x)[:2] - apply(x[:2]))))
    assert (apart > 1e-3) if norm == 'batch' else (apart < 1e-5)


def test_branches_that_start_at_zero_leave_the_shortcuts():
    x = jax.random.normal(KEY, (2, 8, 8, 3))
    one, two = (PreActResNet((4,), (blocks,), 'cifar') for blocks in (1, 3))
    variables = two.init(KEY, x, train=False)
    few = {k: v for k, v in variables['params'].items() if k[-1] not in '12'}
    np.testing.assert_allclose(
        one.apply({'params': few}, x, train=False), two.apply(variables, x, train=False)
    )


def test_a_context_of_convolutions_reaches_as_far_as_it_says():
    net = PixelCNN(2, 8)
    z = jax.random.normal(KEY, (1, 7, 7, 4))
    variables = net.init(KEY, z, train=False)
    slopes = jax.jacobian(lambda z: net.apply(variables, z, train=False)[0, 4, 3])(z)
    seen = np.any(np.asarray(slopes) != 0, axis=(0, 1, 4))
    rows, columns = np.nonzero(seen)
    assert (rows.min(), rows.max()) == (2, 4) and (columns.min(), columns.max()) == (1, 5)


def test_a_gru_reads_its_own_column_downwards():
    net = ColumnGRU(5)
    z = jax.random.normal(KEY, (1, 7, 3, 4))
    variables = net.init(KEY, z, train=False)
    assert net.apply(variables, z, train=False).shape == (1, 7, 3, 5)
    slopes = jax.jacobian(lambda z: net.apply(variables, z, train=False)[0, 4, 1])(z)
    seen = np.any(np.asarray(slopes) != 0, axis=(0, 1, 4))
    want = np.zeros((7, 3), bool)
    want[:5, 1] = True
    np.testing.assert_array_equal(seen, want)


def test_smoke_shrinks_and_wrong_sizes_are_refused():
    small = PatchEncoder().smoke()
    assert (small.patch, small.stride, small.encoder.widths) == (8, 4, (8, 8))
    assert PixelCNN().smoke() == PixelCNN(1, 16) and ColumnGRU().smoke() == ColumnGRU(16)
    with pytest.raises(ValueError, match='describe different stacks'):
        PreActResNet((4, 8), (1,))
    with pytest.raises(ValueError, match='blocks is 0'):
        PixelCNN(0)
