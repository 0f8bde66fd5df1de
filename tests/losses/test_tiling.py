import contextlib
import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.losses.contrastive import info_nce, nt_xent


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@functools.partial(jax.jit, static_argnums=2)
def simclr(z, temperature, tile):
    """`nt_xent` and its gradient to z."""
    return jax.value_and_grad(lambda z: nt_xent(z, temperature=temperature, tile=tile))(z)


@functools.partial(jax.jit, static_argnums=2)
def moco(arrays, temperature, tile):
    """`info_nce` and its gradient to query, key and, where given, negatives."""
    return jax.value_and_grad(lambda a: info_nce(*a, temperature=temperature, tile=tile))(arrays)


# Values


@pytest.mark.parametrize('shape', [(7, 2, 5), (5, 3, 5)])
def test_any_tile_is_the_dense_nt_xent(x64, shape):
    dense = simclr(normal(*shape), 0.1, None)
    for tile in (1, 5, 6, 100):
        tiled = simclr(normal(*shape), 0.1, tile)
        chex.assert_trees_all_close(tiled, dense, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('count', [None, 17])
def test_any_tile_is_the_dense_info_nce(x64, count):
    arrays = [normal(7, 3), normal(7, 3, seed=1)] + ([normal(count, 3, seed=2)] if count else [])
    dense = moco(arrays, 0.1, None)
    for tile in (1, 3, 100):
        chex.assert_trees_all_close(moco(arrays, 0.1, tile), dense, rtol=1e-10, atol=1e-10)


# Devices


def value_and_grads(function, arrays):
    return jax.value_and_grad(lambda arrays: function(*arrays))(arrays)


def sharded(mesh, function, arrays, in_mesh=True):
    """Value and gradients of `function`, compiled for arrays split by example over the mesh."""
    split = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
    with jax.set_mesh(mesh) if in_mesh else contextlib.nullcontext():
        lowered = jax.jit(
            functools.partial(value_and_grads, function),
            in_shardings=split,
            out_shardings=(NamedSharding(mesh, PartitionSpec()), split),
        ).lower(arrays)
    return lowered.compile()


@pytest.mark.parametrize('tile, in_mesh', [(None, True), (16, True), (16, False), (20, True)])
def test_one_and_eight_devices_agree(x64, mesh8, tile, in_mesh):
    def losses(z, query, key, queue):
        return (
            nt_xent(z, temperature=0.1, tile=tile)
            + 2 * info_nce(query, key, temperature=0.2, tile=tile)
            + 3 * info_nce(query, key, queue, temperature=0.3, tile=tile)
        )

    arrays = [jnp.asarray(normal(24, 2, 8)), *map(jnp.asarray, normal(3, 24, 8, seed=1))]
    eight = sharded(mesh8, losses, arrays, in_mesh)
    got = eight(jax.device_put(arrays, eight.input_shardings[0][0]))
    want = jax.jit(functools.partial(value_and_grads, losses))(arrays)
    chex.assert_trees_all_close(got, want, rtol=1e-10, atol=1e-10)


COLLECTIVE = re.compile(
    r'\s(all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(?:-start)?\('
)


def collectives(compiled):
    """Kinds of collectives in the program, inside loops and outside of them."""
    computations = re.split(r'\n(?=\S)', compiled.as_text())
    entry = next(c for c in computations if c.startswith('ENTRY'))
    inside = [kind for c in computations if c is not entry for kind in COLLECTIVE.findall(c)]
    return sorted(inside), sorted(COLLECTIVE.findall(entry))


def test_tiles_move_every_embedding_once_and_nothing_inside_the_loop():
    mesh = jax.make_mesh((4, 2), ('data', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    z, q, k = jnp.zeros((512, 2, 64)), jnp.zeros((512, 64)), jnp.zeros((512, 64))
    simclr = sharded(mesh, functools.partial(nt_xent, temperature=0.1, tile=128), [z])
    # Embeddings, row sums and their gradients are gathered, the loss is summed.
    assert collectives(simclr) == ([], ['all-gather'] * 3 + ['all-reduce'])
    moco = sharded(mesh, functools.partial(info_nce, temperature=0.1, tile=128), [q, k])
    assert collectives(moco) == ([], ['all-gather'] * 4 + ['all-reduce'])
    for compiled, columns in ((simclr, 1024), (moco, 512)):
        rows = set(re.findall(rf'f32\[(\d+),{columns}\]', compiled.as_text()))
        # Each device has 128 / 8 rows of a block, and the only matrix beside is the columns'.
        assert '16' in rows and rows <= {'16', '64'}, rows


def test_dense_gathers_once(mesh8):
    z = jnp.zeros((512, 2, 64))
    dense = sharded(mesh8, functools.partial(nt_xent, temperature=0.1), [z])
    assert collectives(dense) == ([], ['all-gather', 'all-reduce'])


def test_inside_shard_map_each_device_has_its_own_loss(mesh8):
    z = jnp.asarray(normal(16, 2, 8, dtype=np.float32))

    def own(z):
        return nt_xent(z, temperature=0.1, tile=2)[None]

    split = PartitionSpec('data')
    with jax.set_mesh(mesh8):
        losses = jax.jit(jax.shard_map(own, in_specs=split, out_specs=split))(z)
    want = [simclr(part, 0.1, None)[0] for part in jnp.split(z, 8)]
    np.testing.assert_allclose(losses, want, rtol=1e-5)


# Memory


@functools.cache
def temporaries(n, tile):
    z = jax.ShapeDtypeStruct((n, 2, 128), jnp.float32)
    return simclr.lower(z, 0.1, tile).compile().memory_analysis().temp_size_in_bytes


def test_memory_of_tiles_is_linear_in_the_batch():
    # Twice the rows, twice the memory; four times without tiles.
    assert temporaries(4096, 256) < 2.1 * temporaries(2048, 256)
    assert temporaries(4096, None) > 3.5 * temporaries(2048, None)


def test_memory_of_tiles_at_4096_and_32768_pairs():
    assert temporaries(4096, 256) < temporaries(4096, None) / 4
    assert temporaries(32_768, 256) < 2**30


def test_memory_of_info_nce_tiles_is_theirs_in_both_directions():
    def size(tile):
        q, queue = (jax.ShapeDtypeStruct((rows, 8), jnp.float32) for rows in (512, 16_384))
        compiled = moco.lower((q, q, queue), 0.1, tile).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert size(32) < size(None) / 4
