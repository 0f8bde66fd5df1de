"""One of two processes that share a folder of checkpoints; prints what it saw."""

import json
import pathlib
import sys

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ssljax.train.checkpoint import CheckpointError, Checkpoints


def main(folder, port, process):
    jax.config.update('jax_num_cpu_devices', 2)
    jax.distributed.initialize(f'localhost:{port}', 2, process)
    mesh = jax.make_mesh((jax.device_count(),), ('data',), axis_types=(AxisType.Auto,))
    rows, whole = NamedSharding(mesh, P('data')), NamedSharding(mesh, P())

    def make(step):
        w = np.arange(64, dtype=np.float32).reshape(16, 4) + step
        return {
            'w': jax.make_array_from_callback(w.shape, rows, lambda i: w[i]),
            'whole': jax.make_array_from_callback(w.shape, whole, lambda i: w[i] * 2),
            'step': jax.make_array_from_callback((), whole, lambda i: np.int32(step)),
        }

    like = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), make(0)
    )
    checkpoints = Checkpoints(folder, 3, 0)
    none = checkpoints.restore(like) is None
    for step in (1, 2):
        assert checkpoints.save(step, make(step), {'skipped': step}, 0.5)
    checkpoints.wait()
    nan = make(3)
    nan['w'] = jax.make_array_from_callback(  # in the rows of process 1 alone
        (16, 4),
        rows,
        lambda i: np.full((4, 4), np.nan if (i[0].start or 0) >= 12 else 0.0, np.float32),
    )
    refused = not checkpoints.save(3, nan, {}, None)
    multihost_utils.sync_global_devices('saved')
    steps = checkpoints.steps()
    multihost_utils.sync_global_devices('seen')
    if process == 0:
        spoil(folder, 2)
    state, meta = checkpoints.restore(like)
    for shard in state['w'].addressable_shards:
        expected = np.arange(64).reshape(16, 4)[shard.index] + 1
        np.testing.assert_array_equal(shard.data, expected.astype(np.float32))
    for shard in state['whole'].addressable_shards:
        np.testing.assert_array_equal(shard.data, 2 * (np.arange(64).reshape(16, 4) + 1))
    if process == 0:
        spoil(folder, 1)
    try:
        checkpoints.restore(like)
        damaged = False
    except CheckpointError:
        damaged = True
    checkpoints.close()
    seen = {'steps': steps, 'restored': meta['skipped'], 'none': none}
    print(json.dumps({**seen, 'damaged': damaged, 'refused': refused}))


def spoil(folder, step):
    (pathlib.Path(folder) / str(step) / '_METADATA').write_bytes(b'{}')


if __name__ == '__main__':
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
