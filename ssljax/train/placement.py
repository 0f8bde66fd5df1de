"""Where arrays live: the only file that says `NamedSharding`.

The loss and the method see the whole global batch (the global view); the partitioner does the rest.
The batch is split over both mesh axes, parameters, their moving average and optimizer state over
`fsdp` by rule, and all else is replicated.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ssljax.core import Batch, TrainState, Tree
from ssljax.train.step import Step

MOVING_AVERAGE = 'target'
"""The entry of a method's state that is as large as its parameters, and lives where they do."""

SMALLEST_SHARDED = 2**16
"""Arrays with fewer elements stay whole: gathering them costs more than holding them."""


def make_mesh(fsdp: int = 1, devices: int | Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh ('data', 'fsdp') over devices.

    Args:
        fsdp: length of that axis.
        devices: the first so many, or these (a topology's need not exist); None for all there are.

    Raises:
        ValueError: if `fsdp` does not divide the number of devices, or a process would have none.
    """
    if devices is None or isinstance(devices, int):
        found = jax.devices()
        count = len(found) if devices is None else devices
        if count != len(found) and jax.process_count() > 1:
            raise ValueError(
                f'{count} devices asked for, {len(found)} found in {jax.process_count()} '
                'processes; several processes use all of theirs: leave --devices out, or start '
                'fewer processes'
            )
    else:
        found, count = list(devices), len(devices)
    if not 1 <= count <= len(found):
        raise ValueError(f'{count} devices asked for, {len(found)} found; use 1 to {len(found)}')
    if fsdp < 1 or count % fsdp:
        raise ValueError(f'fsdp={fsdp} does not divide {count} devices; use a divisor of {count}')
    arranged = _arranged(found[:count], (count // fsdp, fsdp))
    return Mesh(arranged, ('data', 'fsdp'), axis_types=(AxisType.Auto, AxisType.Auto))


def _arranged(devices: Sequence[Any], shape: tuple[int, int]) -> np.ndarray:
    """The devices in this shape, those near each other along the last axis.

    Not by `jax.make_mesh`: it refuses GPUs of several hosts, which count as several slices, and to
    split an axis of most TPU slices, as `fsdp=8` of a v6e 16x16 does.
    """
    slices = len({getattr(device, 'slice_index', 0) for device in devices})
    if devices[0].platform == 'tpu' and slices == 1:
        return mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    if devices[0].platform == 'tpu' and shape[0] % slices == 0:
        within = (shape[0] // slices, shape[1])
        return mesh_utils.create_hybrid_device_mesh(
            within, (slices, 1), devices, allow_split_physical_axes=True
        )
    place = lambda device: (getattr(device, 'slice_index', 0), device.process_index, device.id)
    return np.array(sorted(devices, key=place)).reshape(shape)


def parameter_spec(shape: tuple[int, ...], fsdp: int) -> PartitionSpec:
    """The largest axis that `fsdp` divides is split; small arrays and the rest stay whole."""
    if fsdp == 1 or int(np.prod(shape)) < SMALLEST_SHARDED:
        return PartitionSpec()
    for axis in sorted(range(len(shape)), key=lambda axis: -shape[axis]):
        if shape[axis] % fsdp == 0:
            return PartitionSpec(*(None,) * axis, 'fsdp')
    return PartitionSpec()


@dataclasses.dataclass(frozen=True)
class Placement:
    """The mesh and all that follows from it.

    Attributes:
        mesh: axes ('data', 'fsdp').
    """

    mesh: Mesh

    @property
    def batch(self) -> NamedSharding:
        """Examples are split over every device."""
        return NamedSharding(self.mesh, PartitionSpec(('data', 'fsdp')))

    @property
    def replicated(self) -> NamedSharding:
        """The same on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def check(self, batch: int, microbatches: int = 1) -> None:
        """Raise ValueError unless every micro-batch of the batch can be split evenly."""
        devices, parts = self.mesh.size, self.mesh.size * microbatches
        if batch % parts:
            near = max(parts, batch - batch % parts)
            how = f' in {microbatches} micro-batches' if microbatches > 1 else ''
            raise ValueError(
                f'a batch of {batch}{how} cannot be split evenly over {devices} devices; '
                f'use a multiple of {parts}, such as {near}'
            )

    def rows(self, batch: int) -> np.ndarray:
        """The positions of the global batch that this process's devices hold, ascending."""
        held = self.batch.addressable_devices_indices_map((batch,)).values()
        return np.unique(np.concatenate([np.arange(batch)[index] for index in held]))

    def put(self, batch: Mapping[str, np.ndarray]) -> Batch:
        """This process's rows -> global arrays."""
        place = jax.make_array_from_process_local_data
        return {name: place(self.batch, array) for name, array in batch.items()}

    def put_images(self, images: np.ndarray) -> jax.Array:
        """Images that every process has all of -> a global array, split like a batch."""
        return jax.make_array_from_callback(images.shape, self.batch, lambda rows: images[rows])

    def state(self, abstract: TrainState) -> TrainState:
        """A tree of shardings for a state's shapes."""
        fsdp = self.mesh.shape['fsdp']

        def split(tree: Tree) -> Tree:
            spec = lambda leaf: NamedSharding(self.mesh, parameter_spec(leaf.shape, fsdp))
            return jax.tree.map(spec, tree)

        whole = lambda tree: jax.tree.map(lambda _: self.replicated, tree)
        return TrainState(
            step=self.replicated,
            params=split(abstract.params),
            opt=split(abstract.opt),
            method={
                name: split(tree) if name == MOVING_AVERAGE else whole(tree)
                for name, tree in abstract.method.items()
            },
            key=self.replicated,
        )

    def abstract(self, init: Callable[[], TrainState]) -> TrainState:
        """Shapes, dtypes and shardings of the state that `init` makes, without making it."""
        shapes = jax.eval_shape(init)
        place = lambda leaf, at: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at)
        return jax.tree.map(place, shapes, self.state(shapes))

    def compile_init(self, init: Callable[[], TrainState], abstract: TrainState) -> 'Compiled':
        """`init` under jit, each array born where it lives."""
        return Compiled(init, self.mesh, out_shardings=shardings(abstract))

    def compile_step(self, step: Step, abstract: TrainState) -> 'Compiled':
        """`step` under jit: state donated, batch split, metrics replicated."""
        at = shardings(abstract)
        return Compiled(
            step,
            self.mesh,
            in_shardings=(at, self.batch),
            out_shardings=(at, self.replicated),
            donate_argnums=0,
        )


class Compiled:
    """A function under jit that is traced under its mesh, and counts how often it is traced.

    Without the mesh set, a kernel inside sees none and falls back silently.

    Args:
        function: what is compiled.
        mesh: set while it is traced and run.
        options: of `jax.jit`.

    Attributes:
        traces: times the function was traced; more than one in a run is a recompilation.
    """

    def __init__(self, function: Callable, mesh: Mesh, **options: Any):
        def counted(*arguments):
            self.traces += 1
            return function(*arguments)

        self.traces = 0
        self._mesh = mesh
        self._jitted = jax.jit(counted, **options)

    def __call__(self, *arguments):
        """Runs it."""
        with jax.set_mesh(self._mesh):
            return self._jitted(*arguments)

    def lower(self, *arguments):
        """Its lowered form, for cost and memory analysis."""
        with jax.set_mesh(self._mesh):
            return self._jitted.lower(*arguments)


def shardings(abstract: Tree) -> Tree:
    """Where each leaf of an abstract state lives."""
    return jax.tree.map(lambda leaf: leaf.sharding, abstract)
