"""Every `stop_gradient` of a method, taken out by itself: does the gradient tell?"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from cases import METHODS
from flax import linen as nn
from one_step import (
    assert_trees_close,
    differentiated,
    fresh,
    gradients,
    graph,
    on_one_device,
    ready_batch,
)

TELL = {
    'deepcluster': {'DeepCluster.objective'},
    'swav': {'SwAV.objective 2'},
    # The scores, and the prototypes that what waits in the queue is scored by.
    'swav_queue': {'SwAV.objective 2', 'SwAV.objective 3', 'Queue.read'},
    # The teacher's scores and the centre.
    'dino': {'DINO.objective 1', 'DINO.objective 2'},
    'byol': {'BYOL.objective'},
    'moco_v3': {'MoCoV3.objective'},
    'moco_v2': {'MoCo.embed_keys', 'Queue.read'},
    'npid_nce': {'NPID.estimated', 'Bank.read'},
    # What is painted as the discriminator sees it, and the discriminator as the painter does.
    'context_encoder_adversarial': {'ContextEncoder.forward 1', 'ContextEncoder.forward 2'},
}
"""The constants that the gradient of a method rests on, by the function that names them; numbered
in their order where it names several. A new method that has such gets a line."""

SILENT = {
    'unit': 'the result does not depend on the factor that is a constant',
    'of_views': 'what is only watched is no part of the loss',
    'Queue.push': 'no loss sees it before the next step, for which all that is carried is constant',
    'Bank.update': 'as of Queue.push',
    'SwAV.objective 1': 'the embeddings that join the queue, as of Queue.push',
    'SwAV.objective 3': 'without a queue, prototypes are in the scores already',
    'ContextEncoder.objective': 'the target is cut out of the image and made by nobody',
}
"""Those that are there to be safe, and why no gradient changes without them."""

STOP = jax.lax.stop_gradient


class Stops:
    """`jax.lax.stop_gradient`, but for what it is given at some places in ssljax.

    A place is the name of a function, a line in it, and which one of several arrays it is.
    """

    def __init__(self, without=()):
        self.without, self.met = set(without), set()

    def __call__(self, x):
        caller = sys._getframe(1)
        if not caller.f_globals['__name__'].startswith('ssljax.'):
            return STOP(x)
        several = x if isinstance(x, tuple) else (x,)
        places = [(caller.f_code.co_qualname, caller.f_lineno, k) for k in range(len(several))]
        self.met |= set(places)
        out = [
            part if place in self.without else STOP(part)
            for part, place in zip(several, places, strict=True)
        ]
        return tuple(out) if isinstance(x, tuple) else out[0]


def named(places):
    """Places by the names of the tables above."""
    of = lambda function: sorted(place for place in places if place[0] == function)
    number = lambda place: f' {of(place[0]).index(place) + 1}' if len(of(place[0])) > 1 else ''
    return {place[0] + number(place): place for place in places}


class Colour(nn.Module):
    """An encoder of images of any size that compiles at once."""

    def __call__(self, x, train):
        return self.features(x, train)['pool']

    @nn.compact
    def features(self, x, train):
        return {'pool': jnp.sin(nn.Dense(8)(x.mean((1, 2))))}


@pytest.mark.slow
@pytest.mark.parametrize('name', TELL)
def test_each_constant_is_missed_in_the_gradient_or_there_to_be_safe(name, x64, monkeypatch):
    case, tell = METHODS[name], TELL[name]
    case = dataclasses.replace(case, method=dataclasses.replace(case.method, encoder=Colour()))

    def slopes(*without):
        monkeypatch.setattr(jax.lax, 'stop_gradient', stops := Stops(without))
        return gradients(case)[1:3], named(stops.met)

    whole, places = slopes()
    assert tell <= set(places) <= tell | set(SILENT)
    silent = [place for each, place in places.items() if each not in tell]
    assert_trees_close(slopes(*silent)[0], whole, rtol=1e-9, atol=1e-12)
    for each in sorted(tell):
        found, _ = slopes(places[each])
        moved = optax.global_norm(jax.tree.map(jnp.subtract, found, whole))
        assert float(moved) > 1e-6, each


@pytest.mark.slow
@pytest.mark.parametrize(
    'name', [name for name, case in METHODS.items() if not case.variant and name not in TELL]
)
def test_no_other_method_rests_on_a_constant(name, x64, monkeypatch):
    of, arguments = differentiated(METHODS[name])
    monkeypatch.setattr(jax.lax, 'stop_gradient', stops := Stops())
    jax.eval_shape(of, *arguments)
    assert set(named(stops.met)) <= set(SILENT)


def test_z_of_the_first_batch_is_a_constant_to_it(x64):
    """Loss and gradient are those of a run that has known this Z before."""
    case = METHODS['npid_nce']
    (loss, (after, _)), grads = on_one_device(case)
    params, state = fresh(case, jnp.float64)
    assert not state['z']['known'] and after['z']['known']
    known = {**state, 'z': after['z']}
    (again, _), found = graph(case)(params, known, ready_batch(case.recipe, jnp.float64))
    np.testing.assert_allclose(again, loss, rtol=1e-12)
    assert_trees_close(found, grads, rtol=1e-9, atol=1e-12)
