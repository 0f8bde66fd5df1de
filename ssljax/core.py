"""The three types everything else speaks: `Batch`, `Method`, `TrainState` (and the clock, `Now`).

A method is config, object and code at once: a frozen dataclass whose fields are hyper-parameters
and Linen modules and whose methods are pure functions. It is hashable, printable and diffable;
`dataclasses.replace` is an ablation.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int, PRNGKeyArray

Tree = Any
"""A pytree of arrays."""

Batch = Mapping[str, Array]
"""Named arrays, first axis = examples.

Always there: `index` (int32 [n], the example's position in its dataset) and, inside the step, `key`
(one typed PRNG key per example). `image` holds the views, [n, v, h, w, c]: uint8 as the pipeline
delivers them, float32 and normalised once the recipe's device half has run. `label` (int32 [n]) is
there where the dataset has labels.
"""

Embed = Callable[[Array], Array]
"""uint8 images [n, h, w, c] -> features [n, d] in evaluation mode."""

Sweep = Callable[[Callable[[Tree, Tree, Array], Array]], Float[Array, 'examples d']]
"""`sweep(fn)` -> what `fn(params, state, images [n, h, w, c]) -> [n, d]` makes of every training
example's evaluation view (normalised), in index order. `fn` is compiled once if it is a bound
method or a module's function."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What is fixed for a whole run: sizes that schedules are functions of.

    Attributes:
        examples: number of training examples.
        batch: global batch size in examples (not views).
        steps: number of optimizer steps of the whole run.
        steps_per_epoch: `examples // batch`; the tail of an epoch is dropped.
    """

    examples: int
    batch: int
    steps: int
    steps_per_epoch: int


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Now:
    """Where a run stands: the step about to be taken, its key, and the run.

    Every schedule is a function of this; nothing derived is stored.
    """

    step: Int[Array, '']
    key: PRNGKeyArray
    run: Run = dataclasses.field(metadata={'static': True})

    @property
    def epoch(self) -> Int[Array, '']:
        """Completed passes over the data, counted from 0."""
        return self.step // self.run.steps_per_epoch

    @property
    def progress(self) -> Float[Array, '']:
        """Share of the run that is done, in [0, 1)."""
        return self.step / self.run.steps


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training changes, arrays only: donated, sharded, checkpointed, compared bit for bit.

    Attributes:
        step: number of optimizer steps taken, int32 scalar.
        params: what the optimizer trains.
        opt: the optimizer's state.
        method: what else the method carries (batch statistics, target network, queue, ...).
        key: the run's PRNG key; step k uses `fold_in(key, k)`, so it never changes.

    The fields are typed as trees because shapes and shardings of a state are kept in this form too.
    """

    step: Tree
    params: Tree
    opt: Tree
    method: Tree
    key: Tree


@dataclasses.dataclass(frozen=True)
class Signature:
    """What a data set and a recipe deliver, known before anything starts.

    Attributes:
        views: the arrays of views by name, each (number of views, size in pixels):
            `{'image': (2, 224)}`.
        channels: image channels.
        classes: number of classes, or None for data without labels.
        examples: number of training examples.
    """

    views: tuple[tuple[str, tuple[int, int]], ...]
    channels: int
    classes: int | None
    examples: int


@dataclasses.dataclass(frozen=True)
class Method:
    """A self-supervised method: frozen hyper-parameters and modules, pure functions.

    Subclasses give `init`, `forward`, `objective` and `product`, and may give `check` and
    `batch_unit`, `after`, and `refresh` with `refresh_every` and `resets`.
    `params` is a dict of parameter trees by network; `state` a dict of named trees, with batch
    statistics under `state['stats']` and a moving average of parameters under `state['target']`.

    Attributes:
        mean_over_examples: whether the objective's loss is a mean of terms that know one example
            each (beside params and state, batch statistics excepted): then the gradients of
            micro-batches may simply be averaged. False is always right, and costs one more forward
            pass of micro-batches.
        uses: names of the arrays of views it looks at; a recipe that makes others is refused.
    """

    mean_over_examples: ClassVar[bool] = False
    uses: ClassVar[tuple[str, ...]] = ('image',)

    def check(self, data: Signature, run: Run) -> None:
        """Raise ValueError, saying what to change, if data and recipe do not fit this method."""

    def batch_unit(self, microbatches: int = 1) -> int:
        """What the global batch must be a multiple of for this method, whatever the devices need.

        Args:
            microbatches: equal parts of the batch that `forward` sees one after the other.

        Returns:
            At least 1, the default. `check` refuses other batches.
        """
        return 1

    def init(self, key: PRNGKeyArray, batch: Batch, run: Run) -> tuple[Tree, Tree]:
        """Fresh `(params, state)`; `batch` is one device-half batch, for its shapes."""
        raise NotImplementedError

    def forward(
        self, params: Tree, state: Tree, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Tree, Tree]:
        """The networks, in training mode, on any slice of the batch.

        Returns:
            `(outputs, stats)`: outputs are example-first (every leaf `[n, ...]`, views as
            `[n, v, d]`); stats are the new running statistics, in the form of `state['stats']`.
        """
        raise NotImplementedError

    def objective(
        self, params: Tree, outputs: Tree, state: Tree, now: Now
    ) -> tuple[Float[Array, ''], tuple[Tree, dict[str, Array]]]:
        """The equation, over the outputs of the whole batch; sees no images.

        Returns:
            `(loss, (state, metrics))`, metrics being named scalars.
        """
        raise NotImplementedError

    def after(self, params: Tree, state: Tree, now: Now) -> tuple[Tree, Tree]:
        """Runs behind the optimizer's step (momentum encoders, prototypes). Default: nothing."""
        return params, state

    def refresh_every(self, run: Run) -> int | None:
        """Steps from one `refresh` to the next, the first at step 0. Default: None, never."""
        return None

    def resets(self) -> tuple[str, ...]:
        """Regular expressions for the parameters whose optimizer state `refresh` starts afresh."""
        return ()

    def refresh(self, params: Tree, state: Tree, now: Now, sweep: Sweep) -> tuple[Tree, Tree]:
        """Runs ahead of a step, outside of jit, with the whole data set in reach (k-means, ...).

        Shapes and dtypes of `params` and `state` stay as they are. Default: nothing.
        """
        return params, state

    def product(self, params: Tree, state: Tree) -> tuple[nn.Module, Tree]:
        """What training is for: the encoder as `(module, variables)`, probed and exported."""
        raise NotImplementedError


def with_keys(batch: Batch, key: PRNGKeyArray) -> dict[str, Array]:
    """Gives every example its own key: `fold_in(key, position in the global batch)`.

    Everything random that belongs to an example is drawn from its key under `vmap`, so that it
    depends on neither the device count nor the micro-batching.
    """
    positions = jnp.arange(batch['index'].shape[0], dtype=jnp.uint32)
    return {**batch, 'key': jax.vmap(lambda i: jax.random.fold_in(key, i))(positions)}
