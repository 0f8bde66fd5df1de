"""One optimizer step as a pure function: no devices, no files, no method known by name."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ssljax.core import Batch, Method, Now, Run, TrainState, Tree, with_keys
from ssljax.train.microbatches import value_and_grad
from ssljax.views.recipe import Recipe

Step = Callable[[TrainState, Batch], tuple[TrainState, dict[str, Array]]]


def make_init(
    method: Method,
    recipe: Recipe,
    transform: optax.GradientTransformation,
    run: Run,
    seed: int,
    example: Tree,
) -> Callable[[], TrainState]:
    """A function `() -> TrainState` of fresh parameters.

    Args:
        method: what will be trained.
        recipe: whose device half says what the networks will see.
        transform: the optimizer.
        run: the sizes of the run.
        seed: of the parameters and of everything random in the steps.
        example: shapes and dtypes of a batch of any number of examples.
    """

    def init() -> TrainState:
        k_init, k_views, k_run = jax.random.split(jax.random.key(seed), 3)
        batch = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), dict(example))
        views = recipe.on_device(with_keys(batch, k_views))
        params, state = method.init(k_init, views, run)
        return TrainState(jnp.zeros((), jnp.int32), params, transform.init(params), state, k_run)

    return init


def make_step(
    method: Method,
    recipe: Recipe,
    transform: optax.GradientTransformation,
    schedule: optax.Schedule,
    run: Run,
    microbatches: int = 1,
) -> Step:
    """The step `(state, batch) -> (state, metrics)`.

    A step whose loss, gradient or result is not finite changes nothing but counters: the batch is
    skipped, `metrics['skipped']` is 1 and `metrics['nonfinite/<group>']` names the parameter groups
    whose gradients were hit. Rolling back instead would only replay the same batch. Counters of the
    optimizer go on, so that its learning rate stays that of the step.

    Args:
        method: what is trained.
        recipe: whose device half runs inside the step.
        transform: the optimizer.
        schedule: its learning rate by step, for the log.
        run: the sizes of the run.
        microbatches: parts that the networks see the batch in, one after the other.
    """
    gradient = value_and_grad(method, recipe.on_device, microbatches)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, dict[str, Array]]:
        keys = jax.random.split(jax.random.fold_in(state.key, state.step), 4)
        k_batch, k_forward, k_objective, k_after = keys
        batch = with_keys(batch, k_batch)
        carried = jax.lax.stop_gradient(state.method)

        now = Now(state.step, k_objective, run)
        (loss, (carry, metrics)), grads = gradient(state.params, carried, batch, k_forward, now)
        updates, opt = transform.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        params, carry = method.after(params, carry, Now(state.step, k_after, run))

        norms = {group: optax.global_norm(tree) for group, tree in sorted(grads.items())}
        # A finite gradient may still overflow the parameters, and a finite loss a running variance:
        # what would be kept must be finite.
        finite = jnp.stack([*norms.values(), optax.global_norm(params)])
        good = jnp.isfinite(loss) & jnp.all(jnp.isfinite(finite)) & _finite(carry)
        after = TrainState(
            state.step + 1,
            params=_chosen(good, params, state.params),
            opt=_chosen(good, opt, state.opt, always=jnp.integer),
            method=_chosen(good, carry, state.method),
            key=state.key,
        )
        metrics = {
            **metrics,
            'loss': loss,
            'grad_norm': optax.global_norm(list(norms.values())),
            'learning_rate': jnp.asarray(schedule(state.step), jnp.float32),
            'skipped': 1 - good.astype(jnp.int32),
            **{f'nonfinite/{g}': 1 - jnp.isfinite(n).astype(jnp.int32) for g, n in norms.items()},
        }
        return after, metrics

    return step


def _finite(tree: Tree) -> Array:
    """Whether all numbers are finite."""
    floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.array([jnp.all(jnp.isfinite(x)) for x in floats], bool))


def _chosen(good: Array, new: Tree, old: Tree, always: type | None = None) -> Tree:
    """`new` where good, else `old`; leaves of the type `always` are new in any case."""

    def one(new: Array, old: Array) -> Array:
        if always is not None and jnp.issubdtype(new.dtype, always):
            return new
        return jnp.where(good, new, old)

    return jax.tree.map(one, new, old)
