"""Operations and bytes of compiled programs, against closed forms and XLA's own count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.plan.hlo import Program, shapes
from ssljax.plan.work import counted, work, work_of

N = 128


def compiled(function, *arguments):
    run = jax.jit(function).lower(*arguments).compile()
    return Program.parse(run.as_text()), run.cost_analysis()


def rounds(count):
    return lambda a, b: jax.lax.fori_loop(0, count, lambda _, c: jnp.tanh(c @ b), a)


def test_a_product_costs_two_operations_for_each_triple():
    program, cost = compiled(jnp.matmul, jnp.ones((N, 2 * N)), jnp.ones((2 * N, 3 * N)))
    assert counted(program, True).flops == 2 * N * 2 * N * 3 * N == cost['flops']


@pytest.mark.parametrize('count', [2, 10])
def test_rounds_of_a_loop_count(count):
    a = jnp.ones((N, N))
    program, cost = compiled(rounds(count), a, a)
    assert counted(program, False).flops == 2 * N**3
    assert counted(program, True).flops == count * 2 * N**3
    assert work(program, cost).flops == pytest.approx(count * cost['flops'])
    assert cost['flops'] < 1.1 * 2 * N**3  # XLA's own count has one round


class OfAGPU:
    """A compiled program in which a product is a call of a library."""

    def as_text(self):
        return (
            'HloModule m, num_partitions=2\n\nENTRY %main (a: f32[8,8]) -> f32[8,8] {\n'
            '  %a = f32[8,8]{1,0} parameter(0)\n'
            '  ROOT %c = f32[8,8]{1,0} custom-call(%a, %a), custom_call_target="__cublas$gemm"\n}\n'
        )

    def cost_analysis(self):
        return {'flops': -1.0, 'bytes accessed': 768.0}


def test_calls_of_a_library_are_counted_in_the_program_before():
    a = jnp.ones((N, N))
    lowered = jax.jit(rounds(10)).lower(a, a)
    done = work_of(lowered, OfAGPU())
    assert done.flops == 10 * 2 * N**3 / 2 and done.accessed == 768
    here = work_of(lowered, lowered.compile())
    assert here.flops == pytest.approx(10 * 2 * N**3, rel=0.1)


def test_all_parts_of_a_joint_exchange_are_moved():
    text = (
        'HloModule m\n\nENTRY %main (a: f32[8], b: f32[4]) -> (f32[8], f32[4]) {\n'
        '  %a = f32[8]{0} parameter(0)\n  %b = f32[4]{0} parameter(1)\n'
        '  %s = (f32[8]{0}, f32[4]{0}) all-reduce-start(%a, %b), to_apply=%add\n'
        '  ROOT %d = (f32[8]{0}, f32[4]{0}) all-reduce-done(%s)\n}\n'
    )
    assert counted(Program.parse(text), True).bytes == 2 * 4 * (8 + 4)


def test_without_loops_the_figures_are_xlas():
    program, cost = compiled(lambda a: jnp.tanh(a @ a) + 1, jnp.ones((N, N)))
    done = work(program, cost)
    assert (done.flops, done.accessed) == (cost['flops'], cost['bytes accessed'])


@pytest.mark.parametrize(
    ('stride', 'padding', 'dilation', 'groups'),
    [(1, 'SAME', 1, 1), (2, 'SAME', 1, 1), (1, 'VALID', 2, 1), (2, 'SAME', 1, 8)],
)
def test_convolutions_and_their_gradients_cost_what_xla_says(stride, padding, dilation, groups):
    def convolve(x, w):
        return jax.lax.conv_general_dilated(
            x,
            w,
            (stride, stride),
            padding,
            rhs_dilation=(dilation, dilation),
            feature_group_count=groups,
            dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
        )

    x, w = jnp.ones((2, 14, 14, 8)), jnp.ones((3, 3, 8 // groups, 16))
    gradient = jax.grad(lambda x, w: jnp.sum(jnp.sin(convolve(x, w))), argnums=(0, 1))
    for function in (convolve, gradient):
        program, cost = compiled(function, x, w)
        mine = counted(program, True).flops
        assert 0.95 * cost['flops'] < mine <= cost['flops'], function


def test_bytes_are_operands_and_results():
    program, _ = compiled(lambda a: a + 1, jnp.ones((N, N)))
    assert counted(program, True).hbm == 2 * 4 * N * N


def test_a_slice_reads_the_slice_alone():
    stack, one = jnp.ones((10, N, N)), 4 * N * N

    def summed(stack):
        step = lambda total, row: (total + jnp.sin(row), None)
        return jax.lax.scan(step, jnp.zeros((N, N)), stack)[0]

    program, _ = compiled(summed, stack)
    # Each round reads a slice and the sum and writes the sum; reading all would be ten times that.
    assert counted(program, True).hbm == pytest.approx(10 * 3 * one, rel=0.15)


def test_an_update_in_place_writes_the_update_alone():
    def filled(a):
        return jax.lax.scan(lambda c, i: (c, jnp.sin(a) * i), 0.0, jnp.arange(10.0))[1]

    program, _ = compiled(filled, jnp.ones((N, N)))
    # Zeros for all ten, the sine, and ten times one read and one written: 32. Were the whole
    # written each time, it would be over a hundred.
    assert counted(program, True).hbm < 40 * 4 * N * N


CHIP = """HloModule m, num_partitions=1

ENTRY %main (a: f32[64,64]) -> f32[64,64] {
  %a = f32[64,64]{1,0:T(8,128)} parameter(0)
  %start = (f32[64,64]{1,0:T(8,128)S(1)}, f32[64,64]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  %fast = f32[64,64]{1,0:T(8,128)S(1)} copy-done(%start)
  %b = f32[64,64]{1,0:T(8,128)S(1)} sine(%fast)
  ROOT %c = f32[64,64]{1,0:T(8,128)} add(%b, %fast)
}
"""


SLICED = """HloModule m, num_partitions=1

ENTRY %main (a: f32[64,64]) -> f32[8,64] {
  %a = f32[64,64]{1,0:T(8,128)} parameter(0)
  %start = ((f32[64,64]{1,0:T(8,128)}), f32[8,64]{1,0:T(8,128)S(1)}, s32[]{:S(2)}) slice-start(%a)
  %part = f32[8,64]{1,0:T(8,128)S(1)} slice-done(%start)
  ROOT %named = f32[8,64]{1,0:T(8,128)S(1)} custom-call(%part), custom_call_target="ConcatBitcast"
}
"""


def test_an_asynchronous_slice_counts_once_and_only_the_slice():
    count = counted(Program.parse(SLICED), True)
    assert (count.bytes, count.hbm) == (2 * 4 * 8 * 64, 4 * 8 * 64)


def test_what_stays_on_the_chip_does_not_count_as_main_memory():
    one, count = 4 * 64 * 64, counted(Program.parse(CHIP), True)
    assert count.bytes == (2 + 2 + 3) * one  # copy, sine, sum
    assert count.hbm == 2 * one  # the copy's source and the sum's result


def test_shapes_are_read_with_their_types_and_spaces():
    text = '(bf16[3,5]{1,0:T(8,128)(2,1)S(1)}, /*index=1*/pred[7]{0}, f8e4m3fn[2], s4[3], u32[])'
    read = shapes(text)
    assert [s.bytes for s in read] == [30, 7, 2, 2, 4]
    assert [s.space for s in read] == [1, 0, 0, 0, 0]
    assert np.prod(read[0].dims) == read[0].size == 15
