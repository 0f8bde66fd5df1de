"""What is measured while a run goes: kNN, linear probe and collapse measures on validation."""

from collections.abc import Callable
from typing import Any

import jax

from ssljax.core import TrainState
from ssljax.data.pipeline import in_order
from ssljax.data.registry import open_source
from ssljax.data.sources import Source
from ssljax.evaluate.collapse import alarms
from ssljax.evaluate.embed import embedder
from ssljax.evaluate.features import Features, extract
from ssljax.evaluate.online import online
from ssljax.train.placement import shardings
from ssljax.train.session import Session


def monitor(session: Session) -> Callable[[TrainState], dict[str, Any]] | None:
    """A function that measures a state, or None if the experiment asks for no evaluation.

    The neighbours and the probe are taken from training images, spread evenly; they are scored on
    validation images. Test is not opened. Where the features look collapsed, `alarms` says so in
    words.

    Raises:
        ValueError: if the validation split cannot be opened, or has other channels.
    """
    experiment = session.experiment
    data, asked = experiment.data, experiment.evaluation
    if asked.every <= 0 or data.validation is None:
        return None
    bank = session.source.spread(asked.bank)
    queries = session.takes(open_source(data.name, data.validation)).spread(asked.queries)
    embed = jax.jit(
        embedder(experiment.method, experiment.recipe),
        in_shardings=(
            shardings(session.abstract.params),
            shardings(session.abstract.method),
            session.placement.batch,
        ),
        out_shardings=session.placement.replicated,
    )
    # The batch has to be split evenly over the devices.
    devices = session.placement.mesh.size
    size = -(-asked.batch // devices) * devices

    def features(state: TrainState, source: Source) -> Features:
        return extract(
            lambda images: embed(state.params, state.method, session.placement.put_images(images)),
            in_order(source, experiment.recipe, size, data.max_corrupt),
        )

    def measure(state: TrainState) -> dict[str, Any]:
        near, far = features(state, bank), features(state, queries)
        values = online(near, far, k=asked.k)
        # Features behind a ReLU have a common mean, so that their spread alone says nothing.
        rank = {'effective_rank': values['effective_rank']}
        raised = list(alarms(rank, far.features.shape[1]))
        return {**values, 'alarms': raised} if raised else values

    return measure
