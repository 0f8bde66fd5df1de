"""Row blocks of every loss that has a matrix of logits: values, devices, collectives, memory."""

import contextlib
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ssljax.losses.contrastive import info_nce, nt_xent, sigmoid_pairs
from ssljax.losses.nce import instance_softmax
from ssljax.losses.prediction import log_bilinear


def simclr(z, tile):
    return nt_xent(z, temperature=0.1, tile=tile)


def moco(query, key, queue, tile):
    return info_nce(query, key, queue, temperature=0.1, tile=tile)


def moco_v3(query, key, tile):
    return info_nce(query, key, temperature=0.2, tile=tile)


def cpc(context, targets, weights, tile):
    return log_bilinear(context, targets, weights, tile=tile)


def siglip(a, b, log_temperature, bias, tile):
    return sigmoid_pairs(a, b, log_temperature=log_temperature, bias=bias, tile=tile)


def shapes(loss, n, d=8):
    """The shapes of a loss's arguments for n examples."""
    return {
        simclr: [(n, 2, d)],
        moco: [(n, d), (n, d), (2 * n, d)],
        moco_v3: [(n, d), (n, d)],
        cpc: [(n, 3, d), (n, 3, d), (2, d, d)],
        siglip: [(n, d), (n, d), (), ()],
    }[loss]


LOSSES = [simclr, moco, moco_v3, cpc, siglip]
every_loss = pytest.mark.parametrize('loss', LOSSES, ids=lambda loss: loss.__name__)


def arrays(loss, n, d=8):
    draw = np.random.default_rng(0).normal
    return [jnp.asarray(draw(size=shape)) for shape in shapes(loss, n, d)]


def value_and_grads(loss, tile, arrays):
    return jax.value_and_grad(lambda arrays: loss(*arrays, tile))(arrays)


@functools.partial(jax.jit, static_argnums=(0, 1))
def on_one(loss, tile, arrays):
    """Value and gradients to all arguments, on one device."""
    return value_and_grads(loss, tile, arrays)


# Values


@every_loss
def test_any_tile_is_the_dense_loss(x64, loss):
    a = arrays(loss, 7)
    dense = on_one(loss, None, a)
    for tile in (1, 3, 5, 100):
        chex.assert_trees_all_close(on_one(loss, tile, a), dense, rtol=1e-10, atol=1e-10)


def test_any_tile_is_the_dense_loss_of_three_views(x64):
    z = [jnp.asarray(np.random.default_rng(0).normal(size=(5, 3, 5)))]
    dense = on_one(simclr, None, z)
    for tile in (1, 4, 100):
        chex.assert_trees_all_close(on_one(simclr, tile, z), dense, rtol=1e-10, atol=1e-10)


# Devices


def split_over(mesh, arrays):
    """Arrays with examples are split over all devices, weights and scalars are whole."""
    whole, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (mesh.axis_names,)))
    examples = lambda a: a.ndim > 0 and a.shape[0] % mesh.size == 0
    return [split if examples(a) else whole for a in arrays]


def on_mesh(mesh, loss, tile, arrays, in_mesh=True):
    """Value and gradients, compiled for arrays that are split over the mesh, and their places."""
    places = split_over(mesh, arrays)
    with jax.set_mesh(mesh) if in_mesh else contextlib.nullcontext():
        lowered = jax.jit(
            functools.partial(value_and_grads, loss, tile),
            in_shardings=(places,),
            out_shardings=(NamedSharding(mesh, PartitionSpec()), places),
        ).lower(arrays)
    return lowered.compile(), places


@every_loss
@pytest.mark.parametrize('tile', [None, 1, 24, 40])
def test_one_and_eight_devices_agree(x64, mesh8, loss, tile):
    # 56 examples are 7 a device, which neither 24 / 8 nor 40 / 8 rows a block divide.
    a = arrays(loss, 56)
    eight, places = on_mesh(mesh8, loss, tile, a)
    got = eight(jax.device_put(a, places))
    chex.assert_trees_all_close(got, on_one(loss, None, a), rtol=1e-10, atol=1e-10)


@every_loss
def test_without_a_mesh_in_sight_eight_devices_agree_as_well(x64, mesh8, loss):
    a = arrays(loss, 24)
    eight, places = on_mesh(mesh8, loss, 16, a, in_mesh=False)
    got = eight(jax.device_put(a, places))
    chex.assert_trees_all_close(got, on_one(loss, None, a), rtol=1e-10, atol=1e-10)


def test_rows_that_devices_cannot_share_agree_as_well(x64, mesh8):
    draw = np.random.default_rng(0).normal
    v, bank, index = draw(size=(5, 8)), draw(size=(11, 8)), jnp.arange(5)

    @functools.partial(jax.jit, static_argnums=0)
    def loss(tile, v, bank):
        return jax.value_and_grad(
            lambda v, bank: instance_softmax(v, bank, index, temperature=0.1, tile=tile), (0, 1)
        )(v, bank)

    want = loss(None, v, bank)
    with jax.set_mesh(mesh8):
        chex.assert_trees_all_close(loss(2, v, bank), want, rtol=1e-10, atol=1e-10)


def test_inside_shard_map_each_device_has_its_own_loss(mesh8):
    z = jnp.asarray(np.random.default_rng(0).normal(size=(16, 2, 8)), jnp.float32)

    def own(z):
        return simclr(z, 2)[None]

    split = PartitionSpec('data')
    with jax.set_mesh(mesh8):
        losses = jax.jit(jax.shard_map(own, in_specs=split, out_specs=split))(z)
    want = [on_one(simclr, None, [part])[0] for part in jnp.split(z, 8)]
    np.testing.assert_allclose(losses, want, rtol=1e-5)


COLLECTIVE = re.compile(
    r'\s(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\('
)


def collectives(compiled):
    """Kinds of collectives in the program, inside loops and outside of them."""
    computations = re.split(r'\n(?=\S)', compiled.as_text())
    entry = next(c for c in computations if c.startswith('ENTRY'))
    inside = [kind for c in computations if c is not entry for kind in COLLECTIVE.findall(c)]
    return sorted(inside), sorted(COLLECTIVE.findall(entry))


GATHERS = {simclr: 3, moco: 4, moco_v3: 4, cpc: 4, siglip: 2}
"""Columns and, for the gradient to them, rows: NT-Xent's are the same. Then the row sums and their
gradients, which a sum of softplus does without."""


@every_loss
@pytest.mark.parametrize(('n', 'tile'), [(512, 128), (504, 100)])
def test_tiles_move_every_embedding_once_and_nothing_inside_the_loop(loss, n, tile):
    # 504 examples are 63 a device, 100 rows are 12: the last block is not full.
    mesh = jax.make_mesh((4, 2), ('data', 'fsdp'), axis_types=(AxisType.Auto,) * 2)
    like = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes(loss, n, 64)]
    compiled, _ = on_mesh(mesh, loss, tile, like)
    # What is summed over devices: the loss, and gradients of weights and scalars, in one go.
    assert collectives(compiled) == ([], ['all-gather'] * GATHERS[loss] + ['all-reduce'])
    columns = {simclr: 2 * n, moco: 2 * n, moco_v3: n, cpc: 3 * n, siglip: n}[loss]
    rows = {int(rows) for rows in re.findall(rf'f32\[(\d+),{columns}\]', compiled.as_text())}
    # Only a device's share of a block, and the columns themselves, transposed.
    assert rows - {64} and max(rows - {64}) <= tile // 8, rows


def test_dense_gathers_once(mesh8):
    like = [jax.ShapeDtypeStruct((512, 2, 64), jnp.float32)]
    dense, _ = on_mesh(mesh8, simclr, None, like)
    assert collectives(dense) == ([], ['all-gather', 'all-reduce'])


# Memory


@functools.cache
def temporaries(loss, n, tile, d=128):
    like = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes(loss, n, d)]
    compiled = on_one.lower(loss, tile, like).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow
@every_loss
def test_memory_of_tiles_is_linear_in_the_batch(loss):
    # Four times the examples, four times the memory; sixteen times without tiles.
    assert 3 < temporaries(loss, 8192, 256) / temporaries(loss, 2048, 256) < 5
    assert temporaries(loss, 2048, None) / temporaries(loss, 512, None) > 10


def test_memory_of_tiles_at_4096_and_32768_pairs():
    assert temporaries(simclr, 4096, 256) < temporaries(simclr, 4096, None) / 4
    assert temporaries(simclr, 32_768, 256) < 2**30


def test_memory_of_info_nce_tiles_is_theirs_in_both_directions():
    def size(tile):
        like = [jax.ShapeDtypeStruct((rows, 8), jnp.float32) for rows in (512, 512, 16_384)]
        return on_one.lower(moco, tile, like).compile().memory_analysis().temp_size_in_bytes

    assert size(32) < size(None) / 4
