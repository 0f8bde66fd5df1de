"""What every method has to pass, whatever it learns."""

import contextlib
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import CLASSES, METHODS, RUN, N
from jax.sharding import NamedSharding, PartitionSpec
from one_step import (
    assert_trees_close,
    fresh,
    gradients,
    graph,
    now,
    on_one_device,
    pairs,
    plain_gradients,
    program,
    raw_batch,
    ready_batch,
    refreshed,
    without_batch_norm,
)

from ssljax.core import Signature
from ssljax.evaluate.collapse import effective_rank, feature_std
from ssljax.evaluate.embed import embedder
from ssljax.export import native
from ssljax.optim import SGD
from ssljax.train.checkpoint import Checkpoints
from ssljax.train.step import make_init, make_step

# In the fast tier DINO, MoCo v2 and DeepCluster stand for their kinds.
SLOW = ('byol', 'moco_v3', 'swav')


def marks(name, case):
    return pytest.mark.slow if case.variant or name in SLOW else ()


@pytest.fixture(
    params=[pytest.param(name, marks=marks(name, case)) for name, case in METHODS.items()]
)
def case(request):
    return METHODS[request.param]


def operations(jaxpr):
    """All of a program's, those of inner programs included."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from operations(inner)


@pytest.mark.slow
def test_no_two_gradients_meet_at_a_place_given_by_index(case):
    """A GPU adds such in any order, or one by one where it has to repeat itself to the bit.

    Whole numbers, such as counts, are the same in any order.
    """
    traced = jax.make_jaxpr(graph(case))(*fresh(case), ready_batch(case.recipe))
    added = [e for e in operations(traced.jaxpr) if e.primitive.name == 'scatter-add']
    scattered = [e for e in added if jnp.issubdtype(e.outvars[0].aval.dtype, jnp.inexact)]
    assert [e for e in scattered if not e.params['unique_indices']] == []


def test_accepts_its_recipe_and_names_its_networks(case):
    method, recipe = case.method, case.recipe
    data = Signature(tuple(recipe.views().items()), 3, CLASSES, RUN.examples)
    method.check(data, RUN)
    params, state = fresh(case)
    assert isinstance(params, dict) and 'encoder' in params
    assert set(state['stats']) <= set(params) | set(state)


def test_outputs_are_example_first(case):
    method, recipe = case.method, case.recipe
    batch = ready_batch(recipe)
    params, state = fresh(case)
    forward = lambda p, b: method.forward(p, state, b, jax.random.key(0))
    for n in (4, N):
        part = jax.tree.map(lambda leaf, n=n: leaf[:n], batch)
        outputs, stats = jax.eval_shape(forward, params, part)
        assert all(leaf.shape[0] == n for leaf in jax.tree.leaves(outputs))
    same = lambda a, b: a.shape == b.shape and a.dtype == b.dtype
    assert jax.tree.all(jax.tree.map(same, stats, state['stats']))


def test_every_trained_parameter_gets_a_finite_gradient(case):
    params, state = fresh(case)
    # Last-layer scales that start at zero hide the block behind them from the first gradient.
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params
    )
    _, grads = graph(case)(params, state, ready_batch(case.recipe))
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(leaf)), name
        idle = any(re.search(pattern, name) for pattern in case.idle)
        assert np.any(np.asarray(leaf) != 0) != idle, name


def test_targets_are_constants(case, x64):
    _, grads, carried, outputs = plain_gradients(case)
    assert all(np.all(np.asarray(leaf) == 0) for leaf in carried)
    if case.targets:
        _, with_recorded, _, _ = gradients(case, {name: outputs[name] for name in case.targets})
        assert_trees_close(grads, with_recorded, rtol=1e-9, atol=1e-12)


MEANS = [
    pytest.param(name, marks=marks(name, case))
    for name, case in METHODS.items()
    if case.method.mean_over_examples
]


@pytest.mark.parametrize('name', MEANS)
def test_a_loss_declared_a_mean_over_examples_is_one(name, x64):
    case = METHODS[name]
    batch = ready_batch(case.recipe, jnp.float64)
    params, state = fresh(case, jnp.float64)

    @jax.jit
    def losses(params, batch):
        """Of the batch, and of each example as if it were all there is."""
        outputs, _ = case.method.forward(params, state, batch, jax.random.key(2))
        of = lambda outputs: case.method.objective(params, outputs, state, now())[0]
        alone = jax.tree.map(lambda leaf: leaf[:, None], outputs)
        return of(outputs), jax.lax.map(of, alone)

    whole, alone = losses(params, batch)
    assert alone.shape == (N,) and np.std(alone) > 0
    np.testing.assert_allclose(np.mean(alone), whole, rtol=1e-10)


@pytest.mark.slow
def test_the_whole_batch_has_the_gradient_of_the_loss(case, x64):
    value, grads, _, _ = plain_gradients(case)
    (loss, _), found = on_one_device(case)
    assert_trees_close((value, grads), (loss, found), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_micro_batches_change_nothing_but_what_batch_norm_sees(case):
    """So all that is random is drawn from the keys of examples: each part has a key of its own."""
    whole, *parted = (without_batch_norm(case, parts) for parts in (1, 2, 4))
    for found in parted:
        assert_trees_close(whole, found, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_micro_batches_have_the_gradient_of_their_outputs_put_together(case, x64):
    batch = ready_batch(case.recipe, jnp.float64)
    params, state = fresh(case, jnp.float64)
    key, parts = jax.random.key(2), 2

    def slow(params, batch):
        """Part by part, in one graph, and the outputs put back in the order of the examples."""
        outputs, stats = [], []
        for j in range(parts):
            part = jax.tree.map(lambda leaf, j=j: leaf[j::parts], batch)
            one, new = case.method.forward(params, state, part, jax.random.fold_in(key, j))
            outputs.append(one)
            stats.append(new)
        order = jnp.argsort(jnp.concatenate([jnp.arange(N)[j::parts] for j in range(parts)]))
        outputs = jax.tree.map(lambda *leaves: jnp.concatenate(leaves)[order], *outputs)
        stats = jax.tree.map(lambda *leaves: sum(leaves) / parts, *stats)
        return case.method.objective(params, outputs, {**state, 'stats': stats}, now())

    wanted = jax.jit(jax.value_and_grad(slow, has_aux=True))(params, batch)
    assert_trees_close(wanted, on_one_device(case, parts), rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_order_of_examples_does_not_matter(case, x64):
    order = jax.random.permutation(jax.random.key(5), N)
    shuffled = jax.tree.map(lambda leaf: leaf[order], ready_batch(case.recipe, jnp.float64))
    (loss, _), _ = on_one_device(case)
    (other, _), _ = graph(case)(*fresh(case, jnp.float64), shuffled)
    # Where BatchNorm sees a group at a time, the order says which examples are one.
    apart = getattr(case.method, 'norm_groups', 1) > 1
    assert np.isclose(loss, other, rtol=1e-12, atol=0) != apart


@pytest.mark.slow
def test_constant_images_give_a_finite_loss(case):
    batch = ready_batch(case.recipe)
    constant = {k: jnp.zeros_like(v) if k == 'image' else v for k, v in batch.items()}
    (loss, _), grads = graph(case)(*fresh(case), constant)
    assert np.isfinite(loss)
    assert np.isfinite(optax.global_norm(grads))


@pytest.mark.parametrize('parts', [1, pytest.param(2, marks=pytest.mark.slow)])
def test_same_loss_and_gradient_on_one_and_eight_devices(case, parts, x64, mesh8):
    split = NamedSharding(mesh8, PartitionSpec('data'))
    whole = NamedSharding(mesh8, PartitionSpec())
    sharded = jax.jit(program(case, parts), in_shardings=(whole, whole, split))
    arguments = *fresh(case, jnp.float64), ready_batch(case.recipe, jnp.float64)
    with jax.set_mesh(mesh8):
        eight = sharded(*arguments)
    assert_trees_close(on_one_device(case, parts), eight, rtol=1e-10, atol=1e-10)


@pytest.mark.slow
def test_step_compiles_once_rests_at_rate_zero_learns_and_resumes_bit_for_bit(case, tmp_path):
    method, recipe = case.method, case.recipe
    one_step = 1 / RUN.steps_per_epoch
    optimizer = SGD(
        learning_rate=case.learning_rate, scaling='none', warmup_epochs=one_step, decay='constant'
    )
    transform = optimizer.build(RUN)
    raw = raw_batch(recipe)
    first = jax.jit(make_init(method, recipe, transform, RUN, 0, raw))()
    params, carried = refreshed(method, recipe, first.params, first.method)
    state = dataclasses.replace(first, params=params, method=carried)
    step = jax.jit(make_step(method, recipe, transform, optimizer.schedule(RUN), RUN))
    unmoved, _ = step(state, raw)  # at rate 0
    for (path, x), (_, y) in pairs(state.params, unmoved.params):
        assert np.array_equal(x, y), path
    # Learning starts as it would have without that step: no momentum, queues as they were.
    still = jax.tree.map(lambda leaf: leaf if leaf.dtype == jnp.int32 else 0 * leaf, unmoved.opt)
    state = dataclasses.replace(unmoved, method=carried, opt=still)
    losses = []
    for k in range(25):
        if k == 23:
            with contextlib.closing(Checkpoints(tmp_path, 1, 0)) as checkpoints:
                checkpoints.save(k, state, {}, None)
        state, metrics = step(state, raw)
        losses.append(float(metrics['loss']))
    assert step._cache_size() == 1
    assert int(state.step) == 26
    assert case.moves(losses), losses
    images = raw['image'][:, 0]
    features = embedder(method, recipe)(state.params, state.method, images)
    assert float(effective_rank(features)) > 4
    # Of features and, where there are any, of embeddings; 1 is spread evenly over the sphere.
    std = float(feature_std(features)) * features.shape[1] ** 0.5
    assert min(std, float(metrics.get('std', std))) > 0.2

    with contextlib.closing(Checkpoints(tmp_path, 1, 0)) as checkpoints:
        again, _ = checkpoints.restore(jax.eval_shape(lambda: state))
    for _ in range(2):
        again, _ = step(again, raw)
    for (path, x), (_, y) in pairs(state, again):
        assert x.dtype == y.dtype, path
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = jax.random.key_data(x), jax.random.key_data(y)
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


def test_product_embeds_and_comes_back_from_an_export(case, tmp_path):
    method, recipe = case.method, case.recipe
    params, state = fresh(case)
    module, variables = method.product(params, state)
    meta = {'step': 0, 'channels': 3, 'size': 12, 'mean': [0.5], 'std': [0.5]}
    native.save(tmp_path / 'export', module, variables, meta)
    again, loaded, _ = native.load(tmp_path / 'export')
    assert again == module
    for (path, x), (_, y) in pairs(variables, loaded):
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path
    features = embedder(method, recipe)(params, state, raw_batch(recipe)['image'][:, 0])
    x = recipe.normalize(raw_batch(recipe)['image'][:, 0])
    np.testing.assert_array_equal(features, again.apply(loaded, x, train=False))


def test_is_a_hashable_value(case):
    method = case.method
    assert hash(method) == hash(dataclasses.replace(method))
    assert method == dataclasses.replace(method)
