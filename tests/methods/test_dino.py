"""DINO's own facts: who sees what, in which order centre and teacher move, how a collapse shows."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import reference
from flax import linen as nn

from ssljax import overrides
from ssljax.core import Now, Run, Signature, with_keys
from ssljax.methods.dino import DINO, Temperature
from ssljax.momentum import Momentum
from ssljax.nets.dino_head import DINOHead
from ssljax.nets.small import SmallResNet
from ssljax.nets.vit import ViT
from ssljax.optim import SGD
from ssljax.train.step import make_init, make_step
from ssljax.views.byol import BYOLViews
from ssljax.views.multicrop import MultiCrop

N, K = 8, 6
RUN = Run(examples=40, batch=N, steps=20, steps_per_epoch=5)
HEAD = DINOHead(widths=(10,), bottleneck=4, prototypes=K)
RECIPE = MultiCrop(
    size=8,
    local_size=4,
    local_count=3,
    jitter=0.0,
    gray=0.0,
    blur=(0.0, 0.0),
    solarize=(0.0, 0.0),
    local_blur=0.0,
)


class Pixels(nn.Module):
    """A network that any size of image fits: the mean colour, multiplied out."""

    @nn.compact
    def __call__(self, x, train):
        return nn.Dense(5)(x.mean(axis=(1, 2)))


METHOD = DINO(Pixels(), HEAD, momentum=Momentum(0.9, 'constant'))


def draw(seed=0, n=N):
    keys = jax.random.split(jax.random.key(seed))
    batch = {
        'image': jax.random.normal(keys[0], (n, 2, 8, 8, 3)),
        'local': jax.random.normal(keys[1], (n, 3, 4, 4, 3)),
        'index': jnp.arange(n),
    }
    return with_keys(batch, jax.random.key(1))


def now(step=0):
    return Now(jnp.asarray(step), jax.random.key(0), RUN)


def fresh(method, batch, apart=0.0):
    """Parameters and state, the teacher so far from the student."""
    params, state = jax.jit(lambda batch: method.init(jax.random.key(0), batch, RUN))(batch)
    move = lambda leaf: leaf + apart * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    return params, {**state, 'target': jax.tree.map(move, state['target'])}


def scores(seed=0, v=5, t=2):
    drawn = np.random.default_rng(seed).normal(size=(N, v + t, K))
    return {'student': jnp.asarray(drawn[:, :v]), 'teacher': jnp.asarray(drawn[:, v:])}


def test_loss_is_the_papers_with_its_temperatures(x64):
    outputs, center = scores(), jnp.linspace(-0.2, 0.2, K)
    method = dataclasses.replace(METHOD, teacher_temperature=Temperature(0.05, 0.05))
    loss, _ = method.objective({}, outputs, {'center': center}, now())
    want = reference.self_distillation(*outputs.values(), center, 0.1, 0.05)
    np.testing.assert_allclose(loss, want, rtol=1e-12)


def test_the_centre_is_an_average_of_raw_scores_and_moves_behind_the_loss(x64):
    center = jnp.linspace(-1, 1, K)
    first, second = scores(0), scores(1)
    loss, (state, _) = METHOD.objective({}, first, {'center': center}, now())
    want = 0.9 * center + 0.1 * np.asarray(first['teacher']).mean(axis=(0, 1))
    np.testing.assert_allclose(state['center'], want, rtol=1e-12)
    before = reference.self_distillation(*first.values(), center, 0.1, 0.04)
    np.testing.assert_allclose(loss, before, rtol=1e-12)
    # The next step is centred by what this one left behind.
    later, (state, _) = METHOD.objective({}, second, state, now(1))
    np.testing.assert_allclose(
        later, reference.self_distillation(*second.values(), want, 0.1, 0.04), rtol=1e-12
    )
    want = 0.9 * want + 0.1 * np.asarray(second['teacher']).mean(axis=(0, 1))
    np.testing.assert_allclose(state['center'], want, rtol=1e-12)


@pytest.mark.parametrize('m', [0.0, 1.0])
def test_the_centres_momentum_has_two_ends(x64, m):
    outputs, center = scores(), jnp.linspace(-1, 1, K)
    method = dataclasses.replace(METHOD, center_momentum=m)
    _, (state, _) = method.objective({}, outputs, {'center': center}, now())
    want = center if m else jnp.mean(outputs['teacher'], axis=(0, 1))
    np.testing.assert_allclose(state['center'], want, rtol=1e-12)


def test_temperature_rises_linearly_and_stays():
    warm = Temperature(0.04, 0.07, 2.0)
    values = [float(warm.at(now(step))) for step in (0, 5, 10, 19)]
    np.testing.assert_allclose(values, [0.04, 0.055, 0.07, 0.07], rtol=1e-6)
    constant = Temperature()
    assert {float(constant.at(now(step))) for step in (0, 7)} == {np.float32(0.04)}
    _, (_, metrics) = dataclasses.replace(METHOD, teacher_temperature=warm).objective(
        {}, scores(), {'center': jnp.zeros(K)}, now(5)
    )
    assert float(metrics['teacher_temperature']) == pytest.approx(0.055)


def test_without_warmup_the_end_holds_from_the_second_step():
    assert float(Temperature(0.04, 0.07, 0.0).at(now(1))) == pytest.approx(0.07)


def test_the_student_sees_all_views_and_the_teacher_the_global_ones():
    batch = draw()
    params, state = fresh(METHOD, batch, apart=0.3)
    outputs, _ = METHOD.forward(params, state, batch, jax.random.key(0))
    assert outputs['student'].shape == (N, 5, K) and outputs['teacher'].shape == (N, 2, K)

    def score(tree, image):
        h = METHOD.encoder.apply({'params': tree['encoder']}, image, train=True)
        return METHOD.head.apply({'params': tree['head']}, h, train=True)

    views = [batch['image'][:, k] for k in range(2)] + [batch['local'][:, k] for k in range(3)]
    for k, image in enumerate(views):
        np.testing.assert_allclose(outputs['student'][:, k], score(params, image), atol=1e-5)
    for k in range(2):
        want = score(state['target'], views[k])
        np.testing.assert_allclose(outputs['teacher'][:, k], want, atol=1e-5)
    other = {**batch, 'local': 2 + batch['local']}
    again, _ = METHOD.forward(params, state, other, jax.random.key(0))
    np.testing.assert_array_equal(again['teacher'], outputs['teacher'])
    assert np.all(np.any(again['student'][:, 2:] != outputs['student'][:, 2:], axis=-1))


def test_two_global_views_alone_will_do():
    batch = {name: leaf for name, leaf in draw().items() if name != 'local'}
    params, state = fresh(METHOD, batch)
    outputs, _ = METHOD.forward(params, state, batch, jax.random.key(0))
    assert outputs['student'].shape == outputs['teacher'].shape == (N, 2, K)


def test_no_gradient_reaches_teacher_or_centre():
    batch = draw()
    params, state = fresh(METHOD, batch, apart=0.3)

    def loss(params, target, center):
        changed = {**state, 'target': target, 'center': center}
        outputs, _ = METHOD.forward(params, changed, batch, jax.random.key(0))
        return METHOD.objective(params, outputs, changed, now())[0]

    student, teacher = jax.grad(loss, (0, 1))(params, state['target'], state['center'])
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(student))
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(teacher))


def test_the_teacher_follows_the_student_that_the_step_gave():
    params, state = fresh(METHOD, draw(), apart=0.3)
    _, after = METHOD.after(params, state, now())
    want = jax.tree.map(lambda t, s: 0.9 * t + 0.1 * s, state['target'], params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after['target'], want)


def test_the_product_is_the_teacher():
    method = dataclasses.replace(METHOD, encoder=SmallResNet(2, None, (6,), (1,)))
    batch = draw()
    params, state = fresh(method, batch, apart=0.3)
    _, stats = method.forward(params, state, batch, jax.random.key(0))
    module, variables = method.product(params, {**state, 'stats': stats})
    assert module == method.encoder
    assert variables['params'] is state['target']['encoder']
    mean = lambda tree: np.asarray(tree['stem_norm']['mean'])
    np.testing.assert_array_equal(mean(variables['batch_stats']), mean(stats['target']['encoder']))
    assert np.any(mean(stats['target']['encoder']) != mean(stats['encoder']))


def test_each_resolution_is_normalised_by_itself_and_both_are_remembered():
    method = dataclasses.replace(METHOD, encoder=SmallResNet(2, None, (6,), (1,)))
    batch = draw()
    params, state = fresh(method, batch)
    outputs, stats = method.forward(params, state, batch, jax.random.key(0))
    louder = {**batch, 'local': 5 * batch['local']}
    again, other = method.forward(params, state, louder, jax.random.key(0))
    np.testing.assert_array_equal(outputs['student'][:, :2], again['student'][:, :2])
    var = lambda tree: np.asarray(tree['encoder']['stem_norm']['var'])
    assert np.all(var(other) > var(stats))
    np.testing.assert_array_equal(var(other['target']), var(stats['target']))


@pytest.mark.slow
def test_stochastic_depth_is_the_students_alone_and_each_view_has_its_own():
    encoder = ViT(width=8, depth=3, heads=2, patch=4, size=8, drop_path=0.6)
    method = dataclasses.replace(METHOD, encoder=encoder)
    batch = draw(n=24)
    same = jnp.broadcast_to(batch['image'][:1, :1], batch['image'].shape)
    params, state = fresh(method, {**batch, 'image': same})
    forward = jax.jit(method.forward)
    one, _ = forward(params, state, {**batch, 'image': same}, jax.random.key(0))
    student, teacher = np.asarray(one['student'][:, :2]), np.asarray(one['teacher'])
    np.testing.assert_allclose(teacher, teacher[:1, :1].repeat(24, 0).repeat(2, 1), atol=1e-5)
    # Of one picture 24 x 2 times over, networks of 6 branches that are each dropped or not.
    assert len(np.unique(student.reshape(-1, K).round(4), axis=0)) > 10
    assert np.mean(np.any(np.abs(student[:, 0] - student[:, 1]) > 1e-4, axis=-1)) > 0.5
    # Whatever the step's key: what belongs to an example is drawn from the example's.
    two, _ = forward(params, state, {**batch, 'image': same}, jax.random.key(9))
    np.testing.assert_array_equal(two['student'], one['student'])


def metrics_of(student, teacher, center=None):
    center = jnp.zeros(K) if center is None else center
    state = {'center': center}
    return METHOD.objective({}, {'student': student, 'teacher': teacher}, state, now())[1][1]


def test_a_collapse_shows_in_the_metrics():
    # Everything to one prototype: no doubt, no difference, one prototype in use.
    one = 10 * jnp.eye(K)[0] * jnp.ones((N, 5, 1))
    metrics = metrics_of(one, one[:, :2])
    for name in ('teacher_entropy', 'usage', 'kl', 'std'):
        assert float(metrics[name]) == pytest.approx(0, abs=1e-5), name
    # Everything uniform: no information.
    metrics = metrics_of(0 * one, 0 * one[:, :2])
    assert float(metrics['teacher_entropy']) == pytest.approx(math.log(K), abs=1e-5)
    assert float(metrics['usage']) == pytest.approx(math.log(K), abs=1e-5)
    assert float(metrics['kl']) == pytest.approx(0, abs=1e-5)
    # Each its own: no doubt, and all prototypes in use.
    own = 10 * jnp.eye(K)[jnp.arange(K)][:, None].repeat(5, axis=1)
    metrics = metrics_of(own, own[:, :2])
    assert float(metrics['teacher_entropy']) == pytest.approx(0, abs=1e-5)
    assert float(metrics['usage']) == pytest.approx(math.log(K), abs=1e-5)
    assert float(metrics['std']) > 0.8


def test_centring_takes_a_constant_preference_away():
    liked = jnp.zeros((N, 5, K)).at[..., 0].set(0.5)
    uncentred, centred = (metrics_of(liked, liked[:, :2], c) for c in (None, liked[0, 0]))
    assert float(uncentred['teacher_entropy']) < 0.01
    assert float(centred['teacher_entropy']) == pytest.approx(math.log(K), abs=1e-5)


def test_the_loss_is_entropy_and_divergence(x64):
    outputs = scores()
    loss, (_, metrics) = METHOD.objective({}, outputs, {'center': jnp.zeros(K)}, now())
    assert 0 < float(metrics['kl']) < float(loss)
    np.testing.assert_allclose(loss, metrics['kl'] + metrics['teacher_entropy'], rtol=1e-12)
    p = np.exp(np.asarray(outputs['teacher']) / 0.04)
    p /= p.sum(axis=-1, keepdims=True)
    entropy = -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=-1).mean()
    np.testing.assert_allclose(metrics['teacher_entropy'], entropy, rtol=1e-10)
    mean = p.mean(axis=(0, 1))
    np.testing.assert_allclose(metrics['usage'], -np.sum(mean * np.log(mean)), rtol=1e-10)


def test_the_last_layer_is_frozen_in_the_first_epoch():
    sgd = SGD(learning_rate=0.1, scaling='none', frozen=(('^head/last/', 1.0),))
    transform = sgd.build(RUN)
    raw = {
        name: jax.random.randint(jax.random.key(0), (N, v, s, s, 3), 0, 256).astype(jnp.uint8)
        for name, (v, s) in RECIPE.views().items()
    } | {'index': jnp.arange(N)}
    state = jax.jit(make_init(METHOD, RECIPE, transform, RUN, 0, raw))()
    step = jax.jit(make_step(METHOD, RECIPE, transform, sgd.schedule(RUN), RUN))
    start = state.params['head']['last']['kernel']
    for number in range(1, 8):
        before = state.params['head']['linear1']['kernel']
        state, _ = step(state, raw)
        assert np.any(state.params['head']['linear1']['kernel'] != before)
        still = np.array_equal(state.params['head']['last']['kernel'], start)
        assert still == (number <= RUN.steps_per_epoch)
        theirs = state.method['target']['head']['last']['kernel']
        assert np.allclose(theirs, start, atol=1e-6) == still


@pytest.mark.parametrize(
    ('views', 'says'),
    [
        ((('image', (1, 8)),), r'1 x image; use MultiCrop'),
        ((('local', (4, 4)),), r'4 x local; use MultiCrop'),
    ],
)
def test_wrong_views_are_refused(views, says):
    with pytest.raises(ValueError, match=says):
        METHOD.check(Signature(views, 3, None, 40), RUN)


def test_views_that_fit_are_taken():
    for recipe in (RECIPE, BYOLViews(size=8), dataclasses.replace(RECIPE, local_count=0)):
        METHOD.check(Signature(tuple(recipe.views().items()), 3, None, 40), RUN)


@pytest.mark.parametrize(
    ('fields', 'says'),
    [
        ({'student_temperature': 0.0}, 'student_temperature is 0.0'),
        ({'center_momentum': 1.5}, 'center_momentum is 1.5'),
    ],
)
def test_bad_numbers_are_refused(fields, says):
    data = Signature(tuple(RECIPE.views().items()), 3, None, 40)
    with pytest.raises(ValueError, match=says):
        dataclasses.replace(METHOD, **fields).check(data, RUN)


@pytest.mark.parametrize('fields', [(0.0, 0.04, 1.0), (0.04, -1.0, 1.0), (0.04, 0.07, -1.0)])
def test_bad_temperatures_are_refused(fields):
    with pytest.raises(ValueError, match='two numbers above 0'):
        Temperature(*fields)


def test_the_default_is_the_papers_vit_s():
    method = DINO()
    batch = {'image': jnp.zeros((2, 2, 224, 224, 3)), 'local': jnp.zeros((2, 8, 96, 96, 3))}
    batch = jax.eval_shape(lambda: with_keys({**batch, 'index': jnp.arange(2)}, jax.random.key(0)))
    init = lambda batch: method.init(jax.random.key(0), batch, RUN)
    params, state = jax.eval_shape(init, batch)
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    assert count(params['encoder']) == 21_665_664
    assert count(params['head']) == 22_286_592
    assert count(state['target']) == 21_665_664 + 22_286_592
    outputs, _ = jax.eval_shape(method.forward, params, state, batch, jax.random.key(0))
    assert outputs['student'].shape == (2, 10, 65_536)
    assert outputs['teacher'].shape == (2, 2, 65_536)
    assert method.encoder.drop_path == 0.1


def test_fields_are_edited_on_the_command_line():
    line = '--teacher-temperature.end 0.07 --teacher-temperature.epochs 30 --head.prototypes 12'
    edited = overrides.apply(DINO(), line.split(), 'ssljax')
    assert edited.teacher_temperature == Temperature(0.04, 0.07, 30.0)
    assert edited.head.prototypes == 12


def learn(method, batch, steps):
    """The metrics of every step on one batch, by Adam."""
    params, state = fresh(method, batch)
    transform = optax.adam(1e-3)

    @jax.jit
    def step(params, state, opt, number):
        def loss(params):
            outputs, stats = method.forward(params, state, batch, jax.random.key(0))
            return method.objective(params, outputs, {**state, 'stats': stats}, now(number))

        (_, (left, metrics)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt = transform.update(grads, opt)
        return *method.after(optax.apply_updates(params, updates), left, now(number)), opt, metrics

    opt, seen = transform.init(params), []
    for number in range(steps):
        params, state, opt, metrics = step(params, state, opt, number)
        seen.append({name: float(value) for name, value in metrics.items()})
    return seen


@pytest.mark.slow
def test_one_batch_is_learned_by_a_slow_teacher_and_collapses_with_a_fast_one():
    batch = draw(n=16)
    one = batch['image'][:, :1]
    batch['local'] = one[:, :, 2:6, 2:6] + 0.1 * batch['local']
    batch['image'] = one + 0.1 * batch['image'][:, ::-1]
    slow = dataclasses.replace(
        METHOD,
        encoder=SmallResNet(2, None, (16,), (1,)),
        head=DINOHead((32,), 16, 32),
        momentum=Momentum(0.99, 'constant'),
    )
    seen = learn(slow, batch, 100)
    assert seen[0]['std'] < 0.3 and seen[-1]['std'] > 0.7
    assert seen[-1]['kl'] < 0.2 * max(s['kl'] for s in seen)
    # What the assignments tell about the images: as much as 2 kinds of them or more.
    assert seen[-1]['usage'] - seen[-1]['teacher_entropy'] > math.log(2)
    # A teacher as fast as its centre runs away from it, the student behind: all images alike.
    fast = learn(dataclasses.replace(slow, momentum=Momentum(0.5, 'constant')), batch, 100)
    assert fast[-1]['std'] < 0.1
    assert fast[-1]['usage'] - fast[-1]['teacher_entropy'] < 0.1
