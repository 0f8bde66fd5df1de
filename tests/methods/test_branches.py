"""What BYOL and MoCo v3 share: the target, its gradient, its average, its statistics."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.core import Now, Run, Signature
from ssljax.methods.byol import BYOL
from ssljax.methods.moco_v3 import MoCoV3
from ssljax.momentum import Momentum
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import SGD
from ssljax.train.step import make_init, make_step
from ssljax.views.byol import BYOLViews

RUN = Run(examples=80, batch=8, steps=100, steps_per_epoch=10)
ENCODER = SmallResNet(stem_patch=2, widths=(6,), blocks=(1,))
HEAD = ProjectionHead((10, 5), last_norm='none')
METHODS = {
    'byol': BYOL(ENCODER, HEAD, HEAD),
    'moco_v3': MoCoV3(ENCODER, HEAD, HEAD, temperature=0.3),
}


@pytest.fixture(params=METHODS)
def method(request):
    return METHODS[request.param]


def at(step):
    return Now(jnp.asarray(step), jax.random.key(0), RUN)


def images(seed=0, n=8):
    image = np.random.default_rng(seed).normal(size=(n, 2, 8, 8, 3))
    return {'image': jnp.asarray(image)}


@functools.partial(jax.jit, static_argnums=0)
def init(method):
    return method.init(jax.random.key(0), images(), RUN)


@functools.partial(jax.jit, static_argnums=0)
def forward(method, params, state, batch):
    return method.forward(params, state, batch, jax.random.key(1))


def fresh(method):
    """Parameters and state in the widest dtype, the target's weights unlike the online ones."""
    params, state = init(method)
    away = lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    state = {**state, 'target': jax.tree.map(away, state['target'])}
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), (params, state))


def outputs_of(method, params, state, batch):
    return forward(method, params, state, batch)[0]


def loss_of(method, outputs):
    return method.objective({}, outputs, {}, at(0))[0]


def branch(params):
    return {'encoder': params['encoder'], 'projector': params['projector']}


def test_target_is_a_copy_without_predictor(method):
    params, state = init(method)
    assert set(params) == {'encoder', 'projector', 'predictor'}
    chex.assert_trees_all_equal(state['target'], branch(params))
    assert set(state['stats']['target']) == {'encoder', 'projector'}


@pytest.mark.slow
def test_gradient_is_that_with_the_targets_recorded(method, x64):
    params, state = fresh(method)
    batch = images()
    recorded = outputs_of(method, params, {**state, 'target': branch(params)}, batch)['target']

    def tied(params):
        # The online weights stand in the target too: only a stop makes it a constant.
        own = {**state, 'target': branch(params)}
        return loss_of(method, outputs_of(method, params, own, batch))

    def constant(params):
        outputs = outputs_of(method, params, state, batch)
        return loss_of(method, {**outputs, 'target': recorded})

    got, want = (jax.jit(jax.value_and_grad(f))(params) for f in (tied, constant))
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-12)


def test_target_gets_no_gradient(method):
    params, state = fresh(method)

    def loss(target):
        return loss_of(method, outputs_of(method, params, {**state, 'target': target}, images()))

    grads = jax.jit(jax.grad(loss))(state['target'])
    chex.assert_trees_all_equal(grads, jax.tree.map(jnp.zeros_like, grads))
    outputs = outputs_of(method, params, state, images())
    slopes = jax.grad(lambda outputs: loss_of(method, outputs))(outputs)
    assert not slopes['target'].any() and slopes['prediction'].any()


def test_loss_does_not_change_when_the_views_swap(method, x64):
    params, state = fresh(method)
    batch = images()
    swapped = {'image': batch['image'][:, ::-1]}
    one, two = (loss_of(method, outputs_of(method, params, state, b)) for b in (batch, swapped))
    np.testing.assert_allclose(one, two, rtol=1e-12)


def test_each_view_is_normalised_by_its_own_batch(method):
    params, state = fresh(method)
    batch, other = images(), images(seed=1)
    mixed = {'image': jnp.stack([batch['image'][:, 0], other['image'][:, 1]], axis=1)}
    one, two = (outputs_of(method, params, state, b) for b in (batch, mixed))
    for name in ('prediction', 'target'):
        np.testing.assert_array_equal(one[name][:, 0], two[name][:, 0])
        assert (one[name][:, 1] != two[name][:, 1]).any()


def test_statistics_of_the_target_are_its_own(method):
    params, state = fresh(method)
    stats = forward(method, params, state, images())[1]
    chex.assert_trees_all_equal_shapes_and_dtypes(stats, state['stats'])
    # The stem sees weights of its own branch, so its means differ.
    online, target = (s['encoder']['stem_norm']['mean'] for s in (stats, stats['target']))
    assert not np.allclose(online, target)
    zero = {**params, 'encoder': jax.tree.map(jnp.zeros_like, params['encoder'])}
    again = forward(method, zero, state, images())[1]
    chex.assert_trees_all_equal(again['target'], stats['target'])


@pytest.mark.parametrize('start', [0.0, 1.0, 0.75])
def test_target_is_the_average(method, start):
    method = type(method)(ENCODER, HEAD, HEAD, Momentum(start, 'constant'))
    params, state = fresh(method)
    same, after = method.after(params, state, at(3))
    chex.assert_trees_all_equal(same, params)
    chex.assert_trees_all_equal(after['stats'], state['stats'])
    mix = lambda t, s: start * t + (1 - start) * s
    want = jax.tree.map(mix, state['target'], branch(params))
    if start in (0, 1):
        chex.assert_trees_all_equal(after['target'], want)
    else:
        chex.assert_trees_all_close(after['target'], want, rtol=1e-6, atol=1e-7)


@pytest.mark.slow
def test_the_average_takes_the_parameters_of_this_very_step(method):
    method = type(method)(ENCODER, HEAD, HEAD, Momentum(0.5, 'constant'))
    optimizer = SGD(learning_rate=0.5, scaling='none', decay='constant')
    recipe = BYOLViews(size=8, jitter=0.0, blur=(0.0, 0.0))
    transform = optimizer.build(RUN)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 2, 8, 8, 3), np.uint8)
    batch = {'image': jnp.asarray(pixels), 'index': jnp.arange(8, dtype=jnp.int32)}
    before = jax.jit(make_init(method, recipe, transform, RUN, 0, batch))()
    step = jax.jit(make_step(method, recipe, transform, optimizer.schedule(RUN), RUN))
    state, metrics = step(before, batch)
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), state.params, before.params)
    assert max(jax.tree.leaves(moved)) > 1e-3
    mix = lambda t, s: 0.5 * t + 0.5 * s
    want = jax.tree.map(mix, before.method['target'], branch(state.params))
    chex.assert_trees_all_close(state.method['target'], want, rtol=1e-6, atol=1e-7)
    assert float(metrics['momentum']) == 0.5


@pytest.mark.parametrize(('kind', 'start'), [(BYOL, 0.996), (MoCoV3, 0.99)])
def test_momentum_rises_along_a_cosine(kind, start):
    momentum = kind().momentum
    for step, want in ((0, start), (RUN.steps // 2, (1 + start) / 2), (RUN.steps, 1.0)):
        np.testing.assert_allclose(momentum.at(at(step)), want, rtol=1e-6)


def test_product_is_the_online_encoder(method):
    params, state = fresh(method)
    module, variables = method.product(params, state)
    assert module == ENCODER
    chex.assert_trees_all_equal(variables['params'], params['encoder'])
    chex.assert_trees_all_equal(variables['batch_stats'], state['stats']['encoder'])


@pytest.mark.parametrize('views', [1, 3])
def test_another_number_of_views_is_refused(method, views):
    data = Signature((('image', (views, 32)),), 3, None, 80)
    with pytest.raises(ValueError, match=f'needs 2, the recipe makes {views}'):
        method.check(data, RUN)
