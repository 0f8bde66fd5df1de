"""BYOL's own facts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import linen as nn

from ssljax.core import Now, Run
from ssljax.methods.byol import BYOL
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet

RUN = Run(examples=80, batch=8, steps=10, steps_per_epoch=10)


class Same(nn.Module):
    """A predictor that gives back what it is given."""

    def __call__(self, x, train):
        return x


def objective(prediction, target):
    now = Now(jnp.asarray(0), jax.random.key(0), RUN)
    return BYOL().objective({}, {'prediction': prediction, 'target': target}, {}, now)


def parameters(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_heads_have_the_published_sizes():
    batch = {'image': jnp.zeros((2, 2, 32, 32, 3))}
    params, state = jax.eval_shape(lambda: BYOL().init(jax.random.key(0), batch, RUN))
    assert parameters(params['encoder']) == 23_508_032
    assert parameters(params['projector']) == 9_449_472
    assert parameters(params['predictor']) == 2_109_440
    assert parameters(state['target']) == 23_508_032 + 9_449_472
    assert 'bias' not in params['projector']['linear2']
    assert 'norm2' not in params['predictor']


@pytest.mark.parametrize(('target', 'want'), [((1, 0), 0), ((0, 1), 4), ((-1, 0), 8)])
def test_both_directions_add_up(target, want):
    prediction = jnp.tile(jnp.asarray([2.0, 0.0]), (4, 2, 1))
    target = jnp.tile(jnp.asarray(target, jnp.float32), (4, 2, 1))
    assert float(objective(prediction, target)[0]) == want


def test_a_view_is_predicted_from_the_other(x64):
    rng = np.random.default_rng(0)
    p, t = rng.normal(size=(2, 6, 2, 4))
    want = sum(reference.negative_cosine(p[:, k], t[:, 1 - k]) for k in range(2))
    np.testing.assert_allclose(objective(jnp.asarray(p), jnp.asarray(t))[0], want, rtol=1e-12)


def test_same_views_weights_and_no_predictor_cost_nothing(x64):
    method = BYOL(SmallResNet(2, None, (6,), (1,)), ProjectionHead((10, 5)), Same())
    image = np.random.default_rng(0).normal(size=(8, 1, 8, 8, 3)).repeat(2, axis=1)
    batch = {'image': jnp.asarray(image)}
    params, state = jax.jit(lambda: method.init(jax.random.key(0), batch, RUN))()
    outputs, _ = jax.jit(method.forward)(params, state, batch, jax.random.key(1))
    loss, _ = objective(**outputs)
    np.testing.assert_allclose(loss, 0, atol=1e-12)


def test_a_collapse_shows_in_std_and_not_in_the_loss():
    loss, (_, metrics) = objective(jnp.ones((8, 2, 4)), jnp.ones((8, 2, 4)))
    assert float(loss) == pytest.approx(0, abs=1e-6)
    assert float(metrics['std']) == pytest.approx(0, abs=1e-3)
    spread = jax.random.normal(jax.random.key(0), (2048, 2, 16))
    assert float(objective(spread, spread)[1][1]['std']) == pytest.approx(1, abs=0.03)
