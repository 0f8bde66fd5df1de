"""A method of the table at one step: its batch, its state, its loss and gradient.

All is made once for all the tests of a method, as each program takes seconds to compile.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from cases import CLASSES, RUN, N
from flax import linen as nn

from ssljax.core import Now, with_keys
from ssljax.train.microbatches import value_and_grad

STEP = 5
"""Late enough for what waits at first: the queue of SwAV is in use."""


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


def refreshed(method, recipe, params, state):
    """What `refresh` makes of a fresh state, where a method has one."""
    if method.refresh_every(RUN) is None:
        return params, state
    raw = raw_batch(recipe, N)
    image = recipe.normalize(raw['image'][:, 0])
    images = jnp.concatenate([image + 0.1 * k for k in range(RUN.examples // N)])
    sweep = lambda fn: fn(params, state, images)
    return method.refresh(params, state, Now(jnp.asarray(0), jax.random.key(4), RUN), sweep)


@functools.cache
def made(case):
    """Parameters and state in float32."""
    with jax.enable_x64(False):
        batch = ready_batch(case.recipe)
        init = jax.jit(lambda: case.method.init(jax.random.key(0), batch, RUN))
        return refreshed(case.method, case.recipe, *init())


def fresh(case, dtype=jnp.float32):
    cast = lambda leaf: leaf.astype(dtype) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    return jax.tree.map(cast, made(case))


def now():
    return Now(jnp.asarray(STEP), jax.random.key(3), RUN)


def program(case, parts):
    """Loss, state, metrics and gradients in so many micro-batches, of params, state and batch."""
    of = value_and_grad(case.method, lambda batch: batch, parts)
    return lambda params, state, batch: of(params, state, batch, jax.random.key(2), now())


@functools.cache
def graph(case, parts=1):
    """That program, compiled."""
    return jax.jit(program(case, parts))


@functools.cache
def on_one_device(case, parts=1):
    """What it makes of the batch in float64."""
    with jax.enable_x64(True):
        params, state = fresh(case, jnp.float64)
        return graph(case, parts)(params, state, ready_batch(case.recipe, jnp.float64))


@functools.cache
def without_batch_norm(case, parts):
    """The same where BatchNorm takes its running statistics: no example knows of another."""

    def at_rest(call, args, kwargs, context):
        if hasattr(context.module, 'use_running_average'):
            object.__setattr__(context.module, 'use_running_average', True)
        return call(*args, **kwargs)

    with jax.enable_x64(True), nn.intercept_methods(at_rest):
        params, state = fresh(case, jnp.float64)
        return jax.jit(program(case, parts))(params, state, ready_batch(case.recipe, jnp.float64))


def differentiated(case, constants=None):
    """The function whose value and gradients `gradients` gives, and its arguments."""
    method = case.method
    batch = ready_batch(case.recipe, jnp.float64)
    params, state = fresh(case, jnp.float64)
    floating = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
    leaves, form = jax.tree.flatten({k: v for k, v in state.items() if k != 'stats'})

    def loss(params, floats, batch):
        floats = iter(floats)
        every = [next(floats) if floating(leaf) else leaf for leaf in leaves]
        carried = {**jax.tree.unflatten(form, every), 'stats': state['stats']}
        outputs, stats = method.forward(params, carried, batch, jax.random.key(2))
        outputs = {**outputs, **(constants or {})}
        value, _ = method.objective(params, outputs, {**carried, 'stats': stats}, now())
        return value, outputs

    floats = [leaf for leaf in leaves if floating(leaf)]
    return jax.value_and_grad(loss, argnums=(0, 1), has_aux=True), (params, floats, batch)


def gradients(case, constants=None):
    """Of the loss, to the parameters and to all else that the method carries but its statistics.

    Written out, with a loss and outputs of its own: `constants` are put in place of outputs.

    Returns:
        The loss, gradients to the parameters, gradients to the rest, all outputs.
    """
    of, arguments = differentiated(case, constants)
    (value, outputs), grads = jax.jit(of)(*arguments)
    return value, *grads, outputs


@functools.cache
def plain_gradients(case):
    """Nothing put in place of anything."""
    with jax.enable_x64(True):
        return gradients(case)


def pairs(a, b):
    """Leaves of two trees of one form, with their paths."""
    flat = jax.tree_util.tree_leaves_with_path
    return zip(flat(a), flat(b), strict=True)


def assert_trees_close(a, b, **bounds):
    for (path, x), (_, y) in pairs(a, b):
        np.testing.assert_allclose(
            np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path), **bounds
        )
