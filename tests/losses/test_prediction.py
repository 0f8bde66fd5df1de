"""CPC's loss against its twin, its closed forms, its slopes; tiles and devices."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.losses.prediction import log_bilinear


def normal(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def arrays(n=3, t=5, c=2, d=4, steps=2, dtype=np.float64):
    shapes = ((n, t, c), (n, t, d), (steps, d, c))
    return [normal(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)]


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def both(arrays, first_step, tile, group=None):
    """The loss and its gradients to context, targets and weights."""
    loss = lambda a: log_bilinear(*a, first_step=first_step, group=group, tile=tile)
    return jax.value_and_grad(loss)(arrays)


@pytest.mark.parametrize('tile', [None, 4])
@pytest.mark.parametrize(('first_step', 'steps'), [(1, 1), (1, 3), (2, 3), (4, 1)])
def test_is_its_float64_twin(x64, first_step, steps, tile):
    a = arrays(steps=steps)
    loss, slopes = both(a, first_step, tile)
    twin = functools.partial(reference.log_bilinear, first_step=first_step)
    np.testing.assert_allclose(loss, twin(*a), rtol=1e-12)
    for at in range(3):
        np.testing.assert_allclose(slopes[at], reference.gradient(twin, a, at), atol=1e-7)


@pytest.mark.parametrize('tile', [1, 4, 5, 7, 100])
def test_any_tile_is_the_dense_loss(x64, tile):
    a = arrays(n=7, t=6, steps=3)
    chex.assert_trees_all_close(both(a, 2, tile), both(a, 2, None), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ('group', 'tile'), [(1, None), (2, None), (2, 4), (3, None), (3, 1), (3, 20), (6, 100)]
)
def test_groups_are_losses_of_their_own(x64, group, tile):
    context, targets, weights = arrays(n=6, steps=2)

    def twin(context, targets, weights):
        parts = [a.reshape(6 // group, group, *a.shape[1:]) for a in (context, targets)]
        every = zip(*parts, strict=True)
        return np.mean([reference.log_bilinear(c, z, weights, 2) for c, z in every])

    loss, slopes = both([context, targets, weights], 2, tile, group)
    np.testing.assert_allclose(loss, twin(context, targets, weights), rtol=1e-12)
    for at in range(3):
        want = reference.gradient(twin, [context, targets, weights], at)
        np.testing.assert_allclose(slopes[at], want, atol=1e-7)


@pytest.mark.parametrize('tile', [None, 8])
@pytest.mark.parametrize(('n', 't', 'steps'), [(4, 7, 4), (16, 49, 5), (1, 2, 1)])
def test_without_weights_every_step_costs_the_logarithm_of_the_candidates(x64, n, t, steps, tile):
    context, targets, weights = arrays(n, t, steps=steps)
    loss, _ = both([context, targets, 0 * weights], 1, tile)
    np.testing.assert_allclose(loss, steps * np.log(n * t), rtol=1e-12)


@pytest.mark.parametrize('score', [0.5, 5.0, 30.0])
def test_one_score_per_target_has_its_closed_form(x64, score):
    # All n t targets are orthogonal, and W_k moves what lies at a place k places ahead.
    n, t, k = 3, 4, 2
    places = jnp.eye(n * t).reshape(n, t, n * t)
    ahead = score * jnp.eye(n * t, k=-k)[None]
    loss, _ = both([places, places, ahead], k, None)
    np.testing.assert_allclose(loss, np.log1p((n * t - 1) * np.exp(-score)), rtol=1e-11)


@pytest.mark.parametrize('tile', [None, 3])
def test_gradient_is_the_slope(x64, tile):
    loss = jax.jit(lambda *a: log_bilinear(*a, first_step=2, tile=tile))
    a = tuple(map(jnp.asarray, arrays()))
    chex.assert_numerical_grads(loss, a, order=1, modes=['rev'], atol=1e-6, rtol=1e-6)


def test_only_products_count(x64):
    context, targets, weights = arrays(steps=2)
    m, other = normal(4, 4, seed=8), normal(2, 2, seed=9)
    changed = [
        context @ other.T,
        targets @ m.T,
        np.linalg.inv(m).T @ weights @ np.linalg.inv(other),
    ]
    want = both([context, targets, weights], 1, None)[0]
    np.testing.assert_allclose(both(changed, 1, None)[0], want, rtol=1e-10)


def test_order_of_sequences_does_not_matter_and_order_in_time_does(x64):
    context, targets, weights = arrays(n=6)
    order = np.random.default_rng(1).permutation(6)
    loss = lambda c, z: both([c, z, weights], 1, None)[0]
    np.testing.assert_allclose(loss(context[order], targets[order]), loss(context, targets))
    assert abs(loss(context[order], targets) - loss(context, targets)) > 1e-3
    backwards = loss(context[:, ::-1], targets[:, ::-1])
    assert abs(backwards - loss(context, targets)) > 1e-3


def test_the_same_number_for_every_target_of_a_context_changes_nothing(x64):
    context, targets, weights = arrays()
    shifted = targets + normal(4, seed=7)
    want = both([context, targets, weights], 1, None)[0]
    np.testing.assert_allclose(both([context, shifted, weights], 1, None)[0], want, rtol=1e-12)


def test_what_lies_in_the_first_steps_is_a_candidate_and_the_last_contexts_are_unused(x64):
    a = arrays(n=2, t=4, steps=1)
    _, (of_context, of_targets, _) = both(a, 3, None)
    assert np.all(np.asarray(of_context[:, 1:]) == 0) and np.all(np.asarray(of_context[:, 0]) != 0)
    assert np.all(np.asarray(of_targets) != 0)


@pytest.mark.parametrize(
    ('tile', 'group'),
    [
        *[(None, None), (16, None), (20, None)],
        # 24, 8, 6 and 2 groups; 50 rows are fewer than those of a group of 12, 1000 more than all.
        *[(20, 1), (None, 3), (20, 3), (None, 4), (1, 4), (20, 4)],
        *[(None, 12), (50, 12), (1000, 12)],
    ],
)
def test_one_and_eight_devices_agree(x64, mesh8, tile, group):
    a = list(map(jnp.asarray, arrays(n=24, t=5, steps=2)))
    eight, places = on_eight(mesh8, a, tile, group)
    loss, slopes = eight(jax.device_put(a, places))
    want, slopes_of_one = both(a, 2, None, group)
    np.testing.assert_allclose(loss, want, rtol=1e-12)
    chex.assert_trees_all_close(slopes, slopes_of_one, rtol=1e-10, atol=1e-10)


def on_eight(mesh, arrays, tile, group):
    """`both`, compiled for a batch that is split over the mesh, and the places of its arrays."""
    split, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (('data',), ()))
    places = [split, split, whole]
    with jax.set_mesh(mesh):
        f = jax.jit(lambda a: both(a, 2, tile, group), in_shardings=(places,))
        return f.lower(arrays).compile(), places


def test_groups_that_devices_cannot_share_agree_as_well(x64, mesh8):
    a = list(map(jnp.asarray, arrays(n=6, t=5, steps=2)))
    with jax.set_mesh(mesh8):
        got = both(a, 2, 4, 3)
    chex.assert_trees_all_close(got, both(a, 2, None, 3), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize('group', [4, 16, 8])  # 12 groups, 3 groups, 6 groups
def test_every_device_has_an_equal_share_of_any_groups(mesh8, group):
    shapes = [jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in arrays(n=48, t=8)]
    work = lambda compiled: compiled.cost_analysis()['flops']
    one = both.lower(shapes, 2, None, group).compile()
    assert work(on_eight(mesh8, shapes, None, group)[0]) < 1.2 / 8 * work(one)


@pytest.mark.parametrize('group', [8, 64])  # 16 groups, 2 groups
def test_tiles_of_groups_move_nothing_inside_the_loop(mesh8, group):
    shapes = [jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in arrays(n=128, t=8)]
    text = on_eight(mesh8, shapes, 64, group)[0].as_text()
    assert 'known_trip_count' in text
    loops = [part for part in re.split(r'\n(?=\S)', text) if not part.startswith('ENTRY')]
    moves = re.compile(r' (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)')
    assert not any(map(moves.search, loops))
    # What is held is a device's share of 64 rows, or one of each of its groups.
    held = [int(a) * int(b) for a, b in re.findall(rf'f32\[(\d+),(\d+),{group * 8}\]', text)]
    assert 0 < max(held) <= 8, held


def test_memory_of_tiles_is_less_than_that_of_the_matrix():
    assert temporaries(32) < temporaries(None) / 4


def temporaries(tile, group=None):
    """Bytes that loss and gradient need of 64 sequences of 16 positions, width 8."""
    shapes = ((64, 16, 8), (64, 16, 8), (1, 8, 8))
    a = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return both.lower(a, 1, tile, group).compile().memory_analysis().temp_size_in_bytes


def test_memory_of_tiles_is_less_with_groups_as_well():
    # Fewer rows than one group has: groups are cut.
    assert temporaries(32, 32) < temporaries(None, 32) / 4
    assert temporaries(32, 8) < temporaries(None, 8)


def test_tiles_never_need_more_memory_than_the_matrix_of_small_groups():
    for group in (1, 2, 4):
        assert temporaries(32, group) <= temporaries(None, group)


def test_groups_of_a_device_need_nothing_of_the_others(mesh8):
    shapes = [jax.ShapeDtypeStruct(a.shape, jnp.float32) for a in arrays(n=32)]
    text = lambda group: on_eight(mesh8, shapes, None, group)[0].as_text()
    assert 'all-gather' in text(None)
    assert not any(name in text(4) for name in ('all-gather', 'all-to-all', 'collective-permute'))


def test_float32_gradient_is_the_float64_gradient():
    a = [3 * x for x in arrays(n=16, t=7, c=16, d=16, steps=2)]
    single = both([x.astype(np.float32) for x in a], 1, None)
    with jax.enable_x64(True):
        double = both([x.astype(np.float32).astype(np.float64) for x in a], 1, None)
    leaves = (map(np.asarray, jax.tree.leaves(tree)) for tree in (single, double))
    for got, want in zip(*leaves, strict=True):
        assert np.linalg.norm(got - want) < 1e-4 * np.linalg.norm(want)


def test_bfloat16_is_computed_in_float32():
    a = [jnp.asarray(x, jnp.bfloat16) for x in arrays()]
    loss, slopes = both(a, 1, None)
    assert loss.dtype == jnp.float32 and all(s.dtype == jnp.bfloat16 for s in slopes)
    single = both([x.astype(jnp.float32) for x in a], 1, None)[0]
    assert float(loss) == pytest.approx(float(single), rel=1e-6)


def test_bad_input_is_refused_with_advice():
    a = [jnp.asarray(x, jnp.float32) for x in arrays(t=4, steps=2)]
    for first_step in (0, 3):
        message = f'2 step.*first_step {first_step} .* sequences of 4 positions; .* from 1 to 3'
        with pytest.raises(ValueError, match=message):
            log_bilinear(*a, first_step=first_step)
    with pytest.raises(ValueError, match='0 step'):
        log_bilinear(*a[:2], a[2][:0])
    for group in (0, 2, 6):
        with pytest.raises(ValueError, match=f'groups of {group} sequences cannot be made of 3'):
            log_bilinear(*a, group=group)
    with pytest.raises(ValueError, match='tile is 0 rows, expected at least 1'):
        log_bilinear(*a, tile=0)
