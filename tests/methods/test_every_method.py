"""What every method has to pass, whatever it learns."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.core import Now, Run, Signature, with_keys
from ssljax.memory import Queue
from ssljax.methods.byol import BYOL
from ssljax.methods.moco import MoCo
from ssljax.methods.moco_v3 import MoCoV3
from ssljax.methods.simclr import SimCLR
from ssljax.methods.supervised import Supervised
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import SGD
from ssljax.train.step import make_init, make_step
from ssljax.views.byol import BYOLViews
from ssljax.views.simclr import SimCLRViews
from ssljax.views.supervised import CropFlip

N, SIZE, CLASSES = 16, 12, 3
RUN = Run(examples=160, batch=N, steps=20, steps_per_epoch=10)
ENCODER = SmallResNet(stem_patch=2, widths=(8, 16), blocks=(1, 1))
TWO_VIEWS = SimCLRViews(size=SIZE, blur=0.5)
CROPS = SimCLRViews(size=SIZE, jitter=0.0, gray=0.0, blur=0.0)
BRANCHES = (ENCODER, *[ProjectionHead(widths=(16, 8), last_norm='none')] * 2)

METHODS = {
    'simclr': (SimCLR(ENCODER, ProjectionHead(widths=(16, 8)), temperature=0.5), TWO_VIEWS),
    'simclr_tiled': (
        SimCLR(ENCODER, ProjectionHead(widths=(16, 8)), temperature=0.5, tile=8),
        TWO_VIEWS,
    ),
    'byol': (BYOL(*BRANCHES), BYOLViews(size=SIZE)),
    'moco_v3': (MoCoV3(*BRANCHES, temperature=0.5), BYOLViews(size=SIZE)),
    # A queue that the batch does not divide, and one that two keys an example do.
    'moco_v1': (
        MoCo(
            ENCODER,
            ProjectionHead(widths=(16,), last_norm='none', last_bias=True),
            temperature=0.07,
            queue=Queue(40),
        ),
        CROPS,
    ),
    'moco_v2': (
        MoCo(
            ENCODER,
            ProjectionHead(
                widths=(16, 8),
                hidden_norm='none',
                hidden_bias=True,
                last_norm='none',
                last_bias=True,
            ),
            queue=Queue(64),
            symmetric=True,
        ),
        CROPS,
    ),
    'supervised': (Supervised(ENCODER, classes=CLASSES), CropFlip(size=SIZE)),
}


def falls(losses):
    return np.mean(losses[-5:]) < np.mean(losses[:5])


def rises_and_falls(losses):
    """As random directions leave a queue for images that are hard to tell apart, then are not."""
    return losses[0] < losses[5] and np.mean(losses[-5:]) < np.mean(losses[5:10])


# How the loss of one batch moves, where it does not fall from the start.
MOVES = {'moco_v1': rises_and_falls, 'moco_v2': rises_and_falls}


@pytest.fixture(params=METHODS)
def case(request):
    return METHODS[request.param]


def raw_batch(recipe, n=N):
    """A batch as the pipeline delivers it: blobs, so that neighbouring pixels agree."""
    rng = np.random.default_rng(0)
    batch = {'index': jnp.arange(n, dtype=jnp.int32), 'label': jnp.arange(n) % CLASSES}
    for name, (views, size) in recipe.views().items():
        coarse = (
            rng.integers(0, 256, (n, 1, 3, 3, 3)).repeat(-(-size // 3), 2).repeat(-(-size // 3), 3)
        )
        noise = rng.integers(-20, 20, (n, views, size, size, 3))
        image = np.clip(coarse[:, :, :size, :size] + noise, 0, 255)
        batch[name] = jnp.asarray(image, jnp.uint8)
    return batch


def ready_batch(recipe, dtype=jnp.float32):
    batch = recipe.on_device(with_keys(raw_batch(recipe), jax.random.key(1)))
    floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    return {k: v.astype(dtype) if floating(v) else v for k, v in batch.items()}


def fresh(method, batch, dtype=jnp.float32):
    cast = lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    return jax.tree.map(cast, method.init(jax.random.key(0), batch, RUN))


def loss_of(method, state, batch):
    def loss(params):
        outputs, stats = method.forward(params, state, batch, jax.random.key(2))
        now = Now(jnp.asarray(0), jax.random.key(3), RUN)
        return method.objective(params, outputs, {**state, 'stats': stats}, now)

    return loss


def assert_trees_close(a, b, **bounds):
    pairs = zip(
        jax.tree_util.tree_leaves_with_path(a), jax.tree_util.tree_leaves_with_path(b), strict=True
    )
    for (path, x), (_, y) in pairs:
        np.testing.assert_allclose(
            np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path), **bounds
        )


def test_accepts_its_recipe_and_names_its_networks(case):
    method, recipe = case
    data = Signature(tuple(recipe.views().items()), 3, CLASSES, RUN.examples)
    method.check(data, RUN)
    params, state = fresh(method, ready_batch(recipe))
    assert isinstance(params, dict) and 'encoder' in params
    assert set(state['stats']) <= set(params) | set(state)


def test_outputs_are_example_first(case):
    method, recipe = case
    batch = ready_batch(recipe)
    params, state = fresh(method, batch)
    forward = lambda p, b: method.forward(p, state, b, jax.random.key(0))
    for n in (4, N):
        part = jax.tree.map(lambda leaf, n=n: leaf[:n], batch)
        outputs, stats = jax.eval_shape(forward, params, part)
        assert all(leaf.shape[0] == n for leaf in jax.tree.leaves(outputs))
    same = lambda a, b: a.shape == b.shape and a.dtype == b.dtype
    assert jax.tree.all(jax.tree.map(same, stats, state['stats']))


def test_every_trained_parameter_gets_a_finite_gradient(case):
    method, recipe = case
    batch = ready_batch(recipe)
    params, state = fresh(method, batch)
    # Last-layer scales that start at zero hide the block behind them from the first gradient.
    params = jax.tree.map(
        lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape), params
    )
    grads = jax.grad(loss_of(method, state, batch), has_aux=True)(params)[0]
    for path, leaf in jax.tree_util.tree_leaves_with_path(grads):
        name = jax.tree_util.keystr(path)
        assert np.all(np.isfinite(leaf)), name
        assert np.any(np.asarray(leaf) != 0), name


def test_order_of_examples_does_not_matter(case, x64):
    method, recipe = case
    batch = ready_batch(recipe, jnp.float64)
    params, state = fresh(method, batch, jnp.float64)
    order = jax.random.permutation(jax.random.key(5), N)
    shuffled = jax.tree.map(lambda leaf: leaf[order], batch)
    loss = loss_of(method, state, batch)(params)[0]
    other = loss_of(method, state, shuffled)(params)[0]
    np.testing.assert_allclose(loss, other, rtol=1e-12)


def test_constant_images_give_a_finite_loss(case):
    method, recipe = case
    batch = ready_batch(recipe)
    constant = {k: jnp.zeros_like(v) if k == 'image' else v for k, v in batch.items()}
    params, state = fresh(method, batch)
    (loss, _), grads = jax.value_and_grad(loss_of(method, state, constant), has_aux=True)(params)
    assert np.isfinite(loss)
    assert np.isfinite(optax.global_norm(grads))


def test_same_loss_and_gradient_on_one_and_eight_devices(case, x64, mesh8):
    method, recipe = case
    batch = ready_batch(recipe, jnp.float64)
    params, state = fresh(method, batch, jnp.float64)

    def both(params, state, batch):
        return jax.value_and_grad(loss_of(method, state, batch), has_aux=True)(params)

    one = jax.jit(both)(params, state, batch)
    split = NamedSharding(mesh8, PartitionSpec('data'))
    whole = NamedSharding(mesh8, PartitionSpec())
    with jax.set_mesh(mesh8):
        eight = jax.jit(both, in_shardings=(whole, whole, split))(params, state, batch)
    assert_trees_close(one, eight, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('name', METHODS)
def test_step_compiles_once_and_learns_one_batch(name):
    method, recipe = METHODS[name]
    optimizer = SGD(learning_rate=0.05, scaling='none', warmup_epochs=0.0, decay='constant')
    transform = optimizer.build(RUN)
    raw = raw_batch(recipe)
    state = jax.jit(make_init(method, recipe, transform, RUN, 0, raw))()
    step = jax.jit(make_step(method, recipe, transform, optimizer.schedule(RUN), RUN))
    losses = []
    for _ in range(25):
        state, metrics = step(state, raw)
        losses.append(float(metrics['loss']))
    assert step._cache_size() == 1
    assert int(state.step) == 25
    assert MOVES.get(name, falls)(losses), losses
    assert float(metrics.get('std', 1.0)) > 0.2


def test_learning_rate_zero_changes_no_parameter(case):
    method, recipe = case
    optimizer = SGD(learning_rate=0.0, scaling='none', warmup_epochs=0.0, decay='constant')
    transform = optimizer.build(RUN)
    raw = raw_batch(recipe)
    before = jax.jit(make_init(method, recipe, transform, RUN, 0, raw))()
    step = jax.jit(make_step(method, recipe, transform, optimizer.schedule(RUN), RUN))
    after, _ = step(before, raw)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool((a == b).all()), before.params, after.params)
    )


def test_is_a_hashable_value(case):
    method, _ = case
    assert hash(method) == hash(dataclasses.replace(method))
    assert method == dataclasses.replace(method)
