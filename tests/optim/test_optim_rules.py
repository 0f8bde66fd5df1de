import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.core import Run
from ssljax.optim import LARS, SGD, AdamW
from ssljax.optim.lars import LARSState
from ssljax.optim.paths import BIASES_AND_NORMS, matches, paths

RUN = Run(examples=256 * 4, batch=256, steps=12, steps_per_epoch=4)
STEPS = 6


def some_params(seed=0):
    draw = np.random.default_rng(seed).normal
    return {
        'encoder': {
            'conv': {'kernel': draw(size=(3, 3, 2, 8)), 'bias': draw(size=8)},
            'norm': {'scale': draw(size=8), 'bias': draw(size=8)},
        },
        'head': {'kernel': draw(size=(8, 16))},
    }


EXCLUDED = {'encoder/conv/bias', 'encoder/norm/scale', 'encoder/norm/bias'}
GRADS = [some_params(seed) for seed in range(1, STEPS + 1)]


def flat(tree):
    return dict(zip(paths(tree), map(np.asarray, jax.tree.leaves(tree)), strict=True))


def trajectory(transform, params, grads):
    """Parameters after every step, each as {path: array}."""
    params = jax.tree.map(jnp.asarray, params)
    state, seen = transform.init(params), []

    @jax.jit
    def step(params, state, grad):
        updates, state = transform.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    for grad in grads:
        params, state = step(params, state, jax.tree.map(jnp.asarray, grad))
        seen.append(flat(params))
    return seen


def rate(t, peak, warmup=4, total=12):
    if t < warmup:
        return peak * t / warmup
    return peak * 0.5 * (1 + np.cos(np.pi * (t - warmup) / (total - warmup)))


def twin(step, state, grads=GRADS):
    """The same in NumPy: `step(t, path, w, g, memory) -> (w, memory)`, one parameter at a time."""
    params, memory, seen = flat(some_params()), {}, []
    for t, grad in enumerate(grads):
        for path, g in flat(grad).items():
            held = memory.get(path, state)
            params[path], memory[path] = step(t, path, params[path], g, held)
        seen.append(dict(params))
    return seen


def lars_step(t, path, w, g, m, *, form):
    eta, wd = 0.001, 0.1
    if path not in EXCLUDED:
        g = g + wd * w
        g = g * eta * np.sqrt((w**2).sum()) / np.sqrt((g**2).sum())
    if form == 'C':
        m = 0.9 * m + rate(t, 0.3) * g
        return w - m, m
    m = 0.9 * m + g
    return w - rate(t, 0.3) * m, m


def adamw_step(t, path, w, g, memory):
    m, v = memory
    m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
    adam = m / (1 - 0.9 ** (t + 1)) / (np.sqrt(v / (1 - 0.95 ** (t + 1))) + 1e-6)
    wd = 0.0 if path in EXCLUDED else 0.2
    return w - rate(t, 0.01) * (adam + wd * w), (m, v)


def sgd_step(t, path, w, g, m, *, nesterov):
    g = g + 0.2 * w
    m = 0.9 * m + g
    return w - rate(t, 0.1) * (g + 0.9 * m if nesterov else m), m


_ADAMW = AdamW(
    learning_rate=0.01, weight_decay=0.2, betas=(0.9, 0.95), epsilon=1e-6, warmup_epochs=1.0
)
_SGD = functools.partial(SGD, learning_rate=0.1, weight_decay=0.2, warmup_epochs=1.0)
_LARS = functools.partial(LARS, learning_rate=0.3, weight_decay=0.1, warmup_epochs=1.0)
ALL = {
    'lars C': _LARS(form='C'),
    'lars P': _LARS(form='P'),
    'adamw': _ADAMW,
    'sgd': _SGD(),
    'sgd nesterov': _SGD(nesterov=True),
}
TWINS = {
    'lars C': (functools.partial(lars_step, form='C'), 0.0),
    'lars P': (functools.partial(lars_step, form='P'), 0.0),
    'adamw': (adamw_step, (0.0, 0.0)),
    'sgd': (functools.partial(sgd_step, nesterov=False), 0.0),
    'sgd nesterov': (functools.partial(sgd_step, nesterov=True), 0.0),
}


def assert_same(ours, expected, rtol=1e-12):
    for step, (a, b) in enumerate(zip(ours, expected, strict=True)):
        for path in b:
            np.testing.assert_allclose(
                a[path], b[path], rtol=rtol, atol=rtol, err_msg=f'{path} after step {step}'
            )


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('name', ALL)
def test_equals_its_twin_in_numpy(name):
    ours = trajectory(ALL[name].build(RUN), some_params(), GRADS)
    assert_same(ours, twin(*TWINS[name]))


def _optax_twin(name):
    schedule = ALL[name].schedule(RUN)
    if name == 'adamw':
        return optax.adamw(
            schedule,
            b1=0.9,
            b2=0.95,
            eps=1e-6,
            weight_decay=0.2,
            mask=lambda params: jax.tree.map(lambda w: w.ndim > 1, params),
        )
    if name == 'lars C':
        mask = jax.tree.map(lambda w: w.ndim > 1, some_params())
        return optax.lars(schedule, 0.1, mask, trust_ratio_mask=mask)
    return optax.chain(
        optax.add_decayed_weights(0.2), optax.sgd(schedule, 0.9, nesterov='nesterov' in name)
    )


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('name', ['lars C', 'adamw', 'sgd', 'sgd nesterov'])
def test_equals_optax(name):
    ours = trajectory(ALL[name].build(RUN), some_params(), GRADS)
    assert_same(ours, trajectory(_optax_twin(name), some_params(), GRADS))


@pytest.mark.parametrize('name', ALL)
def test_a_rate_of_zero_changes_nothing(name):
    # The first step of a warmup: exactly 0.
    before = flat(jax.tree.map(jnp.asarray, some_params()))
    [after] = trajectory(ALL[name].build(RUN), some_params(), GRADS[:1])
    for path in before:
        np.testing.assert_array_equal(after[path], before[path])


@pytest.mark.usefixtures('x64')
def test_forms_of_lars_agree_exactly_when_the_rate_is_constant():
    c, p = (
        trajectory(_LARS(form=form, decay='constant', warmup_epochs=0.0).build(RUN), p0, GRADS)
        for form, p0 in (('C', some_params()), ('P', some_params()))
    )
    assert_same(c, p)
    c = trajectory(_LARS(form='C').build(RUN), some_params(), GRADS)
    p = trajectory(_LARS(form='P').build(RUN), some_params(), GRADS)
    assert not np.allclose(c[-1]['head/kernel'], p[-1]['head/kernel'], rtol=1e-6)


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('form', ['C', 'P'])
def test_lars_without_decay_ignores_the_scale_of_gradients_where_it_adapts(form):
    transform = _LARS(form=form, weight_decay=0.0).build(RUN)
    scaled = [jax.tree.map(lambda g: 1000 * g, grads) for grads in GRADS]
    one = trajectory(transform, some_params(), GRADS)[-1]
    other = trajectory(transform, some_params(), scaled)[-1]
    for path in one:
        same = np.allclose(one[path], other[path], rtol=1e-12)
        assert same == (path not in EXCLUDED), path


@pytest.mark.usefixtures('x64')
def test_parameters_excluded_from_lars_follow_plain_sgd_with_momentum():
    lars = trajectory(_LARS(form='P').build(RUN), some_params(), GRADS)[-1]
    sgd = SGD(learning_rate=0.3, warmup_epochs=1.0)
    sgd = trajectory(sgd.build(RUN), some_params(), GRADS)[-1]
    for path in sgd:
        assert np.allclose(lars[path], sgd[path], rtol=1e-12) == (path in EXCLUDED), path


@pytest.mark.parametrize('form', ['C', 'P'])
def test_a_weight_or_gradient_of_norm_zero_takes_ratio_one(form):
    lars = _LARS(form=form, weight_decay=0.0, decay='constant', warmup_epochs=0.0)
    params = {'a': {'kernel': np.zeros((2, 3))}, 'b': {'kernel': np.ones((2, 3))}}
    grads = {'a': {'kernel': np.full((2, 3), 0.5)}, 'b': {'kernel': np.zeros((2, 3))}}
    [after] = trajectory(lars.build(RUN), params, [grads])
    np.testing.assert_allclose(after['a/kernel'], -0.3 * 0.5, rtol=1e-6)
    np.testing.assert_array_equal(after['b/kernel'], 1)


def test_exclusion_is_by_path():
    found = {path for path, hit in flat(matches([BIASES_AND_NORMS], some_params())).items() if hit}
    assert found == EXCLUDED
    names = {'bias_net': {'kernel': 0}, 'rescale': 0, 'scale': 0, 'stem': {'bias': 0}}
    found = {path for path, hit in flat(matches([BIASES_AND_NORMS], names)).items() if hit}
    assert found == {'scale', 'stem/bias'}
    found = {path for path, hit in flat(matches(['^head/', 'norm'], some_params())).items() if hit}
    assert found == {'head/kernel', 'encoder/norm/scale', 'encoder/norm/bias'}


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('make', [_LARS, AdamW, SGD])
def test_excluded_parameters_do_not_decay(make):
    settings = {'warmup_epochs': 0.0, 'exclude': ('^head',), 'learning_rate': 0.1}
    transform = make(weight_decay=0.5, **settings).build(RUN)
    zeros = [jax.tree.map(np.zeros_like, some_params())]
    [after] = trajectory(transform, some_params(), zeros)
    before = flat(some_params())
    for path in before:
        shrunk = np.all(np.abs(after[path]) < np.abs(before[path]))
        assert shrunk == (path != 'head/kernel'), path
        if path == 'head/kernel':
            np.testing.assert_array_equal(after[path], before[path])


def _clipped(grads, **limits):
    """What reaches the rule: plain SGD at rate 1 from zero moves by minus the clipped gradient."""
    sgd = SGD(learning_rate=1.0, scaling='none', momentum=0.0, decay='constant', **limits)
    zeros = jax.tree.map(np.zeros_like, grads)
    [after] = trajectory(sgd.build(RUN), zeros, [grads])
    return {path: -g for path, g in after.items()}


def _norm(arrays):
    return np.sqrt(sum((np.asarray(a) ** 2).sum() for a in arrays))


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('scale', [1e-3, 1.0, 1e3])
def test_clipping_by_the_global_norm_shortens_and_never_turns(scale):
    grads = jax.tree.map(lambda g: scale * g, GRADS[0])
    before, after = flat(grads), _clipped(grads, clip_global=2.0)
    shorter = min(1.0, 2.0 / _norm(before.values()))
    assert_same([after], [{path: shorter * g for path, g in before.items()}])
    np.testing.assert_allclose(_norm(after.values()), min(2.0, _norm(before.values())))


@pytest.mark.usefixtures('x64')
def test_clipping_by_tensor_shortens_only_the_long_ones():
    grads = {'long': np.full(4, 3.0), 'short': np.full(4, 0.1), 'zero': np.zeros(4)}
    after = _clipped(grads, clip_tensor=1.5)
    np.testing.assert_allclose(after['long'], 0.75)
    np.testing.assert_array_equal(after['short'], grads['short'])
    np.testing.assert_array_equal(after['zero'], 0)


@pytest.mark.usefixtures('x64')
def test_both_clips_hold_together_tensors_first():
    grads = {'long': np.full(4, 3.0), 'short': np.full(4, 0.5)}
    after = _clipped(grads, clip_tensor=2.0, clip_global=1.0)
    # Norms 6 and 1 become 2 and 1, then both are divided by their common norm, sqrt(5).
    np.testing.assert_allclose(after['long'], 1.0 / np.sqrt(5))
    np.testing.assert_allclose(after['short'], 0.5 / np.sqrt(5))


@pytest.mark.usefixtures('x64')
@pytest.mark.parametrize('name', ALL)
def test_sharded_parameters_move_as_whole_ones(name, mesh8):
    def place(array):
        split = PartitionSpec(*(('data' if n == 8 else None) for n in array.shape))
        return jax.device_put(jnp.asarray(array), NamedSharding(mesh8, split))

    optimizer = ALL[name]
    transform = type(optimizer)(
        **{**vars(optimizer), 'clip_global': 2.0, 'clip_tensor': 1.5}
    ).build(RUN)
    with jax.set_mesh(mesh8):
        params = jax.tree.map(place, some_params())
        assert len(params['head']['kernel'].addressable_shards[0].data) == 1
        sharded = trajectory(transform, params, [jax.tree.map(place, g) for g in GRADS])
    assert_same(sharded, trajectory(transform, some_params(), GRADS), rtol=1e-10)


def test_norms_of_sharded_parameters_are_sums_and_gather_nothing(mesh8):
    sharding = NamedSharding(mesh8, PartitionSpec(None, 'data'))
    params = {'kernel': jax.device_put(jnp.ones((16, 8)), sharding)}
    transform = LARS(warmup_epochs=0.0, clip_global=1.0, clip_tensor=1.0).build(RUN)
    state = jax.jit(transform.init)(params)
    compiled = jax.jit(transform.update).lower(params, state, params).compile().as_text()
    assert 'all-reduce' in compiled
    assert not re.search('all-gather|all-to-all|collective-permute', compiled)


@pytest.mark.parametrize('name', ALL)
def test_the_state_is_arrays_of_steady_shapes_and_types(name):
    transform = ALL[name].build(RUN)
    params = jax.tree.map(jnp.float32, some_params())
    params['head']['kernel'] = params['head']['kernel'].astype(jnp.bfloat16)
    state = jax.eval_shape(transform.init, params)
    updates, after = jax.eval_shape(transform.update, params, state, params)
    assert jax.tree.map(jnp.result_type, after) == jax.tree.map(jnp.result_type, state)
    assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state)
    assert jax.tree.map(jnp.result_type, updates) == jax.tree.map(jnp.result_type, params)


def test_lars_keeps_one_momentum_per_parameter():
    params = jax.tree.map(jnp.asarray, some_params())
    [state] = LARS(warmup_epochs=0.0).build(RUN).init(params)
    assert isinstance(state, LARSState)
    assert jax.tree.structure(state.momentum) == jax.tree.structure(params)
