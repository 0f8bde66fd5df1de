"""What is left of an image behind Sobel filters."""

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.nets.resnet import ResNet
from ssljax.nets.small import SmallResNet
from ssljax.nets.sobel import Sobel, edges

ACROSS = np.asarray([[1, 0, -1], [2, 0, -2], [1, 0, -1]])


def images(seed=0, channels=3):
    return np.random.default_rng(seed).normal(size=(2, 7, 6, channels))


def test_edges_are_a_correlation_with_the_filters(x64):
    grey = np.pad(images().mean(-1), ((0, 0), (1, 1), (1, 1)))
    found = edges(jnp.asarray(images()))
    for place in np.ndindex(2, 7, 6):
        n, i, j = place
        window = grey[n, i : i + 3, j : j + 3]
        want = [np.sum(window * ACROSS), np.sum(window * ACROSS.T)]
        np.testing.assert_allclose(found[place], want, rtol=1e-12, atol=1e-12)


def test_a_slope_is_the_same_everywhere_and_an_even_picture_is_nothing():
    ramp = jnp.broadcast_to(jnp.arange(8.0)[:, None], (1, 8, 8, 3))
    inside = edges(ramp)[:, 1:-1, 1:-1]
    np.testing.assert_array_equal(inside[..., 0], -8)
    np.testing.assert_array_equal(inside[..., 1], 0)
    np.testing.assert_array_equal(edges(jnp.full_like(ramp, 5.0))[:, 1:-1, 1:-1], 0)


def test_colours_are_not_seen(x64):
    x = jnp.asarray(images())
    np.testing.assert_allclose(edges(x[..., ::-1]), edges(x), rtol=1e-12, atol=1e-12)
    shades = x + jnp.asarray([0.5, -0.2, -0.3])
    np.testing.assert_allclose(edges(shades), edges(x), rtol=1e-12, atol=1e-12)
    gray = x.mean(-1, keepdims=True)
    np.testing.assert_allclose(edges(gray), edges(x), rtol=1e-12, atol=1e-12)


def test_parameters_are_those_of_a_network_of_two_channels():
    for channels in (1, 3):
        x = jnp.zeros((1, 64, 64, channels))
        init = lambda x: Sobel(ResNet()).init(jax.random.key(0), x, train=False)
        shapes = jax.eval_shape(init, x)['params']
        assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == 23_508_032 - 7 * 7 * 64
        assert set(shapes) == {'net'}


def test_what_it_gives_is_what_the_network_makes_of_the_edges():
    module, x = Sobel(SmallResNet(2, None, (4,), (1,))), jnp.asarray(images(), jnp.float32)
    variables = module.init(jax.random.key(0), x, train=False)
    layers = module.apply(variables, x, train=False, method='features')
    alone = {name: tree['net'] for name, tree in variables.items()}
    np.testing.assert_array_equal(layers['edges'], edges(x))
    np.testing.assert_array_equal(layers['pool'], module.net.apply(alone, edges(x), train=False))
    np.testing.assert_array_equal(layers['pool'], module.apply(variables, x, train=False))


def test_a_smaller_one_has_a_smaller_network():
    assert Sobel(ResNet()).smoke() == Sobel(ResNet().smoke())
