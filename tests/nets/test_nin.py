"""Network in Network: its sizes and its blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.nets.nin import NIN

KEY = jax.random.key(0)


@pytest.mark.parametrize(('blocks', 'parameters'), [(3, 1_003_712), (4, 1_410_368)])
def test_has_the_published_size(blocks, parameters):
    net = NIN(blocks)
    init = lambda: net.init(KEY, jnp.zeros((1, 32, 32, 3)), train=False)
    leaves = jax.tree.leaves(jax.eval_shape(init)['params'])
    assert sum(leaf.size for leaf in leaves) == parameters


def test_blocks_have_the_papers_maps():
    net = NIN()
    init = lambda: net.init_with_output(
        KEY, jnp.zeros((2, 32, 32, 3)), train=False, method='features'
    )
    layers = {name: leaf.shape[1:] for name, leaf in jax.eval_shape(init)[0].items()}
    assert layers == {
        'block1': (16, 16, 96),
        'block2': (8, 8, 192),
        'block3': (8, 8, 192),
        'block4': (8, 8, 192),
        'pool': (192,),
    }


def test_pooled_features_are_the_mean_of_the_last_block():
    x = jax.random.normal(KEY, (2, 8, 8, 1))
    net = NIN(2)
    layers, variables = net.init_with_output(KEY, x, train=False, method='features')
    np.testing.assert_allclose(layers['pool'], layers['block2'].mean((1, 2)), rtol=1e-6)
    np.testing.assert_array_equal(net.apply(variables, x, train=False), layers['pool'])


def test_one_block_is_none():
    with pytest.raises(ValueError, match='blocks is 1'):
        NIN(1)
    assert NIN().smoke() == NIN(2)
