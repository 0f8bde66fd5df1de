"""Blocks that are computed again in the backward pass: the same numbers, less to keep."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.nets.resnet import ResNet
from ssljax.nets.small import SmallResNet
from ssljax.nets.vit import ViT

NETS = {
    'resnet18': ResNet(depth=18, stem='cifar'),
    'resnet50': ResNet(depth=50),
    'small': SmallResNet(stem_patch=2, widths=(8, 16), blocks=(2, 2), norm_groups=2),
    'vit': ViT(width=16, depth=3, heads=2, patch=4, size=16),
}
SMALL = {name: NETS[name] for name in ('resnet18', 'small')}
SLOW = [pytest.param(SMALL['resnet18'], marks=pytest.mark.slow), SMALL['small']]
parametrize = lambda nets: pytest.mark.parametrize('net', nets.values(), ids=nets)
parametrize_small = pytest.mark.parametrize('net', SLOW, ids=SMALL)


def variables(net):
    """Fresh ones, made at once."""
    return jax.jit(lambda key: net.init(key, jnp.zeros((2, 16, 16, 3)), train=False))(
        jax.random.key(0)
    )


def loss(net, params, stats, x):
    """A scalar of the features, and the running statistics behind one batch."""
    variables = {'params': params, 'batch_stats': stats}
    y, new = net.apply(variables, x, train=True, mutable=['batch_stats'])
    return jnp.sum(jnp.sin(y)), new.get('batch_stats', {})


@parametrize_small
def test_loss_gradient_and_statistics_are_those_without(x64, net):
    made = jax.tree.map(lambda a: a.astype(jnp.float64), variables(net))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 16, 16, 3)))

    def run(net):
        both = jax.jit(
            jax.value_and_grad(lambda p: loss(net, p, made['batch_stats'], x), has_aux=True)
        )
        return both(made['params'])

    without, again = run(net), run(net.clone(remat=True))
    # Statistics updated twice would stand at 0.81 of their start, not 0.9.
    leaves = zip(*map(jax.tree_util.tree_leaves_with_path, (without, again)), strict=True)
    for (path, a), (other, b) in leaves:
        assert path == other
        # Relative to the largest: biases ahead of a BatchNorm have gradients that cancel to 0.
        bound = 1e-12 * max(1, np.abs(a).max())
        np.testing.assert_allclose(b, a, rtol=1e-12, atol=bound, err_msg=str(path))


@parametrize(NETS)
def test_parameters_are_those_without(net):
    shapes = [jax.eval_shape(variables_of(n)) for n in (net, net.clone(remat=True))]
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(shapes[1])
    assert jax.tree.leaves(shapes[0]) == jax.tree.leaves(shapes[1])


def variables_of(net):
    return lambda: net.init(jax.random.key(0), jnp.zeros((2, 16, 16, 3)), train=False)


@pytest.mark.slow
@parametrize(NETS)
def test_keeps_less_for_the_backward_pass_and_computes_more(net):
    made = jax.eval_shape(variables_of(net))
    x = jax.ShapeDtypeStruct((64, 16, 16, 3), jnp.float32)

    def kept(net):
        """Bytes from the forward pass that the backward pass asks for."""
        of = lambda p, s, x: jax.vjp(lambda p: loss(net, p, s, x), p, has_aux=True)[1]
        backward = jax.eval_shape(of, made['params'], made.get('batch_stats', {}), x)
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))

    weights = sum(4 * leaf.size for leaf in jax.tree.leaves(made['params']))
    # Weights are kept in any case.
    assert kept(net.clone(remat=True)) - weights < 0.4 * (kept(net) - weights)


@parametrize_small
def test_blocks_are_really_computed_again(net):
    made = jax.eval_shape(variables_of(net))
    x = jax.ShapeDtypeStruct((8, 16, 16, 3), jnp.float32)

    def flops(net):
        grad = jax.grad(lambda p, s, x: loss(net, p, s, x)[0])
        lowered = jax.jit(grad).lower(made['params'], made['batch_stats'], x)
        return lowered.compile().cost_analysis()['flops']

    # One more forward pass on top of three; without barriers the compiler would merge it away.
    assert 1.05 < flops(net.clone(remat=True)) / flops(net) < 1.4
