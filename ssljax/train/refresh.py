"""Between the steps: what a method does with the whole data set in reach."""

from collections.abc import Callable

import jax
import numpy as np
from jaxtyping import Array, Float

from ssljax.core import Now, TrainState, Tree
from ssljax.data.pipeline import in_order, neighbours
from ssljax.optim.restart import restart
from ssljax.train.placement import shardings
from ssljax.train.session import Session

BATCH = 256
"""Images a batch of the sweep, at least."""

Refresh = Callable[[TrainState], TrainState]


def refresher(session: Session) -> tuple[int, Refresh] | None:
    """How often the method of a session wants `refresh`, in steps, and the function that does it.

    It runs ahead of the steps 0, every, 2 every, ... of which a checkpoint is taken before it, so
    that a run that goes on from there runs it again, on the same bits.

    Returns:
        `(every, refresh)`, or None for a method that has none.
    """
    method, run = session.experiment.method, session.run
    every = method.refresh_every(run)
    if every is None:
        return None
    if every < 1:
        raise ValueError(f'refresh_every is {every} steps; it must be at least 1, or None')
    compiled: dict[Callable, Callable] = {}

    def refresh(state: TrainState) -> TrainState:
        def sweep(fn: Callable[[Tree, Tree, Array], Array]) -> Float[Array, 'examples d']:
            if fn not in compiled:
                compiled[fn] = _features(session, fn)
            # Replicated: what a method makes of it is one program of all processes.
            rows = _sweep(session, compiled[fn], state)
            return jax.device_put(rows, session.placement.replicated)

        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), REFRESH)
        now = Now(state.step, key, run)
        params, carried = method.refresh(state.params, state.method, now, sweep)
        at = session.placement.state(session.abstract)
        opt = restart(session.transform, state.opt, params, method.resets())
        return TrainState(
            step=state.step,
            params=jax.device_put(params, at.params),
            opt=jax.device_put(opt, at.opt),
            method=jax.device_put(carried, at.method),
            key=state.key,
        )

    return every, refresh


REFRESH = 2**16
"""Folded into a step's key for `refresh`, apart from the step's own draws."""


def _features(session: Session, fn: Callable[[Tree, Tree, Array], Array]) -> Callable:
    """`fn` under jit, on uint8 images that are split over the devices."""
    recipe = session.experiment.recipe
    return jax.jit(
        lambda params, state, images: fn(params, state, recipe.normalize(images)),
        in_shardings=(
            shardings(session.abstract.params),
            shardings(session.abstract.method),
            session.placement.batch,
        ),
        out_shardings=session.placement.replicated,
    )


def _sweep(session: Session, embed: Callable, state: TrainState) -> Float[np.ndarray, 'examples d']:
    """The features of all images; of a corrupt one those of the image that training shows for it.

    All processes read all images, so that each of them has the same rows.
    """
    experiment = session.experiment
    devices = session.placement.mesh.size
    size = -(-max(BATCH, experiment.evaluation.batch) // devices) * devices
    rows = None
    share = experiment.data.max_corrupt
    for batch in in_order(session.source, experiment.recipe, size, share):
        valid = np.asarray(batch['valid'], bool)
        features = np.asarray(
            embed(state.params, state.method, session.placement.put_images(batch['image']))
        )[valid]
        if rows is None:
            rows = np.zeros((session.source.examples, features.shape[1]), features.dtype)
            readable = np.zeros(session.source.examples, bool)
        rows[batch['index'][valid]] = features
        readable[batch['index'][valid]] = True
    for index in np.flatnonzero(~readable):
        near = (index + np.array(neighbours(len(rows)))) % len(rows)
        rows[index] = rows[near[np.argmax(readable[near])]]
    return rows
