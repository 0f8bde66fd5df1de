"""SwAV's own facts: who is coded with whom, who predicts whom, and where prototypes go."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import linen as nn

from ssljax.core import Now, Run, Signature
from ssljax.memory import Queue
from ssljax.methods.swav import SwAV, of_codes, unit_rows
from ssljax.nets.heads import ProjectionHead

N, D, K = 8, 4, 5
RUN = Run(examples=80, batch=N, steps=100, steps_per_epoch=10)


class Mean(nn.Module):
    """An encoder that looks at one image at a time, of any size: its mean colour, made wider."""

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(8)(x.mean((1, 2)))


HEAD = ProjectionHead(widths=(D,), last_norm='none', last_bias=True)
METHOD = SwAV(Mean(), HEAD, prototypes=K)
QUEUED = dataclasses.replace(METHOD, queue=Queue(20), queue_from=3.0)


def units(*shape, seed=0):
    x = np.random.default_rng(seed).normal(size=shape)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def batch(local=0, seed=0):
    rng = np.random.default_rng(seed)
    views = {'image': jnp.asarray(rng.normal(size=(N, 2, 6, 6, 3)))}
    return views | ({'local': jnp.asarray(rng.normal(size=(N, local, 4, 4, 3)))} if local else {})


def fresh(method, views):
    params, state = method.init(jax.random.key(0), views, RUN)
    return jax.tree.map(
        lambda a: a.astype(jnp.result_type(float)) if a.ndim else a, (params, state)
    )


def objective(method, z, prototypes, state=None, step=0):
    now = Now(jnp.asarray(step), jax.random.key(0), RUN)
    params, outputs = {'prototypes': jnp.asarray(prototypes)}, {'z': jnp.asarray(z)}
    return method.objective(params, outputs, state or {}, now)


def slow(z, prototypes, earlier=(None, None)):
    """The loss, from twins; `earlier` are embeddings that wait in the queue of either view."""
    scores, codes = z @ prototypes.T, []
    for i in range(2):
        every = scores[:, i] if earlier[i] is None else np.vstack([scores[:, i], earlier[i]])
        codes.append(reference.sinkhorn(every, 0.05, 3)[: len(z)])
    return reference.swapped_prediction(scores, np.stack(codes, 1), 0.1)


def test_head_and_prototypes_have_the_published_size():
    views = {'image': jnp.zeros((2, 2, 64, 64, 3))}
    params, _ = jax.eval_shape(lambda: SwAV().init(jax.random.key(0), views, RUN))
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert count(params['encoder']) == 23_508_032
    assert count(params['head']) + count(params['prototypes']) == 4_846_720
    assert params['prototypes'].shape == (3000, 128)


@pytest.mark.parametrize('views', [2, 5])
def test_the_loss_is_that_of_its_twins(x64, views):
    z, prototypes = units(N, views, D), units(K, D, seed=1)
    loss, _ = objective(METHOD, z, prototypes)
    np.testing.assert_allclose(loss, slow(z, prototypes), rtol=1e-11)


def test_equal_prototypes_cost_the_logarithm_of_their_number(x64):
    z, prototypes = units(N, 8, D), np.tile(units(1, D, seed=1), (3000, 1))
    np.testing.assert_allclose(objective(METHOD, z, prototypes)[0], 8.006368, rtol=1e-6)


@pytest.mark.parametrize('method', [METHOD, dataclasses.replace(QUEUED, queue_from=0.0)])
def test_gradients_are_those_with_recorded_codes(x64, method):
    z, prototypes = jnp.asarray(units(N, 3, D)), jnp.asarray(units(K, D, seed=1))
    _, state = fresh(method, batch())
    now = Now(jnp.asarray(50), jax.random.key(0), RUN)

    def loss(z, prototypes):
        return method.objective({'prototypes': prototypes}, {'z': z}, state, now)[0]

    _, codes = method.assign(z[:, :2], (z @ prototypes.T)[:, :2], prototypes, state, now)

    def with_recorded(z, prototypes):
        return reference_loss(z @ prototypes.T, np.asarray(codes))

    want = jax.grad(with_recorded, argnums=(0, 1))(z, prototypes)
    found = jax.jit(jax.grad(loss, argnums=(0, 1)))(z, prototypes)
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def reference_loss(scores, codes):
    """`reference.swapped_prediction` for a gradient to pass."""
    log_p = jax.nn.log_softmax(scores / 0.1)
    pairs = [(i, j) for i in range(codes.shape[1]) for j in range(scores.shape[1]) if i != j]
    return -sum(jnp.sum(codes[:, i] * log_p[:, j]) for i, j in pairs) / len(pairs) / len(scores)


def test_local_views_predict_and_are_not_coded(x64):
    z, prototypes = units(N, 5, D), units(K, D, seed=1)
    moved = np.concatenate([z[:, :2], units(N, 3, D, seed=2)], axis=1)
    one, other = (objective(METHOD, x, prototypes) for x in (z, moved))
    assert abs(one[0] - other[0]) > 1e-3
    assert one[1][1]['code_entropy'] == other[1][1]['code_entropy']


def test_views_come_out_in_order_at_unit_length(x64):
    views = batch(local=3)
    params, state = fresh(METHOD, views)
    forward = jax.jit(lambda views: METHOD.forward(params, state, views, jax.random.key(0))[0]['z'])
    z = forward(views)
    assert z.shape == (N, 5, D)
    np.testing.assert_allclose(np.linalg.norm(z, axis=2), 1, rtol=1e-12)
    for name, at, place in (('image', 1, 1), ('local', 0, 2), ('local', 2, 4)):
        changed = forward({**views, name: views[name].at[3, at].add(batch(4, 7)[name][3, at])})
        where = np.argwhere(np.abs(changed - z).max(-1) > 0)
        np.testing.assert_array_equal(where, [[3, place]])


def queued(seed=5):
    """A queue of directions, and its state."""
    rows = {f'view{i}': units(20, D, seed=seed + i) for i in range(2)}
    place = jnp.asarray(4, jnp.int32)
    state = {name: {'rows': jnp.asarray(x), 'next': place} for name, x in rows.items()}
    return rows, {'queue': state}


@pytest.mark.parametrize(('step', 'used'), [(0, False), (29, False), (30, True), (99, True)])
def test_the_queue_is_used_from_its_epoch_on(x64, step, used):
    z, prototypes = units(N, 3, D), units(K, D, seed=1)
    rows, state = queued()
    loss, _ = objective(QUEUED, z, prototypes, state, step)
    earlier = [rows[f'view{i}'] @ prototypes.T if used else None for i in range(2)]
    np.testing.assert_allclose(loss, slow(z, prototypes, earlier), rtol=1e-11)
    everyone = slow(z, prototypes, [x @ prototypes.T for x in rows.values()])
    assert abs(slow(z, prototypes) - everyone) > 1e-3


@pytest.mark.parametrize(('step', 'on'), [(0, False), (2, False), (3, True)])
def test_a_queue_is_not_used_before_it_is_full(step, on):
    early = dataclasses.replace(QUEUED, queue_from=0.0)  # 20 rows, 8 a step
    now = Now(jnp.asarray(step), jax.random.key(0), RUN)
    assert bool(early.queue_is_on(now)) == on


@pytest.mark.parametrize('step', [0, 50])
def test_each_coded_view_joins_its_own_queue_behind_the_loss(x64, step):
    z, prototypes = units(N, 3, D), units(K, D, seed=1)
    rows, state = queued()
    _, (after, _) = objective(QUEUED, z, prototypes, state, step)
    for i in range(2):
        queue = after['queue'][f'view{i}']
        assert queue['next'] == 12
        np.testing.assert_array_equal(queue['rows'][4:12], z[:, i])
        kept = np.r_[0:4, 12:20]
        np.testing.assert_array_equal(queue['rows'][kept], rows[f'view{i}'][kept])


def test_prototypes_keep_their_direction_and_have_length_1_behind_a_step(x64):
    rows = 3 * np.random.default_rng(0).normal(size=(K, D))
    params = {'encoder': {'w': jnp.ones(2)}, 'prototypes': jnp.asarray(rows)}
    now = Now(jnp.asarray(0), jax.random.key(0), RUN)
    after, state = METHOD.after(params, {'stats': {}}, now)
    np.testing.assert_allclose(
        after['prototypes'], rows / np.linalg.norm(rows, axis=1, keepdims=True), rtol=1e-12
    )
    assert after['encoder'] is params['encoder'] and state == {'stats': {}}


@pytest.mark.parametrize('width', [3, 128, 2048])
def test_prototypes_at_rest_keep_their_bits(width):
    rows = jnp.asarray(np.random.default_rng(0).normal(size=(500, width)), jnp.float32)
    for once in (unit_rows(rows), jax.jit(unit_rows)(rows)):
        np.testing.assert_allclose(np.linalg.norm(once, axis=1), 1, atol=2e-6)
        for again in (unit_rows(once), jax.jit(unit_rows)(once)):
            np.testing.assert_array_equal(again, once)


def test_what_is_said_of_codes(x64):
    hot = jnp.asarray(np.eye(6)[[0, 1, 1, 0]][:, None])
    assert {k: float(v) for k, v in of_codes(hot).items()} == {
        'code_entropy': 0,
        'prototypes_used': pytest.approx(2 / 6),
    }
    np.testing.assert_allclose(of_codes(jnp.full((4, 2, 6), 1 / 6))['code_entropy'], np.log(6))


@pytest.mark.parametrize(
    ('changes', 'views', 'message'),
    [
        ({}, {'image': (1, 8)}, "the recipe makes 1 under 'image'"),
        ({'coded': 3}, {'image': (2, 8), 'local': (6, 4)}, 'codes of 3'),
        ({'coded': 0}, {'image': (2, 8)}, 'codes of 0'),
        ({'prototypes': 1}, {'image': (2, 8)}, 'there are 1 prototypes'),
        ({'iterations': 0}, {'image': (2, 8)}, '0 iterations'),
        ({'temperature': 0.0}, {'image': (2, 8)}, 'temperature is 0.0'),
        ({'epsilon': -0.05}, {'image': (2, 8)}, 'epsilon -0.05'),
        ({'queue': Queue(7)}, {'image': (2, 8)}, 'queue length 7 is shorter'),
        ({'queue_from': -1.0}, {'image': (2, 8)}, 'queue_from is epoch -1.0'),
    ],
)
def test_refuses_what_does_not_fit(changes, views, message):
    data = Signature(tuple(views.items()), 3, None, 80)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(METHOD, **changes).check(data, RUN)
