"""Between the steps: when `refresh` runs, what it sees, and that a resumed run repeats it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from ssljax.core import Method
from ssljax.data.pipeline import in_order
from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.optim import SGD, AdamW
from ssljax.optim.restart import restart
from ssljax.train.folder import RunFolder
from ssljax.train.loop import train
from ssljax.train.refresh import refresher
from ssljax.train.session import Session
from ssljax.views.supervised import CropFlip


def brightness(params, state, images):
    """The features of this test: mean and spread of an image, times the weight."""
    flat = images.reshape(images.shape[0], -1)
    return params['encoder']['w'] * jnp.stack([flat.mean(1), flat.std(1)], 1)


@dataclasses.dataclass(frozen=True)
class Remembers(Method):
    """Keeps what the last refresh saw, and a head that every refresh draws anew."""

    every: int = 3

    def init(self, key, batch, run):
        params = {'encoder': {'w': jnp.ones(())}, 'head': {'b': jnp.ones(())}}
        seen = jnp.zeros((run.examples, 2))
        return params, {'stats': {}, 'seen': seen, 'times': jnp.zeros((), jnp.int32)}

    def forward(self, params, state, batch, key):
        x = batch['image'].mean(axis=(1, 2, 3, 4))
        return {'y': params['encoder']['w'] * x + params['head']['b']}, state['stats']

    def objective(self, params, outputs, state, now):
        return jnp.mean((outputs['y'] - 2) ** 2), (state, {})

    def refresh_every(self, run):
        return self.every

    def resets(self):
        return ('head/',)

    def refresh(self, params, state, now, sweep):
        head = {'b': jax.random.normal(now.key)}
        times = state['times'] + 1
        return {**params, 'head': head}, {**state, 'seen': sweep(brightness), 'times': times}


def experiment(every=3, steps=7):
    return Experiment(
        method=Remembers(every),
        recipe=CropFlip(size=16),
        data=Data(name='made_images', train='train[:40]', validation=None),
        optimizer=AdamW(learning_rate=0.1, scaling='none'),
        batch=8,
        steps=steps,
        evaluation=Evaluation(every=0.0),
        checkpoint=Checkpointing(every=3),
    )


def bits(state):
    raw = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return [np.asarray(raw(leaf)).tobytes() for leaf in jax.tree.leaves(state)]


def run(folder, **fields):
    return train(Session.open(experiment(**fields)), RunFolder.at(str(folder))).state


def test_runs_ahead_of_step_0_and_of_every_third(tmp_path):
    assert int(run(tmp_path / 'six', steps=6).method['times']) == 2
    assert int(run(tmp_path / 'seven', steps=7).method['times']) == 3


def test_sweep_sees_every_training_image_once_in_order():
    session = Session.open(experiment())
    _, refresh = refresher(session)
    seen = np.asarray(refresh(session.fresh()).method['seen'])
    recipe = session.experiment.recipe
    (batch,) = in_order(session.source, recipe, 40, 0.0)
    assert list(batch['index']) == list(range(40))
    wanted = brightness({'encoder': {'w': 1.0}}, {}, recipe.normalize(jnp.asarray(batch['image'])))
    np.testing.assert_allclose(seen, wanted, rtol=1e-4, atol=1e-5)


def test_a_corrupt_image_has_the_features_of_the_one_that_training_shows(tmp_path):
    """So that k-means never sees memory that nobody wrote: 3 and 4 are corrupt, then comes 5."""
    rng = np.random.default_rng(0)
    for i in range(20):
        image = Image.fromarray(rng.integers(0, 256, (20, 20, 3), np.uint8))
        image.save(tmp_path / f'{i:02}.png')
    for i in (3, 4, 19):
        (tmp_path / f'{i:02}.png').write_bytes(b'this is no image')
    data = Data(name=f'folder:{tmp_path}', validation=None, max_corrupt=0.2)
    rows = []
    for devices in (1, 8):
        session = Session.open(dataclasses.replace(experiment(), data=data), devices)
        _, refresh = refresher(session)
        rows.append(np.asarray(refresh(session.fresh()).method['seen']))
    one, eight = rows
    np.testing.assert_array_equal(one[[3, 4, 19]], one[[5, 5, 0]])
    assert np.isfinite(one).all() and len(np.unique(one, axis=0)) == 17
    np.testing.assert_allclose(one, eight, rtol=1e-5)


def test_same_on_one_and_eight_devices():
    one, eight = (Session.open(experiment(), devices) for devices in (1, 8))
    a, b = (refresher(session)[1](session.fresh()) for session in (one, eight))
    np.testing.assert_allclose(a.method['seen'], b.method['seen'], rtol=1e-6)
    assert np.asarray(a.params['head']['b']) == np.asarray(b.params['head']['b'])


@pytest.mark.slow
def test_a_resumed_run_repeats_it_bit_for_bit(tmp_path):
    """Cut at a boundary, where the refresh comes behind the checkpoint, and between two."""
    whole = run(tmp_path / 'whole', steps=7)
    for cut in (3, 5):
        folder = RunFolder.at(str(tmp_path / f'cut{cut}'))
        with pytest.raises(KeyboardInterrupt):
            train(Session.open(experiment()), folder, step=stopping(experiment(), cut))
        assert bits(run(folder.path)) == bits(whole)


def stopping(experiment, at):
    """The step of an experiment, which dies in the midst of a run."""
    session = Session.open(experiment)

    def step(state, batch):
        if int(state.step) == at:
            raise KeyboardInterrupt
        return session.step(state, batch)

    return step


def test_moments_of_what_is_drawn_anew_start_afresh():
    session = Session.open(experiment())
    _, refresh = refresher(session)
    worn = jax.tree.map(lambda leaf: leaf + 1, session.fresh().opt)
    state = dataclasses.replace(session.fresh(), opt=worn)
    fresh = session.fresh().opt
    for path, leaf in jax.tree_util.tree_leaves_with_path(refresh(state).opt):
        old, new = (dict(jax.tree_util.tree_leaves_with_path(t))[path] for t in (worn, fresh))
        assert leaf == (new if 'head' in jax.tree_util.keystr(path) else old), path


def test_restart_finds_parameters_inside_any_wrapping():
    params = {'a': jnp.ones(3), 'head': {'w': jnp.ones(2)}}
    inner = optax.chain(optax.clip_by_global_norm(1.0), optax.trace(0.9), optax.scale_by_adam())
    transform = optax.masked(optax.chain(inner), {'a': True, 'head': {'w': True}})
    worn = jax.tree.map(lambda leaf: leaf + 1, transform.init(params))
    after = restart(transform, worn, params, ['head/w'])
    zeros = [p for p, x in jax.tree_util.tree_leaves_with_path(after) if not np.any(x)]
    assert len(zeros) == 3
    assert all("['head']['w']" in jax.tree_util.keystr(path) for path in zeros)


def test_a_pattern_that_matches_nothing_is_refused():
    params = {'head': {'w': jnp.ones(2)}}
    transform = SGD().build(Session.open(experiment()).run)
    with pytest.raises(ValueError, match='no parameter matches'):
        restart(transform, transform.init(params), params, ['haed'])


def test_a_refresh_without_a_period_is_refused():
    with pytest.raises(ValueError, match='at least 1'):
        refresher(Session.open(experiment(every=0)))


def test_most_methods_have_none():
    session = Session.open(experiment())
    plain = dataclasses.replace(session.experiment, method=Method())
    assert refresher(dataclasses.replace(session, experiment=plain)) is None
