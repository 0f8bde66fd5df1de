"""Rotation prediction's own facts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.core import Now, Run, Signature
from ssljax.methods.rotation import Rotation, rotations
from ssljax.nets.nin import NIN
from ssljax.nets.small import SmallResNet

RUN = Run(examples=80, batch=8, steps=10, steps_per_epoch=10)
METHOD = Rotation(SmallResNet(2, None, (6,), (1,)))


def images(n=4, size=6, channels=2):
    return jnp.asarray(np.random.default_rng(0).normal(size=(n, size, size, channels)))


def objective(scores):
    now = Now(jnp.asarray(0), jax.random.key(0), RUN)
    loss, (_, metrics) = METHOD.objective({}, {'scores': scores}, {}, now)
    return float(loss), float(metrics['accuracy'])


def made(x):
    batch = {'image': x[:, None]}
    params, state = jax.jit(lambda: METHOD.init(jax.random.key(0), batch, RUN))()
    outputs, _ = jax.jit(METHOD.forward)(params, state, batch, jax.random.key(1))
    return params, state, outputs['scores']


def test_each_class_is_a_quarter_turn_further():
    x = images()
    turned = rotations(x)
    np.testing.assert_array_equal(turned[:, 0], x)
    for turn in range(4):
        following = rotations(turned[:, turn])[:, 1]
        np.testing.assert_array_equal(following, turned[:, (turn + 1) % 4])
    # Counterclockwise, as in the paper's code: what was on the right is on top.
    np.testing.assert_array_equal(turned[:, 1, 0], x[:, :, -1])
    np.testing.assert_array_equal(turned[:, 2], x[:, ::-1, ::-1])


def test_a_rotation_moves_pixels_and_invents_none():
    x = images()
    for turn in range(4):
        moved = rotations(x)[:, turn].reshape(4, 36, 2)
        np.testing.assert_array_equal(np.sort(moved, axis=1), np.sort(x.reshape(4, 36, 2), axis=1))


def test_chance_costs_ln_4_and_certainty_nothing():
    assert objective(jnp.zeros((5, 4, 4)))[0] == pytest.approx(1.386294, abs=1e-6)
    right = jnp.tile(100 * jnp.eye(4), (5, 1, 1))
    assert objective(right) == (0, 1)
    # Half a turn off, everywhere.
    assert objective(jnp.roll(right, 2, axis=-1)) == (100, 0)


def test_every_image_is_shown_in_all_rotations_by_itself():
    """Its scores are those of its own turned copies, the encoder seeing all of the batch."""
    x = images(8, 8, 3)
    params, state, scores = made(x)
    for turn in range(4):
        _, _, of_turned = made(rotations(x)[:, turn])
        np.testing.assert_allclose(of_turned, jnp.roll(scores, -turn, axis=1), atol=1e-5)
    assert params['head']['linear']['kernel'].shape == (6, 4)
    assert set(state['stats']) == {'encoder'}


def test_a_constant_image_looks_alike_from_all_sides():
    x = images(4, 8, 3).at[0].set(0.7)
    _, _, scores = made(x)
    np.testing.assert_allclose(scores[0], jnp.tile(scores[0, :1], (4, 1)), atol=1e-6)
    assert not np.allclose(scores[1], jnp.tile(scores[1, :1], (4, 1)), atol=1e-6)


def test_needs_one_view():
    for views, wrong in (((2, 32), 'makes 2'), ((1, 1), '1 pixel')):
        with pytest.raises(ValueError, match=wrong):
            METHOD.check(Signature((('image', views),), 3, None, 80), RUN)
    METHOD.check(Signature((('image', (1, 32)),), 3, None, 80), RUN)


def test_the_network_of_the_paper_has_its_published_size():
    batch = {'image': jnp.zeros((2, 1, 32, 32, 3))}
    params, _ = jax.eval_shape(lambda: Rotation(NIN()).init(jax.random.key(0), batch, RUN))
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert count(params['head']) == 192 * 4 + 4
    assert count(params) == 1_411_140
