"""Where arrays live."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from ssljax.core import TrainState
from ssljax.train.placement import (
    SMALLEST_SHARDED,
    Placement,
    _arranged,
    make_mesh,
    parameter_spec,
)


def init():
    params = {'encoder': {'kernel': jnp.ones((512, 256)), 'bias': jnp.ones((256,))}}
    opt = optax.sgd(0.1, momentum=0.9).init(params)
    method = {'stats': {}, 'queue': jnp.ones((512, 256))}
    return TrainState(jnp.zeros((), jnp.int32), params, opt, method, jax.random.key(0))


def step(state, batch):
    params = jax.tree.map(lambda leaf: leaf + batch['image'].mean(), state.params)
    return (
        TrainState(state.step + 1, params, state.opt, state.method, state.key),
        {'mean': batch['image'].mean()},
    )


def assert_placed(state, fsdp):
    kernel = state.params['encoder']['kernel']
    assert len(kernel.addressable_shards) == 8
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(512 // fsdp, 256)}
    trace = state.opt[0].trace['encoder']['kernel']
    assert trace.sharding.is_equivalent_to(kernel.sharding, 2)
    for whole in (state.params['encoder']['bias'], state.method['queue'], state.step, state.key):
        assert whole.sharding.is_fully_replicated and len(whole.sharding.device_set) == 8


@pytest.mark.parametrize('fsdp', [1, 2, 8])
def test_state_is_born_and_stays_where_the_rules_put_it(fsdp):
    placement = Placement(make_mesh(fsdp))
    abstract = placement.abstract(init)
    state = placement.compile_init(init, abstract)()
    assert_placed(state, fsdp)
    batch = placement.put({'image': np.arange(16, dtype=np.float32)})
    after, metrics = placement.compile_step(step, abstract)(state, batch)
    assert_placed(after, fsdp)
    assert metrics['mean'] == 7.5
    assert state.params['encoder']['kernel'].is_deleted()  # donation is real


def test_small_arrays_and_odd_shapes_stay_whole():
    assert parameter_spec((SMALLEST_SHARDED - 1,), 1) == PartitionSpec()
    assert parameter_spec((16,), 8) == PartitionSpec()
    assert parameter_spec((333, 999), 8) == PartitionSpec()
    assert parameter_spec((333, 1024), 8) == PartitionSpec(None, 'fsdp')


def test_one_process_holds_every_row():
    placement = Placement(make_mesh())
    np.testing.assert_array_equal(placement.rows(24), np.arange(24))


def test_a_batch_that_cannot_be_split_is_refused_with_one_that_can():
    with pytest.raises(ValueError, match=r'batch of 20 .* 8 devices.* such as 16'):
        Placement(make_mesh()).check(20)


def test_fsdp_must_divide_the_devices():
    with pytest.raises(ValueError, match='fsdp=3 does not divide 8 devices'):
        make_mesh(fsdp=3)


def test_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match='9 devices asked for, 8 found'):
        make_mesh(devices=9)


def test_a_mesh_of_given_devices_has_those_and_no_others():
    given = jax.devices()[2:6]
    mesh = make_mesh(2, given)
    assert mesh.shape == {'data': 2, 'fsdp': 2} and set(mesh.devices.flat) == set(given)
    with pytest.raises(ValueError, match='fsdp=3 does not divide 4 devices'):
        make_mesh(3, given)


@dataclasses.dataclass(frozen=True)
class Stand:
    """What a mesh is made of, of a device that is not here."""

    id: int
    process_index: int
    slice_index: int
    platform: str
    device_kind: str
    coords: tuple[int, ...] = ()
    core_on_chip: int = 0


def test_gpus_of_several_hosts_stand_in_the_order_of_their_processes():
    # Each host is a slice of its own, and JAX numbers them by whichever came first.
    gpus = [Stand(8 - i, 1 - i // 4, 1 - i // 4, 'gpu', 'H100') for i in range(8)]
    arranged = _arranged(gpus, (2, 4))
    assert [[gpu.process_index for gpu in row] for row in arranged] == [[0] * 4, [1] * 4]
    assert [gpu.id for gpu in arranged.flat] == list(range(1, 9))


@pytest.mark.parametrize(
    ('kind', 'sides', 'fsdp'),
    [('TPU v6 lite', (16, 16, 1), 8), ('TPU v5', (4, 4, 4), 8), ('TPU v5 lite', (4, 4, 1), 8)],
)
def test_any_divisor_of_a_tpu_slice_is_a_length_of_fsdp(kind, sides, fsdp):
    places = np.ndindex(*reversed(sides))
    chips = [Stand(i, i // 4, 0, 'tpu', kind, place[::-1]) for i, place in enumerate(places)]
    arranged = _arranged(chips, (len(chips) // fsdp, fsdp))
    assert {chip.id for chip in arranged.flat} == set(range(len(chips)))


def test_of_several_tpu_slices_fsdp_stays_within_one():
    places = [(x, y, 0) for y in range(4) for x in range(4)]
    chips = [
        Stand(16 * n + i, 4 * n + i // 4, n, 'tpu', 'TPU v5 lite', place)
        for n in range(2)
        for i, place in enumerate(places)
    ]
    for row in _arranged(chips, (4, 8)):
        assert len({chip.slice_index for chip in row}) == 1
