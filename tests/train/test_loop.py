"""The loop: what it writes, when it measures, what it compiles."""

import dataclasses
import pathlib
import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.commands.train import flops, peak
from ssljax.data.pipeline import batches
from ssljax.evaluate.monitor import monitor
from ssljax.experiment import Checkpointing, Data, Evaluation, Experiment
from ssljax.methods.simclr import SimCLR
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import LARS
from ssljax.train import digest, loop, metrics
from ssljax.train import folder as folders
from ssljax.train.folder import RunFolder
from ssljax.train.initial import load_state
from ssljax.train.interrupt import Interrupt
from ssljax.train.loop import train
from ssljax.train.profile import TRACED, WARM, Profile
from ssljax.train.session import Session
from ssljax.views.simclr import SimCLRViews

EXPERIMENT = Experiment(
    method=SimCLR(
        SmallResNet(stem_patch=4, widths=(8,), blocks=(1,)), ProjectionHead(widths=(16, 8))
    ),
    recipe=SimCLRViews(size=16, blur=0.0),
    data=Data(name='made_images', train='train[:96]', validation='validation'),
    optimizer=LARS(learning_rate=0.3, warmup_epochs=1.0),
    batch=32,
    steps=12,
    evaluation=Evaluation(every=2.0, batch=20, bank=50, k=3),
    checkpoint=Checkpointing(every=5),
    log_every=4,
)


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    folder = RunFolder.at(str(tmp_path_factory.mktemp('run')))
    session = Session.open(EXPERIMENT)
    outcome = train(session, folder, monitor(session))
    return session, folder, outcome


def test_runs_to_its_end_with_one_compilation(finished):
    session, _, outcome = finished
    assert outcome.finished and outcome.step == 12 == int(outcome.state.step)
    assert session.step.traces == 1


def test_a_step_is_dispatched_before_that_ahead_of_it_is_read(finished, tmp_path):
    """The loop never waits for the step that it has just handed to the device."""
    session, events = finished[0], []

    class Loss:
        def __init__(self, value, step):
            self.value, self.step = value, step

        def __array__(self, *args, **kwargs):
            events.append(('read', self.step))
            return np.asarray(self.value)

    def step(state, batch):
        state, arrays = session.step(state, batch)
        taken = sum(event == 'take' for event, _ in events) + 1
        events.append(('take', taken))
        return state, {**arrays, 'loss': Loss(arrays['loss'], taken)}

    train(session, RunFolder.at(str(tmp_path)), step=step)
    read = [step for event, step in events if event == 'read']
    assert read == list(range(1, 13))
    settled = (5, 10, 12)  # what is saved is read first
    for step in set(read) - set(settled):
        assert events.index(('take', step + 1)) < events.index(('read', step))


def test_lines_come_when_they_should(finished):
    _, folder, _ = finished
    records = metrics.read(folder.path)
    assert [r['step'] for r in records if 'loss' in r] == [4, 8, 12]
    assert [r['step'] for r in records if 'validation' in r] == [6, 12]
    assert records[0]['epoch'] == pytest.approx(4 / 3)
    # The rate at step 4 (the fourth update) of a warmup of 3 steps: past its top.
    schedule = EXPERIMENT.optimizer.schedule(finished[0].run)
    assert records[0]['learning_rate'] == pytest.approx(float(schedule(3)))
    for name in ('knn_top1', 'knn_top5', 'linear_top1', 'linear_top5', 'effective_rank'):
        assert name in records[-1]['validation']


def test_the_last_checkpoint_is_the_outcome_and_needs_no_data(finished):
    _, folder, outcome = finished
    _, state = load_state(folder)
    for a, b in zip(
        jax.tree.leaves(outcome.state.params), jax.tree.leaves(state.params), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_another_number_of_devices_gives_the_same_loss(tmp_path):
    short = dataclasses.replace(EXPERIMENT, steps=4, log_every=1)
    losses = {}
    for devices in (1, 8):
        folder = RunFolder.at(str(tmp_path / str(devices)))
        train(Session.open(short, devices), folder)
        losses[devices] = [r['loss'] for r in metrics.read(folder.path)]
    np.testing.assert_allclose(losses[1], losses[8], rtol=1e-4)


def test_two_hosts_with_half_of_the_rows_each_see_what_one_host_sees():
    session = Session.open(EXPERIMENT, 8)
    whole = session.stream()
    halves = [dataclasses.replace(whole, rows=rows) for rows in np.split(whole.rows, 2)]
    streams = [
        batches(session.source, EXPERIMENT.recipe, plan, start=2, stop=5)  # over an epoch's end
        for plan in (whole, *halves)
    ]
    seen = 0
    for all_rows, upper, lower in zip(*streams, strict=True):
        assert len(set(all_rows['index'])) == EXPERIMENT.batch
        for name in all_rows:
            assert len(upper[name]) == len(lower[name]) == EXPERIMENT.batch // 2
            np.testing.assert_array_equal(
                np.concatenate([upper[name], lower[name]]), all_rows[name]
            )
        seen += 1
    assert seen == 3


@pytest.mark.slow
def test_resume_on_other_devices_goes_on_with_the_same_numbers(tmp_path, monkeypatch, capsys):
    whole, parts = (RunFolder.at(str(tmp_path / name)) for name in ('whole', 'parts'))
    experiment = dataclasses.replace(EXPERIMENT, steps=8, log_every=1)
    train(Session.open(experiment, 1), whole)
    session = Session.open(experiment, 1)

    def stop_at_5(state, batch):
        if int(state.step) == 5:
            raise KeyboardInterrupt
        return session.step(state, batch)

    with pytest.raises(KeyboardInterrupt):
        train(session, parts, step=stop_at_5)
    monkeypatch.setattr(folders, 'commit', lambda: 'another')
    train(Session.open(experiment, 8), parts)
    assert 'from step 5 on with commit another (' in capsys.readouterr().out
    losses = [[r['loss'] for r in metrics.read(f.path)] for f in (whole, parts)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.slow
def test_bfloat16_follows_float32(tmp_path):
    curves = {}
    for dtype in ('float32', 'bfloat16'):
        encoder = dataclasses.replace(EXPERIMENT.method.encoder, dtype=dtype)
        method = dataclasses.replace(EXPERIMENT.method, encoder=encoder)
        experiment = dataclasses.replace(EXPERIMENT, method=method, log_every=1)
        session = Session.open(experiment, 1)
        outcome = train(session, RunFolder.at(str(tmp_path / dtype)))
        leaves = jax.tree.leaves((outcome.state.params, outcome.state.method))
        assert all(leaf.dtype == jnp.float32 for leaf in leaves)
        curves[dtype] = [r['loss'] for r in metrics.read(tmp_path / dtype)]
    assert curves['bfloat16'] != curves['float32']
    np.testing.assert_allclose(curves['bfloat16'], curves['float32'], rtol=0.03)


def bits(state):
    raw = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return [np.asarray(raw(leaf)).tobytes() for leaf in jax.tree.leaves(state)]


def scores(folder):
    """Scores of the checkpoints by their step, whatever their folders are called."""
    found = [digest.read(path.parent) for path in folder.checkpoints.glob('*/DIGEST')]
    return {record['step']: record['score'] for record in found}


def stopped(session, folder, measure, at):
    """A run that is told to stop while it takes a step."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Interrupt, 'reached', lambda self, step: step == at)
        return train(session, folder, measure)


@pytest.fixture
def measured(finished):
    """What measures the session's states, and the steps of the states it was given."""
    steps, measure = [], monitor(finished[0])
    return lambda state: steps.append(int(state.step)) or measure(state), steps


@pytest.mark.slow
@pytest.mark.parametrize('at', [6, 12])
def test_told_to_stop_it_saves_without_the_evaluation_that_is_due_and_makes_up_for_it(
    finished, measured, tmp_path, monkeypatch, at
):
    (session, whole, wanted), (measure, steps) = finished, measured
    folder = RunFolder.at(str(tmp_path))
    # By this clock an evaluation of the run that goes on takes its time and nothing else does.
    clock = lambda: 100.0 * (len(steps) - len(before))
    before = [step for step in (6, 12) if step < at]
    monkeypatch.setattr(loop, 'time', types.SimpleNamespace(monotonic=clock))
    outcome = stopped(session, folder, measure, at)
    assert outcome.step == at and not outcome.finished
    assert at in scores(folder) and scores(folder)[at] is None
    assert steps == before
    outcome = train(session, folder, measure)
    assert outcome.finished and steps == [6, 12]
    assert bits(outcome.state) == bits(wanted.state)
    lines = [metrics.without_clock(metrics.read(f.path)) for f in (whole, folder)]
    assert lines[0] == lines[1]
    assert scores(folder) == scores(whole) and scores(whole)[12] is not None
    after = [r for r in metrics.read(folder.path) if r['step'] > at and 'loss' in r]
    assert all(r['clock']['seconds'] == 0.0 for r in after)  # it began behind what it made up for


def test_images_per_second_are_of_the_steps_since_the_line_before(finished, tmp_path, monkeypatch):
    session, now = finished[0], [0.0]
    monkeypatch.setattr(loop, 'time', types.SimpleNamespace(monotonic=lambda: now[0]))

    def step(*arguments):
        now[0] += 2.0 if now[0] else 500.0  # the first is compiled
        return session.step(*arguments)

    def measure(state):
        now[0] += 1_000.0
        return {'knn_top1': 0.5}

    folder = RunFolder.at(str(tmp_path))
    train(session, folder, measure, step)
    lines = [line for line in metrics.read(folder.path) if 'loss' in line]
    rates = [line['clock']['images/s'] for line in lines]
    assert len(rates) > 2 and rates[0] < 1.0 * session.run.batch
    assert rates[1:] == pytest.approx([session.run.batch / 2.0] * len(rates[1:]))
    assert {line['clock']['from'] for line in lines} == {0}


@pytest.mark.slow
def test_killed_before_the_score_is_saved_it_has_the_evaluation_once(finished, measured, tmp_path):
    (session, whole, wanted), (measure, steps) = finished, measured
    folder = RunFolder.at(str(tmp_path / 'run'))
    stopped(session, folder, measure, 6)
    shutil.copytree(folder.checkpoints, tmp_path / 'unscored')

    def killed(state, batch):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(session, folder, measure, killed)
    shutil.rmtree(folder.checkpoints)
    shutil.copytree(tmp_path / 'unscored', folder.checkpoints)
    outcome = train(session, folder, measure)
    assert steps == [6, 6, 12] and bits(outcome.state) == bits(wanted.state)
    lines = [metrics.without_clock(metrics.read(f.path)) for f in (whole, folder)]
    assert lines[0] == lines[1] and scores(folder) == scores(whole)


@pytest.mark.slow
def test_profile_measures_and_leaves_a_trace(tmp_path):
    session = Session.open(EXPERIMENT, 1)
    folder = RunFolder.at(str(tmp_path / 'run'))
    profile = Profile(session, folder, flops, peak)
    assert EXPERIMENT.steps >= WARM + TRACED
    train(session, folder, step=profile)
    said = profile.summary()
    assert 'GFLOP/s of a matrix product' in said and '%' in said
    assert list(pathlib.Path(profile.folder).rglob('*.xplane.pb'))


@pytest.mark.slow
def test_profile_counts_every_micro_batch(tmp_path):
    """Gradient caching computes the forward pass a second time: 4/3 of the plain step."""
    found = {}
    for parts in (1, 8):
        session = Session.open(dataclasses.replace(EXPERIMENT, microbatches=parts), 1)
        profile = Profile(session, RunFolder.at(str(tmp_path)), flops, peak)
        (batch,) = batches(session.source, EXPERIMENT.recipe, session.stream(), start=0, stop=1)
        profile(session.fresh(), session.placement.put(batch))
        found[parts] = profile.flops
    assert 1.0 < found[8] / found[1] < 1.6
