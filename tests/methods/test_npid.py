"""Instance discrimination's own facts."""

import dataclasses
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from ssljax.core import Now, Run, Signature
from ssljax.experiment import shrink
from ssljax.losses import nce
from ssljax.memory import Bank
from ssljax.methods.npid import NPID, noise_rows
from ssljax.nets.heads import NoHead, ProjectionHead
from ssljax.nets.small import SmallResNet

RUN = Run(examples=40, batch=8, steps=10, steps_per_epoch=5)
HEAD = ProjectionHead(widths=(6,), last_norm='none', last_bias=True)
SMALL = NPID(SmallResNet(2, None, (6,), (1,)), HEAD, temperature=0.5, negatives=5)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def made(n=8, d=6, k=5):
    """Outputs of `forward` and the state they meet, in float64."""
    rng = np.random.default_rng(0)
    v = unit(rng.normal(size=(n, d)))
    bank = unit(rng.normal(size=(RUN.examples, d)))
    outputs = {
        'v': jnp.asarray(v),
        'index': jnp.asarray(rng.permutation(RUN.examples)[:n], jnp.int32),
        'noise': jnp.asarray(rng.integers(0, RUN.examples, (n, k)), jnp.int32),
    }
    z = {'log': jnp.zeros(()), 'known': jnp.zeros((), bool)}
    return outputs, {'stats': {}, 'bank': jnp.asarray(bank), 'z': z}


def objective(method, outputs, state):
    now = Now(jnp.asarray(0), jax.random.key(0), RUN)
    return method.objective({}, outputs, state, now)


def scores(outputs, state, temperature):
    v, bank = np.asarray(outputs['v']), np.asarray(state['bank'])
    own = np.sum(v * bank[outputs['index']], axis=1) / temperature
    noise = np.einsum('nd,nkd->nk', v, bank[outputs['noise']]) / temperature
    return own, noise


@pytest.mark.parametrize('k', [5, 54])  # 8 for each of the bank's 40 rows are fewer than 54 x 6.
def test_z_is_set_by_the_first_batch_and_then_kept(x64, k):
    outputs, state = made(k=k)
    own, noise = scores(outputs, state, 0.5)
    z = RUN.examples * np.mean(np.exp(np.concatenate([own[:, None], noise], axis=1)))
    loss, (after, _) = objective(SMALL, outputs, state)
    np.testing.assert_allclose(loss, reference.nce(own, noise, z, RUN.examples), rtol=1e-12)
    np.testing.assert_allclose(after['z']['log'], np.log(z), rtol=1e-12)
    assert after['z']['known']
    # The second batch meets other vectors, another bank, and the same Z.
    outputs = {**outputs, 'v': outputs['v'][::-1]}
    own, noise = scores(outputs, after, 0.5)
    loss, (later, _) = objective(SMALL, outputs, after)
    np.testing.assert_allclose(loss, reference.nce(own, noise, z, RUN.examples), rtol=1e-12)
    assert later['z']['log'] == after['z']['log']


def test_without_negatives_it_is_the_softmax_over_the_bank(x64):
    outputs, state = made()
    want = reference.instance_softmax(outputs['v'], state['bank'], outputs['index'], 0.5)
    for tile in (None, 3):
        method = dataclasses.replace(SMALL, negatives=None, tile=tile)
        loss, (after, _) = objective(method, outputs, state)
        np.testing.assert_allclose(loss, want, rtol=1e-12)
        assert not after['z']['known']


@pytest.mark.parametrize(('k', 'tile'), [(5, None), (5, 3), (54, None), (54, 3)])
def test_cross_entropy_takes_the_rows_of_the_noise(x64, k, tile):
    outputs, state = made(k=k)
    own, noise = scores(outputs, state, 0.5)
    want = np.mean(np.log(np.exp(own) + np.exp(noise).sum(1)) - own)
    method = dataclasses.replace(SMALL, estimate='softmax', tile=tile)
    np.testing.assert_allclose(objective(method, outputs, state)[0], want, rtol=1e-12)


@pytest.mark.parametrize(
    ('rows', 'whole'), [(7_000, True), (54_000, True), (65_536, True), (65_537, False)]
)
def test_the_whole_bank_is_gone_through_where_its_rows_are_few(rows, whole, monkeypatch):
    # 4,096 rows of 128 numbers, 8 for each of 65,536 rows.
    counts = mock.Mock(wraps=nce.counts)
    monkeypatch.setattr(nce, 'counts', counts)
    shaped = jax.ShapeDtypeStruct
    shapes = ((4, 128), (rows, 128), (4,), (4, 4096))
    dtypes = (jnp.float32, jnp.float32, jnp.int32, jnp.int32)
    arguments = [shaped(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    z = {'log': shaped((), jnp.float32), 'known': shaped((), bool)}
    for tile in (None, 2):
        counts.reset_mock()
        jax.eval_shape(NPID(tile=tile).estimated, *arguments, z)
        assert counts.called == (whole and tile is None)


def test_scores_are_of_the_old_rows_and_the_new_rows_are_half_of_each(x64):
    outputs, state = made()
    _, (after, _) = objective(SMALL, outputs, state)
    index, bank = np.asarray(outputs['index']), np.asarray(state['bank'])
    want = bank.copy()
    want[index] = unit(0.5 * bank[index] + 0.5 * np.asarray(outputs['v']))
    np.testing.assert_allclose(after['bank'], want, rtol=1e-12, atol=1e-15)


def test_the_proximal_term_is_the_squared_distance_to_the_old_row(x64):
    outputs, state = made()
    plain = objective(SMALL, outputs, state)[0]
    pulled = objective(dataclasses.replace(SMALL, proximal=3.0), outputs, state)[0]
    own = np.asarray(state['bank'])[outputs['index']]
    want = 3 * np.mean(np.sum((np.asarray(outputs['v']) - own) ** 2, axis=1))
    np.testing.assert_allclose(pulled - plain, want, rtol=1e-12)


def test_vectors_and_rows_have_length_one_and_an_example_draws_its_own_noise():
    image = jax.random.normal(jax.random.key(0), (8, 1, 8, 8, 3))
    keys = jax.random.split(jax.random.key(1), 8)
    batch = {'image': image, 'index': jnp.arange(8, dtype=jnp.int32), 'key': keys}
    params, state = SMALL.init(jax.random.key(2), batch, RUN)
    assert state['bank'].shape == (RUN.examples, 6)
    np.testing.assert_allclose(np.linalg.norm(state['bank'], axis=1), 1, rtol=1e-6)
    outputs, _ = SMALL.forward(params, state, batch, jax.random.key(3))
    np.testing.assert_allclose(np.linalg.norm(outputs['v'], axis=1), 1, rtol=1e-6)
    alone = {name: leaf[2:4] for name, leaf in batch.items()}
    again, _ = SMALL.forward(params, state, alone, jax.random.key(4))
    np.testing.assert_array_equal(again['noise'], outputs['noise'][2:4])
    assert np.unique(outputs['noise'], axis=0).shape[0] == 8


def test_noise_is_uniform_over_all_rows():
    drawn = np.asarray(noise_rows(jax.random.split(jax.random.key(0), 50), 2_000, 40))
    counts = np.bincount(drawn.ravel(), minlength=40)
    assert counts.size == 40
    # Chi squared of 39 degrees of freedom: 39 on average, above 81 in one of 10,000.
    assert np.sum((counts - 2_500) ** 2 / 2_500) < 81


def test_head_and_bank_have_the_papers_sizes():
    batch = {'image': jnp.zeros((2, 1, 32, 32, 3))}
    init = lambda: NPID().init(jax.random.key(0), batch, RUN)
    params, state = jax.eval_shape(init)
    assert sum(leaf.size for leaf in jax.tree.leaves(params['head'])) == 2048 * 128 + 128
    assert state['bank'].shape == (40, 128)


@pytest.mark.parametrize(
    ('change', 'views', 'message'),
    [
        ({}, 2, 'the recipe makes 2; use CropFlip'),
        ({'temperature': 0.0}, 1, 'temperature is 0'),
        ({'negatives': 0}, 1, 'negatives is 0; use 1 or more'),
        ({'proximal': -1.0}, 1, 'proximal is -1'),
    ],
)
def test_what_does_not_fit_is_refused(change, views, message):
    data = Signature((('image', (views, 32)),), 3, None, 40)
    NPID().check(Signature((('image', (1, 32)),), 3, None, 40), RUN)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(NPID(), **change).check(data, RUN)


def test_smoke_keeps_the_kind():
    small = shrink(NPID()).smoke()
    assert small.negatives == 16 and small.encoder.depth == 10 and small.head.widths == (32,)
    whole = NPID(negatives=None, head=NoHead(), bank=Bank(0.2))
    assert shrink(whole).smoke().negatives is None
