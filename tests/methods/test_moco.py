"""MoCo's own facts: its order of events, its constants, and who is normalised with whom."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.core import Now, Run, Signature, with_keys
from ssljax.memory import Queue
from ssljax.methods.moco import MoCo, permutation
from ssljax.momentum import Momentum
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.norm import batch_norm
from ssljax.nets.small import SmallResNet
from ssljax.optim import SGD
from ssljax.train.step import make_init, make_step
from ssljax.views.simclr import SimCLRViews

N, SIZE, GROUPS = 16, 8, 8
RUN = Run(examples=160, batch=N, steps=20, steps_per_epoch=10)
HEAD = ProjectionHead(
    widths=(8, 4), hidden_norm='none', hidden_bias=True, last_norm='none', last_bias=True
)
ENCODER = SmallResNet(stem_patch=2, widths=(8,), blocks=(1,))
MOCO = MoCo(ENCODER, HEAD, momentum=Momentum(0.9, 'constant'), queue=Queue(40))
GROUPED = dataclasses.replace(MOCO, encoder=dataclasses.replace(ENCODER, norm_groups=GROUPS))
RECIPE = SimCLRViews(size=SIZE, jitter=0.0, gray=0.0, blur=0.0)


class Tiny(nn.Module):
    """The mean pixel, multiplied out, and normalised in groups: who meets whom can be seen."""

    norm_groups: int
    normed: bool = True

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(4)(x.reshape(x.shape[0], -1))
        return batch_norm(train, None, self.norm_groups, name='norm')(x) if self.normed else x


def draw(seed=1, views=2, n=N):
    """Views in float64, each of its own level."""
    numbers = jax.random.normal(jax.random.key(seed), (n, views, SIZE, SIZE, 3), jnp.float64)
    return {'image': numbers + jnp.arange(n)[:, None, None, None, None] / n}


def fresh(method, batch):
    cast = lambda leaf: (
        leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    )
    init = jax.jit(lambda batch: method.init(jax.random.key(0), batch, RUN))
    params, state = jax.tree.map(cast, init(batch))
    # A target that has gone its own way, as after some steps.
    noise = lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    return params, {**state, 'target': jax.tree.map(noise, state['target'])}


def now(step=0):
    return Now(jnp.asarray(step), jax.random.key(3), RUN)


def evaluate(method, params, state, batch, key=2):
    outputs, stats = method.forward(params, state, batch, jax.random.key(key))
    return method.objective(params, outputs, {**state, 'stats': stats}, now())


evaluate_jitted = jax.jit(evaluate, static_argnums=0)


def assert_trees_close(a, b, **bounds):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **bounds), a, b)


def assert_same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize('symmetric', [False, True])
@pytest.mark.parametrize(('length', 'expected'), [(65_536, 11.090370), (4096, np.log(4097))])
def test_where_all_dot_products_are_equal_the_loss_is_that_of_a_guess(symmetric, length, expected):
    method = dataclasses.replace(MOCO, queue=Queue(length), symmetric=symmetric)
    e = jnp.eye(4)[0]
    same = jnp.broadcast_to(e, (N, len(method.roles), 4))
    state = {'queue': {'rows': jnp.broadcast_to(e, (length, 4)), 'next': jnp.zeros((), jnp.int32)}}
    loss, _ = method.objective({}, {'query': same, 'key': same}, state, now())
    np.testing.assert_allclose(loss, expected * len(method.roles), rtol=1e-6)


@pytest.mark.parametrize(('temperature', 'expected'), [(0.07, 0.040135), (0.2, 6.092617)])
def test_right_keys_among_orthogonal_negatives(temperature, expected):
    method = dataclasses.replace(MOCO, queue=Queue(65_536), temperature=temperature)
    e, other = jnp.eye(4)[:2]
    found = jnp.broadcast_to(e, (N, 1, 4))
    rows = jnp.broadcast_to(other, (65_536, 4))
    state = {'queue': {'rows': rows, 'next': jnp.zeros((), jnp.int32)}}
    loss, _ = method.objective({}, {'query': found, 'key': found}, state, now())
    np.testing.assert_allclose(loss, expected, rtol=1e-4)


def test_keys_join_the_queue_behind_the_loss(x64):
    batch = draw()
    params, state = fresh(MOCO, batch)
    outputs, stats = jax.jit(MOCO.forward)(params, state, batch, jax.random.key(2))
    loss, (after, _) = MOCO.objective(params, outputs, {**state, 'stats': stats}, now())
    q, k = outputs['query'][:, 0], outputs['key'][:, 0]
    np.testing.assert_allclose(np.linalg.norm(k, axis=1), 1, rtol=1e-12)
    rows = np.asarray(state['queue']['rows'])
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)  # in float64
    logits = np.concatenate([np.sum(q * k, 1)[:, None], q @ rows.T], 1) / 0.2
    np.testing.assert_allclose(loss, np.mean(jax.nn.logsumexp(logits, 1) - logits[:, 0]), rtol=1e-9)
    np.testing.assert_array_equal(after['queue']['rows'][:N], k)
    np.testing.assert_array_equal(after['queue']['rows'][N:], state['queue']['rows'][N:])
    assert after['queue']['next'] == N


def test_queries_are_the_first_view_and_keys_the_second(x64):
    batch = draw()
    params, state = fresh(MOCO, batch)
    forward = jax.jit(
        lambda image: MOCO.forward(params, state, {'image': image}, jax.random.key(2))
    )
    before = forward(batch['image'])[0]
    for view, name in enumerate(('query', 'key')):
        changed = forward(batch['image'].at[:, view].add(draw(seed=7)['image'][:, view]))[0]
        other = {'query': 'key', 'key': 'query'}[name]
        assert np.abs(changed[name] - before[name]).max() > 1e-3
        np.testing.assert_array_equal(changed[other], before[other])


def test_the_symmetric_loss_is_the_sum_of_both_directions(x64):
    batch, both = draw(), dataclasses.replace(MOCO, symmetric=True)
    params, state = fresh(MOCO, batch)
    swapped = {'image': batch['image'][:, ::-1]}
    one, other = (evaluate_jitted(MOCO, params, state, b)[0] for b in (batch, swapped))
    loss, (after, _) = evaluate_jitted(both, params, state, batch)
    assert abs(one - other) > 1e-3
    np.testing.assert_allclose(loss, one + other, rtol=1e-9)
    np.testing.assert_allclose(evaluate_jitted(both, params, state, swapped)[0], loss, rtol=1e-9)
    assert after['queue']['next'] == 2 * N
    keys = jax.jit(both.forward)(params, state, batch, jax.random.key(2))[0]['key']
    np.testing.assert_allclose(after['queue']['rows'][: 2 * N], keys.reshape(2 * N, -1), rtol=1e-9)


@pytest.mark.parametrize('method', [MOCO, dataclasses.replace(GROUPED, symmetric=True)])
def test_gradients_are_those_with_recorded_keys(x64, method):
    batch = draw()
    params, state = fresh(method, batch)

    # Target and queue are made of the parameters here, so that a gradient could find a way back.
    def tied(params):
        rows = params['head']['linear2']['bias'] + state['queue']['rows']
        return {**state, 'target': params, 'queue': {**state['queue'], 'rows': rows}}

    key = jax.random.key(2)
    outputs, stats = jax.jit(method.forward)(params, tied(params), batch, key)
    recorded = tied(params)

    def loss(params):
        return evaluate(method, params, tied(params), batch)[0]

    def loss_with_recorded_keys(params):
        query = method.forward(params, recorded, batch, key)[0]['query']
        constant = {**recorded, 'stats': stats}
        found = {'query': query, 'key': outputs['key']}
        return method.objective(params, found, constant, now())[0]

    slopes = [jax.jit(jax.grad(f))(params) for f in (loss, loss_with_recorded_keys)]
    assert_trees_close(*slopes, rtol=1e-9, atol=1e-12)


def test_no_gradient_reaches_target_and_queue(x64):
    batch = draw()
    params, state = fresh(GROUPED, batch)

    def loss(target, rows):
        queue = {**state['queue'], 'rows': rows}
        return evaluate(GROUPED, params, {**state, 'target': target, 'queue': queue}, batch)[0]

    slopes = jax.jit(jax.grad(loss, (0, 1)))(state['target'], state['queue']['rows'])
    for slope in jax.tree.leaves(slopes):
        np.testing.assert_array_equal(slope, 0)


def raw_batch():
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.integers(0, 256, (N, 2, SIZE, SIZE, 3)), jnp.uint8)
    return {'index': jnp.arange(N, dtype=jnp.int32), 'image': image}


def machinery(method):
    optimizer = SGD(learning_rate=0.05, scaling='none', decay='constant')
    transform, schedule = optimizer.build(RUN), optimizer.schedule(RUN)
    state = jax.jit(make_init(method, RECIPE, transform, RUN, 0, raw_batch()))()
    return state, jax.jit(make_step(method, RECIPE, transform, schedule, RUN)), transform


def test_the_order_of_events_is_that_of_the_published_algorithm():
    """Average with the parameters as they are, keys, loss, optimizer, queue: and so on."""
    raw = raw_batch()
    ours, step, transform = machinery(GROUPED)
    params, opt = ours.params, ours.opt
    target, queue, stats = ours.method['target'], ours.method['queue'], ours.method['stats']

    @jax.jit
    def published(params, opt, target, queue, stats, number):
        keys = jax.random.split(jax.random.fold_in(ours.key, number), 4)
        batch = RECIPE.on_device(with_keys(raw, keys[0]))
        target = jax.tree.map(lambda t, s: 0.9 * t + 0.1 * s, target, params)
        state = {'target': target, 'stats': stats, 'queue': queue}

        def loss(params):
            outputs, stats = GROUPED.forward(params, state, batch, keys[1])
            value, _ = GROUPED.objective(params, outputs, {**state, 'stats': stats}, now())
            return value, (outputs['key'][:, 0], stats)

        (value, (k, stats)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt = transform.update(grads, opt, params)
        places = (queue['next'] + jnp.arange(N)) % 40
        queue = {'rows': queue['rows'].at[places].set(k), 'next': (queue['next'] + N) % 40}
        return optax.apply_updates(params, updates), opt, target, queue, stats, value

    for number in range(4):
        params, opt, target, queue, stats, value = published(
            params, opt, target, queue, stats, number
        )
        ours, metrics = step(ours, raw)
        np.testing.assert_allclose(metrics['loss'], value, rtol=1e-5)
    bounds = {'rtol': 1e-4, 'atol': 1e-5}
    assert_trees_close(ours.params, params, **bounds)
    assert_trees_close(ours.method['queue'], queue, **bounds)
    assert_trees_close(ours.method['stats'], stats, **bounds)
    # Ours has already moved for the next step.
    moved = jax.tree.map(lambda t, s: 0.9 * t + 0.1 * s, target, params)
    assert_trees_close(ours.method['target'], moved, **bounds)


@pytest.mark.parametrize('momentum', [0.0, 1.0])
def test_momentum_one_freezes_the_target_and_zero_copies_the_encoder(momentum):
    start, step, _ = machinery(dataclasses.replace(MOCO, momentum=Momentum(momentum, 'constant')))
    assert_same(start.method['target'], start.params)
    end, _ = step(start, raw_batch())
    expected = end.params if momentum == 0.0 else start.params
    assert_same(end.method['target'], expected)
    assert not np.array_equal(
        end.params['head']['linear1']['kernel'], start.params['head']['linear1']['kernel']
    )


def test_the_target_keeps_statistics_of_its_own(x64):
    batch = draw()
    params, state = fresh(MOCO, batch)
    _, stats = jax.jit(MOCO.forward)(params, state, batch, jax.random.key(2))
    name = lambda tree: tree['encoder']['stem_norm']['mean']
    assert np.abs(name(stats['target']) - name(state['stats']['target'])).max() > 1e-3
    # It saw another view by other parameters.
    assert np.abs(name(stats['target']) - name(stats)).max() > 1e-3
    _, after = MOCO.after(params, {**state, 'stats': stats}, now())
    assert_same(after['stats'], stats)


def meetings(method, branch, key=2):
    """Which example's embedding depends on which other example, [n, n]."""
    batch = draw()
    params, state = fresh(method, batch)
    view = ('query', 'key').index(branch)
    forward = jax.jit(
        lambda image: method.forward(params, state, {'image': image}, jax.random.key(key))[0][
            branch
        ]
    )
    before = forward(batch['image'])
    moved = [
        forward(batch['image'].at[j, view].multiply(1.5))[:, 0] - before[:, 0] for j in range(N)
    ]
    return np.abs(np.stack(moved, axis=1)).max(-1) > 0


@pytest.mark.slow
@pytest.mark.parametrize('groups', [2, 4])
def test_shuffling_changes_whom_a_key_is_normalised_with(x64, groups):
    plain = MoCo(Tiny(groups), HEAD, queue=Queue(40), shuffle=False)
    shuffled = dataclasses.replace(plain, shuffle=True)
    neighbours = np.kron(np.eye(groups), np.ones((N // groups, N // groups))) > 0
    np.testing.assert_array_equal(meetings(plain, 'query'), neighbours)
    np.testing.assert_array_equal(meetings(plain, 'key'), neighbours)
    np.testing.assert_array_equal(meetings(shuffled, 'query'), neighbours)
    drawn = meetings(shuffled, 'key')
    assert (drawn.sum(0) == N // groups).all() and (drawn.sum(1) == N // groups).all()
    np.testing.assert_array_equal(drawn, drawn @ drawn)  # groups: who meets whom's, meets them
    assert (drawn != neighbours).any()
    assert (drawn != meetings(shuffled, 'key', key=4)).any()


def test_the_shuffle_is_undone(x64):
    order, back = permutation(jax.random.key(0), 100)
    np.testing.assert_array_equal(order[back], np.arange(100))
    np.testing.assert_array_equal(back[order], np.arange(100))
    assert not np.array_equal(order, np.arange(100))
    # Without any norm, then, keys are the same shuffled or not.
    batch = draw()
    plain = MoCo(Tiny(GROUPS, normed=False), HEAD, queue=Queue(40), shuffle=False)
    params, state = fresh(plain, batch)
    keys = [
        dataclasses.replace(plain, shuffle=s).forward(params, state, batch, jax.random.key(2))[0]
        for s in (False, True)
    ]
    assert_trees_close(*keys, rtol=1e-12)


def test_shuffled_groups_give_the_same_on_one_and_eight_devices(x64, mesh8):
    batch = draw()
    method = dataclasses.replace(GROUPED, symmetric=True)
    params, state = fresh(method, batch)

    def both(params, state, batch):
        loss = lambda params: evaluate(method, params, state, batch)
        return jax.value_and_grad(loss, has_aux=True)(params)

    split, whole = (NamedSharding(mesh8, PartitionSpec(*a)) for a in (('data',), ()))
    one = jax.jit(both)(params, state, batch)
    with jax.set_mesh(mesh8):
        eight = jax.jit(both, in_shardings=(whole, whole, split))(params, state, batch)
    assert_trees_close(one, eight, rtol=1e-9, atol=1e-10)


def test_shuffled_keys_are_computed_once_over_all_devices(mesh8):
    batch = {'image': jnp.zeros((N, 2, SIZE, SIZE, 3))}
    params, state = MOCO.init(jax.random.key(0), batch, RUN)
    split = NamedSharding(mesh8, PartitionSpec('data'))

    def operations(shuffle):
        method = dataclasses.replace(GROUPED, shuffle=shuffle)
        run = jax.jit(method.forward, in_shardings=(None, None, split, None))
        with jax.set_mesh(mesh8):
            compiled = run.lower(params, state, batch, jax.random.key(2)).compile()
        return compiled.cost_analysis()['flops']

    # Keys that every device computes whole cost eight times their part: 4.5 times the forward pass.
    assert operations(shuffle=True) < 1.5 * operations(shuffle=False)


def test_the_product_is_the_encoder_of_the_queries(x64):
    params, state = fresh(MOCO, draw())
    module, variables = MOCO.product(params, state)
    assert module == MOCO.encoder
    assert_same(variables['params'], params['encoder'])
    assert_same(variables['batch_stats'], state['stats']['encoder'])


@pytest.mark.parametrize(
    ('changes', 'views', 'message'),
    [
        ({}, 1, 'query and a key view of each image, the recipe makes 1'),
        ({}, 3, 'query and a key view of each image, the recipe makes 3'),
        ({'temperature': 0.0}, 2, 'temperature is 0.0'),
        ({'queue': Queue(15)}, 2, 'queue length 15 is shorter than the global batch 16'),
        ({'queue': Queue(31), 'symmetric': True}, 2, 'batch 16 with 2 keys an example'),
        ({'encoder': Tiny(3)}, 2, 'batch of 16 cannot be split evenly into the 3 norm_groups'),
    ],
)
def test_refuses_what_does_not_fit(changes, views, message):
    data = Signature((('image', (views, SIZE)),), 3, None, 160)
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MOCO, **changes).check(data, RUN)
