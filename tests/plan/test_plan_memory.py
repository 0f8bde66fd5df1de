"""The split of a chip's memory."""

import types

import jax
import jax.numpy as jnp
import optax
import pytest

from ssljax.core import TrainState
from ssljax.plan.memory import TooLarge, held, memory, too_large
from ssljax.train.placement import Placement, make_mesh

KERNEL, BIAS = 512 * 256 * 4, 256 * 4


def init():
    params = {'encoder': {'kernel': jnp.ones((512, 256)), 'bias': jnp.ones((256,))}}
    opt = optax.sgd(0.1, momentum=0.9).init(params)
    method = {'stats': {}, 'queue': jnp.ones((1000, 10), jnp.bfloat16)}
    return TrainState(jnp.zeros((), jnp.int32), params, opt, method, jax.random.key(0))


@pytest.mark.parametrize('fsdp', [1, 8])
def test_parts_are_those_of_one_device(fsdp):
    placement = Placement(make_mesh(fsdp))
    state = placement.abstract(init)
    batch = {'image': jax.ShapeDtypeStruct((64, 8), jnp.uint8, sharding=placement.batch)}
    stats = types.SimpleNamespace(
        argument_size_in_bytes=10_000_000,
        output_size_in_bytes=9_000_000,
        alias_size_in_bytes=8_999_000,
        temp_size_in_bytes=123,
        generated_code_size_in_bytes=45,
    )
    split = memory(state, batch, stats)
    assert split.parameters == split.optimizer == KERNEL // fsdp + BIAS
    assert split.method == 20_000 + 4 + 8  # queue, step, key
    assert split.batch == 64
    assert (split.temporaries, split.program) == (123, 45)
    assert split.total == 10_000_000 + 1_000 + 123 + 45


def test_it_adds_up_to_what_the_compiler_says():
    placement = Placement(make_mesh())
    state = placement.abstract(init)
    batch = {'x': jax.ShapeDtypeStruct((16, 512), jnp.float32, sharding=placement.batch)}

    def step(state, batch):
        loss = lambda p: jnp.mean(jnp.sin(batch['x'] @ p['encoder']['kernel']))
        params = jax.tree.map(jnp.add, state.params, jax.grad(loss)(state.params))
        return TrainState(state.step + 1, params, state.opt, state.method, state.key), {}

    run = placement.compile_step(step, state).lower(state, batch).compile()
    stats = run.memory_analysis()
    split = memory(state, batch, stats)
    assert split.parameters == KERNEL + BIAS
    assert split.batch == held(batch) == 2 * 512 * 4
    assert split.temporaries == stats.temp_size_in_bytes > 0
    # All that the step takes is named: padding has no more than the metrics and alignment.
    assert 0 <= split.padding < 4096


def test_a_compiler_that_ran_out_says_by_how_much():
    said = 'RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space '
    error = RuntimeError(said + 'hbm. Used 30.25G of 15.75G hbm. Exceeded hbm capacity by 14.50G.')
    assert too_large(error) == TooLarge(30.25 * 2**30, 15.75 * 2**30)
    said = 'the total memory required for HLO temporaries (516.69G) exceeds available HBM (15.75G).'
    error = RuntimeError('RESOURCE_EXHAUSTED: Ran out of memory on HBM, ' + said)
    assert too_large(error) == TooLarge(516.69 * 2**30, 15.75 * 2**30)
    assert too_large(RuntimeError('INTERNAL: something else')) is None
