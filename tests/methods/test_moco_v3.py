"""MoCo v3's own facts."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from ssljax.core import Now, Run, Signature
from ssljax.definitions import load_experiment
from ssljax.methods.moco_v3 import MoCoV3
from ssljax.train.step import make_init, make_step

RUN = Run(examples=80, batch=8, steps=10, steps_per_epoch=10)
TWO_VIEWS = Signature((('image', (2, 32)),), 3, None, 80)

FILE = pathlib.Path(__file__).parents[2] / 'experiments' / 'moco_v3_imagenet_vit_b.py'
VIT = load_experiment(FILE).smoke()


def objective(method, query, key):
    now = Now(jnp.asarray(0), jax.random.key(0), RUN)
    return method.objective({}, {'prediction': query, 'target': key}, {}, now)[0]


def parameters(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize(('temperature', 'want'), [(0.2, 6.654213), (1.0, 33.271065)])
def test_equal_embeddings_cost_4_tau_ln_n(x64, temperature, want):
    ones = jnp.ones((4096, 2, 3))
    loss = objective(MoCoV3(temperature=temperature, tile=512), ones, ones)
    np.testing.assert_allclose(loss, 4 * temperature * np.log(4096), rtol=1e-12)
    np.testing.assert_allclose(loss, want, atol=5e-7)


@pytest.mark.parametrize('tile', [None, 4])
def test_is_2_tau_info_nce_both_ways(x64, tile):
    q, k = np.random.default_rng(0).normal(size=(2, 6, 2, 4))
    ways = [reference.info_nce(q[:, v], k[:, 1 - v], None, 0.3) for v in range(2)]
    loss = objective(MoCoV3(temperature=0.3, tile=tile), jnp.asarray(q), jnp.asarray(k))
    np.testing.assert_allclose(loss, 2 * 0.3 * sum(ways), rtol=1e-12)


def test_perfect_pairs_of_orthogonal_images(x64):
    z = jnp.repeat(jnp.eye(8)[:, None], 2, axis=1)
    e = np.exp(1 / 0.2)
    want = 4 * 0.2 * -np.log(e / (e + 7))
    np.testing.assert_allclose(objective(MoCoV3(temperature=0.2), z, z), want, rtol=1e-10)


def test_heads_are_those_of_its_resnet_50():
    batch = {'image': jnp.zeros((2, 2, 32, 32, 3))}
    params, state = jax.eval_shape(lambda: MoCoV3().init(jax.random.key(0), batch, RUN))
    # No biases; a BatchNorm of 4096 with scale and shift; behind the projector one without either.
    assert parameters(params['projector']) == 2048 * 4096 + 2 * 4096 + 4096 * 256
    assert parameters(params['predictor']) == 256 * 4096 + 2 * 4096 + 4096 * 256
    assert 'norm2' in state['stats']['projector'] and 'norm2' not in params['projector']
    assert 'norm2' not in state['stats']['predictor']
    assert parameters(state['target']) == 23_508_032 + parameters(params['projector'])


def test_temperature_must_be_positive():
    with pytest.raises(ValueError, match='temperature is 0'):
        MoCoV3(temperature=0.0).check(TWO_VIEWS, RUN)


def test_a_batch_of_one_has_no_negatives():
    with pytest.raises(ValueError, match='the batch is 1; use 2 or more'):
        MoCoV3().check(TWO_VIEWS, dataclasses.replace(RUN, batch=1))


def test_the_patch_projection_of_its_vit_alone_has_no_gradient():
    key, views = jax.random.key(0), jax.random.normal(jax.random.key(1), (8, 2, 32, 32, 3))
    params, state = jax.jit(lambda: VIT.method.init(key, {'image': views}, RUN))()

    @jax.jit
    @jax.grad
    def gradient(params):
        outputs, _ = VIT.method.forward(params, state, {'image': views}, key)
        return VIT.method.objective(params, outputs, state, Now(jnp.asarray(0), key, RUN))[0]

    grads = gradient(params)
    patch = grads['encoder'].pop('patch')
    assert set(patch) == {'kernel', 'bias'} and not any(leaf.any() for leaf in patch.values())
    assert all(leaf.any() for leaf in jax.tree.leaves(grads))


@pytest.mark.slow
def test_steps_keep_its_bits_which_weight_decay_alone_would_not():
    def moved(optimizer):
        """Whether the projection's kernel, and that of a block, are others 3 steps later."""
        transform = optimizer.build(RUN)
        image = np.random.default_rng(0).integers(0, 256, (8, 2, 32, 32, 3), np.uint8)
        raw = {'image': jnp.asarray(image), 'index': jnp.arange(8)}
        state = start = make_init(VIT.method, VIT.recipe, transform, RUN, 0, raw)()
        schedule = optimizer.schedule(RUN)
        step = jax.jit(make_step(VIT.method, VIT.recipe, transform, schedule, RUN))
        for _ in range(3):
            state, metrics = step(state, raw)
            assert not metrics['skipped']
        old, new = (s.params['encoder'] for s in (start, state))
        kernels = lambda tree: (tree['patch']['kernel'], tree['block0']['linear1']['kernel'])
        return [bool((a != b).any()) for a, b in zip(kernels(old), kernels(new), strict=True)]

    assert moved(VIT.optimizer) == [False, True]
    assert moved(dataclasses.replace(VIT.optimizer, frozen=())) == [True, True]
