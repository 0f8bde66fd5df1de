"""The context encoder's networks: sizes, shapes, and who sees what."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.nets.inpainting import ChannelwiseDense, ContextNet, Decoder, Discriminator

KEY = jax.random.key(0)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes(module, *inputs):
    """Parameters and outputs, abstractly."""
    out, variables = jax.eval_shape(lambda: module.init_with_output(KEY, *inputs, train=True))
    return variables['params'], out


def test_encoder_has_the_size_of_the_released_one():
    params, out = shapes(ContextNet(), jnp.zeros((2, 128, 128, 3)))
    kernels = 16 * (3 * 64 + 64 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 4000)
    norms = 2 * (64 + 128 + 256 + 512 + 4000)
    assert count(params) == kernels + norms == 35_599_040
    assert out.shape == (2, 4000)


def test_decoder_and_discriminator_have_the_sizes_of_the_released_ones():
    decoder = Decoder()
    out, variables = jax.eval_shape(
        lambda: decoder.init_with_output(KEY, jnp.zeros((2, 4000)), (64, 3), train=True)
    )
    kernels = 16 * (4000 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3)
    assert count(variables['params']) == kernels + 2 * (512 + 256 + 128 + 64)
    assert out.shape == (2, 64, 64, 3)
    params, out = shapes(Discriminator(), jnp.zeros((2, 64, 64, 3)))
    kernels = 16 * (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1)
    assert count(params) == kernels + 2 * (128 + 256 + 512)
    assert out.shape == (2,)


@pytest.mark.parametrize(('side', 'widths'), [(28, (6, 4)), (32, (8, 6, 4)), (12, (4,))])
@pytest.mark.parametrize('channels', [1, 3])
def test_decoder_paints_images_of_any_size_in_minus_1_to_1(side, widths, channels):
    x = 100 * jax.random.normal(KEY, (3, 10))
    net = Decoder(widths)
    y, variables = net.init_with_output(KEY, x, (side, channels), train=True)
    assert y.shape == (3, side, side, channels)
    assert np.abs(y).max() <= 1
    again, _ = net.apply(
        variables, x.astype(jnp.bfloat16), (side, channels), train=True, mutable=['batch_stats']
    )
    assert again.dtype == jnp.float32


def test_decoder_takes_maps_of_its_first_size():
    maps = jnp.ones((2, 3, 3, 5))
    params = jax.eval_shape(lambda: Decoder((8, 4)).init(KEY, maps, (12, 1), train=True))['params']
    assert params['mix']['kernel'].shape == (5, 9, 9)  # c n^4, not c^2 n^4
    assert params['start']['kernel'].shape == (1, 1, 5, 8)
    with pytest.raises(ValueError, match='maps of 3 x 3 pixels do not grow to 24'):
        Decoder((8, 4)).init(KEY, maps, (24, 1), train=True)
    with pytest.raises(ValueError, match='does not lead to 14 pixels'):
        Decoder((8, 4)).init(KEY, maps, (14, 1), train=True)


def test_channelwise_layer_keeps_channels_apart_and_sees_every_pixel():
    x = jax.random.normal(KEY, (1, 3, 3, 4))
    y, variables = ChannelwiseDense().init_with_output(KEY, x)
    slope = jax.jacobian(lambda x: ChannelwiseDense().apply(variables, x)[0])(x)[:, :, :, 0]
    for out in range(4):
        for into in range(4):
            assert (slope[:, :, out, :, :, into] != 0).all() == (out == into)
            assert (slope[:, :, out, :, :, into] == 0).all() == (out != into)
    kernel = np.asarray(variables['params']['kernel'])
    for c in range(4):
        want = np.asarray(x)[0, :, :, c].ravel() @ kernel[c]
        np.testing.assert_allclose(np.asarray(y)[0, :, :, c].ravel(), want, rtol=1e-5, atol=1e-6)


def test_an_up_convolution_undoes_the_geometry_of_a_down_convolution():
    """Pixel (i, j) of a map reaches the same 4 x 4 pixels that it would be computed from."""
    from ssljax.nets.inpainting import up_conv

    x = jnp.zeros((1, 4, 4, 1)).at[0, 1, 2].set(1.0)
    y = up_conv(1, None, 'up').init_with_output(KEY, x)[0][0, :, :, 0]
    rows, columns = np.nonzero(y)
    assert y.shape == (8, 8)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (1, 4, 3, 6)


def test_initial_weights_are_dcgans():
    params = Discriminator((64, 64)).init(KEY, jnp.zeros((1, 16, 16, 3)), train=True)['params']
    kernel, scale = params['down']['conv2']['kernel'], params['down']['norm2']['scale']
    assert float(kernel.std()) == pytest.approx(0.02, rel=0.02)
    assert float(scale.mean()) == pytest.approx(1, abs=0.01)
    assert float(scale.std()) == pytest.approx(0.02, rel=0.3)
    assert 'norm1' not in params['down'] and 'bias' not in params['down']['conv1']


def test_images_too_small_for_the_layers_are_an_error():
    with pytest.raises(ValueError, match='leave nothing of 7 x 7 pixels'):
        Discriminator((8, 8, 8)).init(KEY, jnp.zeros((1, 7, 7, 3)), train=True)


@pytest.mark.parametrize('module', [ContextNet((8, 8), 12), Discriminator((8, 8))])
def test_float64_stays_and_bfloat16_comes_out_as_float32(module, x64):
    x = jax.random.normal(KEY, (2, 8, 8, 3), jnp.float64)
    variables = module.init(KEY, x.astype(jnp.float32), train=False)
    double = jax.tree.map(lambda leaf: leaf.astype(jnp.float64), variables)
    assert module.apply(double, x, train=False).dtype == jnp.float64
    half = module.clone(dtype='bfloat16').apply(variables, x.astype(jnp.float32), train=False)
    assert half.dtype == jnp.float32


def test_networks_shrink():
    assert ContextNet().smoke() == ContextNet((16, 16, 16, 16, 16), 32)
    assert Decoder().smoke() == Decoder((16, 16, 16, 16))
    assert Discriminator((8, 64)).smoke() == Discriminator((8, 16))
