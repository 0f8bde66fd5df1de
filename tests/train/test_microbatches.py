"""Micro-batches: the batch in parts has the loss and gradient of the batch as a whole."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.core import Now, Run, with_keys
from ssljax.experiment import Data, Experiment
from ssljax.methods.simclr import SimCLR
from ssljax.methods.supervised import Supervised
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import SGD
from ssljax.train.microbatches import merge, split, value_and_grad
from ssljax.train.placement import Placement, make_mesh
from ssljax.train.session import Session, batch_shapes
from ssljax.views.simclr import SimCLRViews

N = 16
RUN = Run(examples=160, batch=N, steps=20, steps_per_epoch=10)
RECIPE = SimCLRViews(size=8, blur=0.5)


class NoNorm(nn.Module):
    """An encoder without BatchNorm."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.gelu(nn.Conv(6, (3, 3), (2, 2), param_dtype=jnp.float32)(x))
        return x.mean(axis=(1, 2))


METHOD = SimCLR(NoNorm(), ProjectionHead((8, 4), hidden_norm='none', last_norm='none'), 0.5)


class Cached(Supervised):
    """The same loss, not declared a mean over examples."""

    mean_over_examples = False


def problem(method=METHOD):
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.integers(0, 256, (N, 2, 8, 8, 3)), jnp.uint8)
    label = jnp.arange(N) % 4
    batch = with_keys({'image': image, 'index': jnp.arange(N), 'label': label}, jax.random.key(1))
    params, state = method.init(jax.random.key(0), RECIPE.on_device(batch), RUN)
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.result_type(float)), params)
    return params, state, batch, jax.random.key(2), Now(jnp.asarray(0), jax.random.key(3), RUN)


def close(a, b, **bounds):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, **bounds), a, b)


@pytest.mark.parametrize('parts', [2, *[pytest.param(n, marks=pytest.mark.slow) for n in (4, 16)]])
def test_equals_the_whole_batch_without_batch_norm(parts, x64):
    """Views are drawn inside the parts: an example's key goes with it."""
    whole = jax.jit(value_and_grad(METHOD, RECIPE.on_device, 1))(*problem())
    cached = jax.jit(value_and_grad(METHOD, RECIPE.on_device, parts))(*problem())
    # The views are computed in float32, in other fusions: their last bits differ.
    close(whole, cached, rtol=0, atol=4 * np.finfo(np.float32).eps)
    plain = jax.jit(value_and_grad(METHOD, RECIPE_OF_FLOATS, 1))(*problem())
    parted = jax.jit(value_and_grad(METHOD, RECIPE_OF_FLOATS, parts))(*problem())
    close(plain, parted, rtol=1e-10, atol=1e-12)


def RECIPE_OF_FLOATS(batch):  # noqa: N802
    return {**batch, 'image': batch['image'].astype(jnp.result_type(float)) / 255 - 0.5}


def test_the_mean_of_the_parts_losses_is_another_loss(x64):
    """The negatives of the whole batch are kept: accumulating over parts would lose them."""
    params, state, batch, key, now = problem()
    gradient = jax.jit(value_and_grad(METHOD, RECIPE_OF_FLOATS, 4))
    (cached, _), _ = gradient(params, state, batch, key, now)
    alone = jax.jit(value_and_grad(METHOD, RECIPE_OF_FLOATS, 1))
    parts = [jax.tree.map(lambda a, j=j: a[j::4], batch) for j in range(4)]
    accumulated = np.mean([alone(params, state, part, key, now)[0][0] for part in parts])
    assert cached > accumulated + 0.5


def test_parts_go_with_eight_devices(x64, mesh8):
    *arguments, now = problem()
    gradient = value_and_grad(METHOD, RECIPE_OF_FLOATS, 2)
    cached = lambda *arguments: gradient(*arguments, now)
    one = jax.jit(cached)(*arguments)
    whole = NamedSharding(mesh8, PartitionSpec())
    at = (whole, whole, NamedSharding(mesh8, PartitionSpec('data')), whole)
    with jax.set_mesh(mesh8):
        compiled = jax.jit(cached, in_shardings=at).lower(*arguments).compile()
        eight = compiled(*jax.device_put(tuple(arguments), at))
    close(one, eight, rtol=1e-10, atol=1e-12)
    # No image crosses between devices: what does is outputs and sums of gradients.
    assert 'all-to-all' not in compiled.as_text()


# Plain accumulation


@pytest.mark.parametrize('parts', [1, 2, 4])
def test_a_mean_over_examples_is_accumulated_to_the_plain_gradient(parts, x64):
    method = Supervised(NoNorm(), classes=4)
    arguments = problem(method)
    plain = jax.jit(value_and_grad(method, RECIPE_OF_FLOATS, 1))(*arguments)
    parted = jax.jit(value_and_grad(method, RECIPE_OF_FLOATS, parts))(*arguments)
    close(plain, parted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('parts', [2, 4])
def test_batch_norm_goes_by_the_same_rule_as_with_caching(parts, x64):
    nets = SmallResNet(stem_patch=2, widths=(4,), blocks=(1,)), 4
    arguments = problem(Supervised(*nets))
    accumulated, cached = (
        jax.jit(value_and_grad(kind(*nets), RECIPE_OF_FLOATS, parts))(*arguments)
        for kind in (Supervised, Cached)
    )
    close(accumulated, cached, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_accumulation_saves_the_second_forward_pass():
    nets = SmallResNet(stem_patch=1, widths=(32, 32), blocks=(2, 2), stride=1), 4
    *arguments, now = problem(Supervised(*nets))

    def flops(kind):
        gradient = value_and_grad(kind(*nets), RECIPE_OF_FLOATS, 4)
        lowered = jax.jit(lambda *arguments: gradient(*arguments, now)).lower(*arguments)
        return lowered.compile().cost_analysis()['flops']

    # Forward and twice as much backward, in place of forward, forward and backward.
    ratio = flops(Supervised) / flops(Cached)
    assert 0.7 < ratio < 0.8, ratio


def test_split_is_strided_and_merge_undoes_it():
    a = jnp.arange(12).reshape(6, 2)
    parts = split(a, 3)
    assert parts.shape == (3, 2, 2)
    np.testing.assert_array_equal(parts[1], a[1::3])
    np.testing.assert_array_equal(merge(parts), a)


@pytest.mark.slow
def test_memory_is_that_of_a_part():
    params, state, _, key, now = problem()
    image = jax.ShapeDtypeStruct((512, 2, 32, 32, 3), jnp.uint8)
    batch = jax.eval_shape(
        lambda image: with_keys({'image': image, 'index': jnp.arange(512)}, key), image
    )

    def temporaries(parts):
        gradient = value_and_grad(METHOD, RECIPE.on_device, parts)
        cached = jax.jit(lambda *arguments: gradient(*arguments, now))
        compiled = cached.lower(params, state, batch, key).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(8) < 0.35 * temporaries(1)


def experiment(**fields):
    return Experiment(
        method=METHOD, recipe=RECIPE, optimizer=SGD(), data=Data('made_images'), **fields
    )


def test_field_of_the_experiment_reaches_the_step():
    def temporaries(microbatches):
        """Of the step's compiled form."""
        session = Session.open(experiment(batch=64, steps=2, microbatches=microbatches), devices=1)
        shapes = batch_shapes(session.data, 64)
        compiled = session.step.lower(session.abstract, shapes).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporaries(4) < 0.6 * temporaries(1)


def test_what_cannot_be_split_is_refused():
    with pytest.raises(ValueError, match='evenly into 3'):
        experiment(batch=16, steps=2, microbatches=3).run(64)
    with pytest.raises(ValueError, match='microbatches is 0'):
        experiment(batch=16, steps=2, microbatches=0).run(64)
    with pytest.raises(ValueError, match='in 4 micro-batches cannot be split evenly over 8'):
        Placement(make_mesh()).check(16, 4)
    assert dataclasses.replace(experiment(batch=64, steps=9), microbatches=8).smoke().run(64)
