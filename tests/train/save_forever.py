"""Saves small states until it is killed; first checks what the one before it left."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from ssljax.train.checkpoint import Checkpoints


def state(step):
    """A state that is a function of its step: enough bytes that writing takes a while."""
    rng = np.random.default_rng(step)
    arrays = {f'w{i}': jnp.asarray(rng.random((256, 256)), jnp.float32) for i in range(12)}
    return {**arrays, 'step': jnp.int32(step)}


def say(**what):
    print(json.dumps(what), flush=True)


def main():
    checkpoints = Checkpoints(sys.argv[1], keep_last=2, keep_best=0)
    restored = checkpoints.restore(jax.eval_shape(lambda: state_shapes()))
    step = 0
    if restored:
        step = int(restored[0]['step'])
        for name, expected in state(step).items():
            np.testing.assert_array_equal(restored[0][name], expected)
        assert restored[1] == {'skipped': step}
    say(restored=step)
    while '--once' not in sys.argv:
        step += 1
        checkpoints.save(step, state(step), {'skipped': step}, None)
        say(committed=step - 1)  # saving waits for the save before
    checkpoints.close()


def state_shapes():
    return {**{f'w{i}': jnp.zeros((256, 256)) for i in range(12)}, 'step': jnp.int32(0)}


if __name__ == '__main__':
    main()
