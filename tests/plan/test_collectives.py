"""Collectives read from compiled programs: kinds, counts and bytes in closed form."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ssljax.plan.collectives import Collective, by_kind, collectives
from ssljax.plan.hlo import Program

ROWS = PartitionSpec('a')
RING = [(0, 1), (1, 2), (2, 3), (3, 0)]
BLOCK = 2 * 16 * 4  # bytes of a device's two rows of 16 floats


def found(function, out=ROWS, dtype=jnp.float32):
    """The collectives of a function that four times two devices run on two rows each."""
    mesh = jax.make_mesh((4, 2), ('a', 'b'), axis_types=(AxisType.Auto,) * 2)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=ROWS, out_specs=out, check_vma=False)
    x = jax.ShapeDtypeStruct((8, 16), dtype, sharding=NamedSharding(mesh, ROWS))
    program = Program.parse(jax.jit(mapped).lower(x).compile().as_text())
    assert program.devices == 8 and program.unread() == 0
    return collectives(program)


CASES = {
    'psum': (lambda x: jax.lax.psum(x, 'a'), Collective('all-reduce', 4, BLOCK, 1), 1.5),
    'psum_all': (
        lambda x: jax.lax.psum(x, ('a', 'b')),
        Collective('all-reduce', 8, BLOCK, 1),
        1.75,
    ),
    'psum_tuple': (
        lambda x: sum(map(jnp.sum, jax.lax.psum((x, x[0]), 'b'))) + x,
        Collective('all-reduce', 2, BLOCK + BLOCK // 2, 1),
        1.0,
    ),
    'all_gather': (
        lambda x: jax.lax.all_gather(x, 'a').sum(0),
        Collective('all-gather', 4, 4 * BLOCK, 1),
        0.75,
    ),
    'reduce_scatter': (
        lambda x: jax.lax.psum_scatter(x, 'b', tiled=True),
        Collective('reduce-scatter', 2, BLOCK, 1),
        0.5,
    ),
    'all_to_all': (
        lambda x: jax.lax.all_to_all(x, 'a', 1, 0, tiled=True),
        Collective('all-to-all', 4, BLOCK, 1),
        0.75,
    ),
    'permute': (
        lambda x: jax.lax.ppermute(x, 'a', RING),
        Collective('collective-permute', 8, BLOCK, 1),
        1.0,
    ),
    'scan': (
        lambda x: jax.lax.scan(lambda c, _: (jnp.sin(jax.lax.psum(c, 'a')), None), x, length=7)[0],
        Collective('all-reduce', 4, BLOCK, 7),
        7 * 1.5,
    ),
    'nested_scans': (
        lambda x: jax.lax.fori_loop(
            0,
            3,
            lambda _, c: jax.lax.fori_loop(0, 5, lambda _, d: jax.lax.psum(d, 'a') * 0.1, c),
            x,
        ),
        Collective('all-reduce', 4, BLOCK, 15),
        15 * 1.5,
    ),
}


@pytest.mark.parametrize('case', CASES)
def test_kind_count_and_bytes(case):
    function, expected, shares = CASES[case]
    listed = found(function)
    assert listed == [expected]
    assert listed[0].sent == shares * expected.payload


def test_bytes_follow_the_type():
    whole = found(lambda x: jax.lax.all_gather(x, 'a').sum(0))[0]
    half = found(lambda x: jax.lax.all_gather(x, 'a')[0], dtype=jnp.int16)[0]
    assert whole.payload == 2 * half.payload


def test_a_program_without_any_has_none():
    assert found(jnp.sin) == []
    assert by_kind([]) == {}


def test_totals_by_kind():
    total = by_kind(
        [
            Collective('all-gather', 8, 800, 1),
            Collective('all-reduce', 4, 100, 3),
            Collective('all-reduce', 2, 10, 2),
        ]
    )
    assert list(total) == ['all-reduce', 'all-gather']
    assert total['all-reduce'].count == 5
    assert total['all-reduce'].payload == 320
    assert total['all-reduce'].sent == 3 * 100 * 1.5 + 2 * 10 * 1.0


# What the TPU compiler writes and the CPU's does not.
TPU = """HloModule jit_step, is_scheduled=true, num_partitions=4

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[]{:T(128)} parameter(0)
  %y = f32[]{:T(128)} parameter(1)
  ROOT %sum = f32[]{:T(128)} add(%x, %y)
}

%start (p: f32[128,64]) -> (f32[128,64], f32[512,64], u32[]) {
  %p = f32[128,64]{0,1:T(8,128)S(1)} parameter(0)
  %all-gather.9 = f32[512,64]{0,1:T(8,128)} all-gather(%p), channel_id=16, replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0'}, dimensions={0}
  ROOT %custom-call.9 = (f32[128,64]{0,1:T(8,128)S(1)}, f32[512,64]{0,1}, u32[]{:S(2)}) custom-call(%all-gather.9), custom_call_target="AsyncCollectiveStart"
}

%all-reduce-scatter (input: f32[512,64]) -> f32[128,64] {
  %input = f32[512,64]{0,1:T(8,128)S(1)} parameter(0)
  %all-reduce.48 = f32[512,64]{0,1:T(8,128)} all-reduce(%input), channel_id=21, replica_groups={{0,1,2,3}}, to_apply=%add
  %zero = u32[] constant(0)
  ROOT %slice = f32[128,64]{0,1:T(8,128)} dynamic-slice(%all-reduce.48, %zero, %zero), dynamic_slice_sizes={128,64}
}

%async_collective_fusion.335 (p: f32[128,64], q: f32[512,64]) -> f32[512,64] {
  %p = f32[128,64]{0,1:T(8,128)S(1)} parameter(0)
  %q = f32[512,64]{0,1:T(8,128)S(1)} parameter(1)
  ROOT %all-gather.11 = f32[512,64]{0,1:T(8,128)S(1)} all-gather(%p), channel_id=16, replica_groups=mesh['axis_0'=4,'axis_1'=1] {'axis_0'}, dimensions={0}
}

%condition (arg: (s32[], bf16[64,2])) -> pred[] {
  %limit = s32[]{:T(128)} constant(6)
  %arg = (s32[]{:T(128)}, bf16[64,2]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  ROOT %lt = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

%body (arg: (s32[], bf16[64,2])) -> (s32[], bf16[64,2]) {
  %arg = (s32[]{:T(128)}, bf16[64,2]{1,0:T(8,128)(2,1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%arg), index=0
  %x = bf16[64,2]{1,0:T(8,128)(2,1)} get-tuple-element(%arg), index=1
  %go = bf16[64,2]{1,0:T(8,128)(2,1)} all-reduce-start(%x), channel_id=3, replica_groups=[2,2]<=[4], to_apply=%add
  %done = bf16[64,2]{1,0:T(8,128)(2,1)} all-reduce-done(%go)
  ROOT %out = (s32[]{:T(128)}, bf16[64,2]{1,0:T(8,128)(2,1)}) tuple(%i, %done)
}

ENTRY %main (a: f32[128,64], b: f32[512,64], c: (s32[], bf16[64,2])) -> f32[128,64] {
  %a = f32[128,64]{0,1:T(8,128)} parameter(0)
  %b = f32[512,64]{0,1:T(8,128)} parameter(1)
  %c = (s32[]{:T(128)}, /*index=1*/bf16[64,2]{1,0:T(8,128)(2,1)}) parameter(2)
  %f1 = (f32[128,64]{0,1:T(8,128)S(1)}, f32[512,64]{0,1}, u32[]{:S(2)}) fusion(%a), kind=kCustom, calls=%start
  %f2 = f32[512,64]{0,1:T(8,128)S(1)} fusion(%a, %b), kind=kCustom, calls=%async_collective_fusion.335
  %moved = (f32[128,64]{0,1}, f32[128,64]{0,1}, u32[], u32[]) collective-permute-start(%a), channel_id=5, source_target_pairs={{0,1},{1,0}}
  %there = f32[128,64]{0,1} collective-permute-done(%moved)
  %loop = (s32[]{:T(128)}, bf16[64,2]{1,0:T(8,128)(2,1)}) while(%c), condition=%condition, body=%body
  ROOT %f3 = f32[128,64]{0,1:T(8,128)} fusion(%f2), kind=kCustom, calls=%all-reduce-scatter
}
"""  # noqa: E501


def test_forms_of_the_tpu_compiler():
    program = Program.parse(TPU)
    assert program.devices == 4 and program.unread() == 0
    listed = {c.kind: c for c in collectives(program)}
    assert listed == {
        # One all-gather spread over two fusions.
        'all-gather': Collective('all-gather', 4, 512 * 64 * 4, 1),
        'reduce-scatter': Collective('reduce-scatter', 4, 512 * 64 * 4, 1),
        # A pair of start and done in a loop of six rounds, groups of two.
        'all-reduce': Collective('all-reduce', 2, 64 * 2 * 2, 6),
        'collective-permute': Collective('collective-permute', 4, 128 * 64 * 4, 1),
    }


def test_a_loop_of_unknown_length_counts_once_and_is_told():
    program = Program.parse(TPU.replace('direction=LT', 'direction=NE'))
    assert program.unread() == 1
    assert [c.count for c in collectives(program) if c.kind == 'all-reduce'] == [1]


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match='has no ENTRY'):
        Program.parse('module @jit_f {}')
