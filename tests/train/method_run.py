"""A few steps of methods of the common table in float64, on whatever devices there are.

Run as a program it is one of several processes; process 0 writes the arrays:

    method_run.py OUTPUT.npz simclr moco_v2
"""

import dataclasses
import os
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / 'methods'))

from cases import METHODS, RUN

from ssljax.core import with_keys
from ssljax.data.made import CLASSES
from ssljax.data.pipeline import batches
from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.optim import SGD
from ssljax.train.placement import shardings
from ssljax.train.processes import Asked, together
from ssljax.train.refresh import refresher
from ssljax.train.session import Session
from ssljax.train.step import make_step
from ssljax.views.recipe import Recipe

STEPS = 4


class Ready(Recipe):
    """A recipe whose device half has run already."""

    def on_device(self, batch):
        """The batch as it is."""
        return batch


def opened(name, devices=None, fsdp=1):
    """A session for a method of the table."""
    case = METHODS[name]
    method = case.method
    if hasattr(method, 'classes'):
        method = dataclasses.replace(method, classes=len(CLASSES))
    experiment = Experiment(
        method=method,
        recipe=case.recipe,
        optimizer=SGD(
            learning_rate=case.learning_rate, scaling='none', warmup_epochs=0.0, decay='constant'
        ),
        data=Data(name='made_images', train=f'train[:{RUN.examples}]'),
        evaluation=Evaluation(every=0.0),
        batch=RUN.batch,
        steps=RUN.steps,
        fsdp=fsdp,
    )
    return Session.open(experiment, devices)


def doubled(tree, at=None):
    """In float64, placed as it is or `at`."""
    cast = lambda leaf: (
        leaf.astype(jnp.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
    )
    options = {} if at is None else {'out_shardings': at}
    return jax.jit(lambda tree: jax.tree.map(cast, tree), **options)(tree)


def ready_batches(session):
    """Global batches in float64, after the device half of the views.

    Every process makes the views of the whole batch, so that they are the same to the last bit
    however many there are; and sees that the rows it reads in a real run are those it takes here.
    """
    recipe, plan = session.experiment.recipe, session.stream()
    whole = batches(session.source, recipe, dataclasses.replace(plan, rows=None), stop=STEPS)
    own = batches(session.source, recipe, plan, stop=STEPS)
    on_device = jax.jit(lambda batch, key: recipe.on_device(with_keys(batch, key)))
    for step, (batch, part) in enumerate(zip(whole, own, strict=True)):
        for name, array in part.items():
            np.testing.assert_array_equal(array, batch[name][plan.rows])
        views = doubled(on_device(batch, jax.random.key(step)))
        views.pop('key')
        rows = {name: np.asarray(leaf)[plan.rows] for name, leaf in views.items()}
        yield session.placement.put(rows)


def begun(session):
    """The state before the first step.

    Parameters that are scaled as they are drawn (SwAV's prototypes) depend on the order of sums in
    float32, so that those born in parts are only checked, and the whole ones are taken.
    """
    born = session.fresh()
    if session.experiment.fsdp == 1:
        return born
    whole = Session.open(dataclasses.replace(session.experiment, fsdp=1), 1).fresh()
    for one, other in zip(jax.tree.leaves(born.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    return jax.device_put(whole, shardings(session.abstract))


def steps(name, devices=None, fsdp=1):
    """Losses, gradients of the first step, and everything there is after `STEPS` of them.

    The gradients are what SGD has for momentum after that step: it starts at 0, and nothing decays.

    Returns:
        Arrays by path, and the state.
    """
    session = opened(name, devices, fsdp)
    experiment, run, placement = session.experiment, session.run, session.placement
    at = shardings(session.abstract)
    state = doubled(begun(session), at)
    between = refresher(session)
    if between is not None:
        state = between[1](state)
    method, schedule = experiment.method, experiment.optimizer.schedule(run)
    take = placement.compile_step(
        make_step(method, Ready(), session.transform, schedule, run), session.abstract
    )
    found = {}
    for step, batch in enumerate(ready_batches(session)):
        state, metrics = take(state, batch)
        if step == 0:
            found |= flat(state.opt, f'{name}/first')
        found[f'{name}/losses/{step}'] = np.asarray(metrics['loss'])
    arrays = {'params': state.params, 'opt': state.opt, 'method': state.method}
    return found | flat(arrays, name), state


def flat(tree, prefix):
    """Arrays by path."""
    named = jax.tree_util.tree_leaves_with_path(tree)
    return {f'{prefix}{jax.tree_util.keystr(path)}': np.asarray(leaf) for path, leaf in named}


def assert_close(found, wanted):
    """The same arrays, each to 1e-10; what is compared is in float64."""
    assert found.keys() == wanted.keys()
    assert any(array.dtype == np.float64 for array in wanted.values())
    for name, array in wanted.items():
        assert found[name].dtype == array.dtype != np.float32, name
        np.testing.assert_allclose(found[name], array, rtol=1e-10, atol=1e-10, err_msg=name)


def main(output, *names):
    """One of the processes."""
    jax.config.update('jax_enable_x64', True)
    found = {}
    for name in names:
        found |= steps(name)[0]
    if jax.process_index() == 0:
        np.savez(output, processes=jax.process_count(), **found)
    return 0


if __name__ == '__main__':
    code = together(Asked().completed(os.environ), lambda: main(*sys.argv[1:]))
    sys.exit(code)
