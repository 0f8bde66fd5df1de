"""A run of DeepCluster that dies between two clusterings ends in the bits of one that does not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.methods.deepcluster import DeepCluster
from ssljax.nets.small import SmallResNet
from ssljax.nets.sobel import Sobel
from ssljax.optim import SGD
from ssljax.train.folder import RunFolder
from ssljax.train.loop import train
from ssljax.train.session import Session
from ssljax.views.supervised import CropFlip

# Five steps an epoch: clustered ahead of the steps 0, 3 and 6.
EXPERIMENT = Experiment(
    method=DeepCluster(
        Sobel(SmallResNet(stem_patch=4, widths=(8,), blocks=(1,))),
        clusters=4,
        components=4,
        every=0.6,
    ),
    recipe=CropFlip(size=16),
    data=Data(name='made_images', train='train[:40]', validation=None),
    optimizer=SGD(learning_rate=0.1, scaling='none'),
    batch=8,
    steps=8,
    evaluation=Evaluation(every=0.0),
    checkpoint=Checkpointing(every=2),
)


def bits(state):
    raw = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    named = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(raw(leaf)).tobytes() for path, leaf in named}


@pytest.mark.slow
def test_a_run_cut_between_two_clusterings_ends_in_the_same_bits(tmp_path, monkeypatch):
    clustered, refresh = [], DeepCluster.refresh

    def noted(method, params, state, now, sweep):
        clustered.append(int(now.step))
        return refresh(method, params, state, now, sweep)

    monkeypatch.setattr(DeepCluster, 'refresh', noted)

    def run(name, die_at=None):
        clustered.clear()
        session = Session.open(EXPERIMENT)

        def step(state, batch):
            if int(state.step) == die_at:
                raise KeyboardInterrupt
            return session.step(state, batch)

        return train(session, RunFolder.at(str(tmp_path / name)), step=step).state

    whole = run('whole')
    assert clustered == [0, 3, 6]
    # The clusters are real ones, and not those of the time before.
    assert 0.2 < float(whole.method['agreement']) < 1 and float(whole.method['empty']) < 0.5
    with pytest.raises(KeyboardInterrupt):
        run('cut', die_at=5)
    again = run('cut')
    assert clustered == [6]  # it went on from step 4
    assert bits(again) == bits(whole)
