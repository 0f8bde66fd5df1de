"""States to save and compare, for the tests of checkpoints."""

import contextlib
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ssljax.train.checkpoint import Checkpoints


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class State:
    """Formed as `core.TrainState`; its fields are not typed, so that they may be shapes too."""

    step: Any
    params: Any
    opt: Any
    method: Any
    key: Any


def make_state(seed, width=16):
    """A state with every kind of leaf a method may carry."""
    rng = np.random.default_rng(seed)
    params = {
        'encoder': {'stem': jnp.asarray(rng.normal(size=(width, 8)), jnp.float32)},
        'head': {'half': jnp.asarray(rng.normal(size=(8, 4)), jnp.bfloat16)},
    }
    return State(
        step=jnp.int32(seed),
        params=params,
        opt=optax.adamw(1e-3).init(params),
        method={
            'queue': jnp.asarray(rng.normal(size=(16, 4)), jnp.float32),
            'filled': jnp.array([True, False]),
            'index': jnp.asarray(rng.integers(0, 255, 8), jnp.uint8),
            'momentum': jnp.float32(rng.random()),
            'empty': jnp.zeros((0, 4)),
            'stats': {},
            'none': None,
            'keys': jax.random.split(jax.random.key(seed, impl='rbg'), 8),
        },
        key=jax.random.key(seed),
    )


def like(state, sharding=None):
    """The state's shapes, placed on one device or as `sharding` says."""
    sharding = sharding or jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def bits(state):
    """Names, dtypes and bytes of all leaves, and the tree they hang on."""

    def plain(x):
        return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    leaves, tree = jax.tree.flatten(state)
    return tree, [(str(x.dtype), x.shape, np.asarray(plain(x)).tobytes()) for x in leaves]


@contextlib.contextmanager
def one_after_another(folder):
    """Opens the folder anew at each call, as a process started later would."""
    with contextlib.ExitStack() as stack:
        earlier = []

        def open_(last=9, best=0):
            for checkpoints in earlier:
                checkpoints.wait()
            earlier.append(Checkpoints(folder, last, best))
            return stack.enter_context(contextlib.closing(earlier[-1]))

        yield open_


def saved(checkpoints, *steps):
    """Saves `make_state(step)` for every step."""
    for step in steps:
        assert checkpoints.save(step, make_state(step), {'skipped': step}, None)
    checkpoints.wait()
