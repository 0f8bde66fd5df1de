"""The context encoder's own facts: what is seen, what is painted, and who learns from what."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ssljax.core import Now, Run, Signature, with_keys
from ssljax.losses import adversarial, inpainting
from ssljax.methods.context_encoder import ContextEncoder
from ssljax.methods.holes import Blocks, Centre, Region
from ssljax.nets.inpainting import ContextNet, Decoder, Discriminator
from ssljax.nets.small import SmallResNet
from ssljax.optim import SGD, ByPath, Part
from ssljax.train.step import make_init, make_step
from ssljax.views.supervised import CropFlip

RUN = Run(examples=80, batch=8, steps=10, steps_per_epoch=10)
NOW = Now(jnp.asarray(0), jax.random.key(0), RUN)
SIZE = 8
NETS = (SmallResNet(2, None, (6,), (1,)), Decoder((6,)), Discriminator((4, 4)))
GAME = ContextEncoder(*NETS, hole=Blocks(), adversarial_weight=0.25, fill=(0.1, 0.2, 0.3))
ALONE = dataclasses.replace(GAME, adversarial_weight=0.0)
MIDDLE = dataclasses.replace(GAME, hole=Centre(rim=1))


def batch_of(n=8, seed=0):
    image = np.random.default_rng(seed).uniform(-1, 1, size=(n, 1, SIZE, SIZE, 3))
    batch = {'image': jnp.asarray(image), 'index': jnp.arange(n)}
    return with_keys(batch, jax.random.key(1))


def fresh(method):
    """Parameters in which nothing is 0, and the state."""
    return made(method, jax.config.jax_enable_x64)


@functools.cache
def made(method, x64):
    batch = {'image': jnp.zeros((8, 1, SIZE, SIZE, 3))}
    params, state = jax.jit(lambda: method.init(jax.random.key(0), batch, RUN))()
    noise = lambda leaf: leaf + 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)
    return jax.tree.map(noise, params), state


@functools.partial(jax.jit, static_argnums=0)
def forward(method, params, state, batch):
    return method.forward(params, state, batch, jax.random.key(2))[0]


def scalar(method, params, state, batch):
    outputs, _ = method.forward(params, state, batch, jax.random.key(2))
    return method.objective(params, outputs, state, NOW)[0]


def hidden(method, batch):
    """Where the example's images are hidden, from the weights: 1 there."""
    params, state = fresh(method)
    return np.asarray(forward(method, params, state, batch)['weight'] == 1)


def apply(net, params, *inputs):
    """A network in training mode; no stop_gradient, no running statistics."""
    stats = net.init(jax.random.key(0), *inputs, train=False).get('batch_stats', {})
    variables = {'params': params, 'batch_stats': stats}
    return net.apply(variables, *inputs, train=True, mutable=['batch_stats'])[0]


@pytest.mark.slow
def test_each_player_has_the_gradient_of_its_own_loss_alone(x64):
    """Written out once more, each player's loss by itself and the other player fixed."""
    batch = batch_of()
    params, state = fresh(GAME)
    found = jax.jit(jax.grad(lambda p: scalar(GAME, p, state, batch)))(params)

    target = batch['image'][:, 0]
    outputs = forward(GAME, params, state, batch)
    context = jnp.where((outputs['weight'] == 1)[..., None], jnp.asarray(GAME.fill), target)
    judge = lambda p, x: apply(GAME.discriminator, p['discriminator'], x)

    def paint(p):
        h = apply(GAME.encoder, p['encoder'], context)
        return apply(GAME.decoder, p['decoder'], h, (SIZE, 3))

    def of_painter(p):
        painted = paint(p)
        rec = inpainting.region_mse(painted, target, outputs['weight'])
        return 0.75 * rec + 0.25 * adversarial.generator(judge(params, painted))

    def of_judge(p):
        return adversarial.discriminator(judge(p, target), judge(p, outputs['prediction']))

    painter, judges = jax.jit(jax.grad(of_painter))(params), jax.jit(jax.grad(of_judge))(params)
    for name, want in (('encoder', painter), ('decoder', painter), ('discriminator', judges)):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
            found[name],
            want[name],
        )
        assert float(optax.global_norm(found[name])) > 1e-3


@pytest.mark.slow
def test_without_the_constants_each_would_work_for_the_other(x64, monkeypatch):
    batch = batch_of()
    params, state = fresh(GAME)
    slope = lambda: jax.jit(jax.grad(lambda p: scalar(GAME, p, state, batch)))(params)
    found = slope()
    monkeypatch.setattr(jax.lax, 'stop_gradient', lambda x: x)
    leaky = slope()
    for name in params:
        moved = jax.tree.map(jnp.subtract, leaky[name], found[name])
        assert float(optax.global_norm(moved)) > 1e-3, name


def test_the_painter_sees_the_judge_by_its_weight_only(x64):
    batch = batch_of()
    params, state = fresh(GAME)
    grads = {}
    for weight in (0.0, 0.25, 0.5):
        method = dataclasses.replace(GAME, adversarial_weight=weight)
        mine = params if weight else {k: v for k, v in params.items() if k != 'discriminator'}
        stats = {k: v for k, v in state['stats'].items() if k in mine}
        loss = functools.partial(scalar, method, state={'stats': stats}, batch=batch)
        grads[weight] = jax.jit(jax.grad(loss))(mine)
    for name in ('encoder', 'decoder'):
        low, middle, high = (grads[weight][name] for weight in (0.0, 0.25, 0.5))
        jax.tree.map(
            lambda a, b, c: np.testing.assert_allclose((a + c) / 2, b, rtol=1e-9, atol=1e-12),
            low,
            middle,
            high,
        )
    same = jax.tree.map(
        lambda a, b: bool((a == b).all()), *(grads[w]['discriminator'] for w in (0.25, 0.5))
    )
    assert jax.tree.all(same)


def test_without_weight_there_is_no_judge():
    params, state = fresh(ALONE)
    assert set(params) == set(state['stats']) == {'encoder', 'decoder'}
    outputs = forward(ALONE, params, state, batch_of())
    assert set(outputs) == {'prediction', 'target', 'weight'}
    loss, (_, metrics) = ALONE.objective(params, outputs, state, NOW)
    assert float(loss) == float(metrics['reconstruction'])


def test_a_judge_that_cannot_tell_costs_2_ln_2_and_ln_2(x64):
    batch = batch_of()
    params, state = fresh(GAME)
    judge = params['discriminator']
    judge = {**judge, 'logit': jax.tree.map(jnp.zeros_like, judge['logit'])}
    params = {**params, 'discriminator': judge}
    outputs = forward(GAME, params, state, batch)
    loss, (_, metrics) = GAME.objective(params, outputs, state, NOW)
    np.testing.assert_allclose(metrics['discriminator'], 1.386294, atol=5e-7)
    np.testing.assert_allclose(metrics['generator'], 0.693147, atol=5e-7)
    want = 0.75 * metrics['reconstruction'] + 0.25 * np.log(2) + 2 * np.log(2)
    np.testing.assert_allclose(loss, want, rtol=1e-12)


@pytest.mark.parametrize('hole', [Blocks(), Region(cells=4), Centre(rim=1)])
def test_what_is_hidden_is_not_seen(hole):
    method, batch = dataclasses.replace(ALONE, hole=hole), batch_of()
    params, state = fresh(method)
    draw = jax.jit(jax.vmap(lambda k: hole.draw(jax.random.fold_in(k, 0xC0E), SIZE)))
    gone = draw(batch['key'])[:, None, :, :, None]
    seen = forward(method, params, state, batch)
    other = {**batch, 'image': jnp.where(gone, 0.9, batch['image'])}
    np.testing.assert_array_equal(
        seen['prediction'], forward(method, params, state, other)['prediction']
    )
    # And what is not hidden is.
    other = {**batch, 'image': jnp.where(gone, batch['image'], 0.9)}
    moved = forward(method, params, state, other)['prediction'] - seen['prediction']
    assert float(jnp.abs(moved).max()) > 1e-3


def test_the_hole_is_filled_with_its_colour():
    batch = batch_of()
    params, state = fresh(ALONE)
    gone = hidden(ALONE, batch)[:, None, :, :, None]
    filled = {**batch, 'image': jnp.where(gone, jnp.asarray(ALONE.fill), batch['image'])}
    seen = forward(ALONE, params, state, batch)
    np.testing.assert_array_equal(
        seen['prediction'], forward(ALONE, params, state, filled)['prediction']
    )


def test_the_middle_is_painted_and_judged_by_itself():
    batch = batch_of()
    params, state = fresh(MIDDLE)
    outputs = forward(MIDDLE, params, state, batch)
    assert outputs['prediction'].shape == (8, 4, 4, 3)
    np.testing.assert_array_equal(outputs['target'], batch['image'][:, 0, 2:6, 2:6])
    rim = np.full((4, 4), 10.0)
    rim[1:3, 1:3] = 1
    np.testing.assert_array_equal(outputs['weight'], np.tile(rim, (8, 1, 1)))


def test_an_example_keeps_its_hole_in_any_part_of_the_batch():
    batch = batch_of()
    whole = hidden(GAME, batch)
    part = {name: leaf[3::2] for name, leaf in batch.items()}
    np.testing.assert_array_equal(hidden(GAME, part), whole[3::2])
    assert len({one.tobytes() for one in whole}) > 4


def test_the_decoder_may_be_given_maps():
    method = dataclasses.replace(ALONE, layer='stage1', decoder=Decoder((6,)))
    params, state = fresh(method)
    assert params['decoder']['mix']['kernel'].shape == (6, 16, 16)
    assert forward(method, params, state, batch_of())['prediction'].shape == (8, 8, 8, 3)
    with pytest.raises(ValueError, match="layer 'stage9' is not one of stem, stage1, pool"):
        fresh(dataclasses.replace(method, layer='stage9'))


def test_two_optimizers_give_each_player_its_own_step():
    """The whole step: painter and judge move at once, each by its rate, from where both were."""
    plain = lambda rate: SGD(learning_rate=rate, scaling='none', momentum=0.0, decay='constant')
    optimizer = ByPath(plain(0.1), (Part('^discriminator/', plain(0.01)),))
    recipe = CropFlip(size=SIZE, mean=(0.5,), std=(0.5,))
    transform = optimizer.build(RUN)
    raw = {
        'image': jnp.asarray(np.random.default_rng(0).integers(0, 256, (8, 1, 8, 8, 3)), jnp.uint8),
        'index': jnp.arange(8, dtype=jnp.int32),
    }
    before = jax.jit(make_init(GAME, recipe, transform, RUN, 0, raw))()
    step = jax.jit(make_step(GAME, recipe, transform, optimizer.schedule(RUN), RUN))
    after, metrics = step(before, raw)
    keys = jax.random.split(jax.random.fold_in(before.key, 0), 4)
    batch = recipe.on_device(with_keys(raw, keys[0]))
    grads = jax.jit(jax.grad(lambda p: scalar(GAME, p, before.method, batch)))(before.params)
    for name, rate in (('encoder', 0.1), ('decoder', 0.1), ('discriminator', 0.01)):
        want = jax.tree.map(lambda w, g, rate=rate: w - rate * g, before.params[name], grads[name])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
            after.params[name],
            want,
        )
    assert float(metrics['learning_rate']) == pytest.approx(0.1)


def test_says_what_does_not_fit():
    def check(method, views=(1, 8), channels=3):
        method.check(Signature((('image', views),), channels, None, 80), RUN)

    check(GAME)
    cases = (
        (GAME, {'views': (2, 8)}, 'makes 2'),
        (GAME, {'channels': 1}, 'fill has 3 numbers but the images have 1 channel'),
        (dataclasses.replace(GAME, adversarial_weight=1.0), {}, r'must be in \[0, 1\)'),
        (dataclasses.replace(GAME, hole=Centre(rim=2)), {}, 'rim of 2'),
    )
    for method, given, wrong in cases:
        with pytest.raises(ValueError, match=wrong):
            check(method, **given)


def test_the_papers_networks_fit_together():
    batch = {'image': jnp.zeros((2, 1, 128, 128, 3)), 'key': jax.random.split(jax.random.key(0), 2)}
    method = ContextEncoder(ContextNet())

    def run():
        params, state = method.init(jax.random.key(0), batch, RUN)
        return params, method.forward(params, state, batch, jax.random.key(0))[0]

    params, outputs = jax.eval_shape(run)
    assert outputs['prediction'].shape == outputs['target'].shape == (2, 64, 64, 3)
    assert {outputs[name].shape for name in ('real', 'fake', 'fooled')} == {(2,)}
    assert params['decoder']['start']['kernel'].shape == (4000, 4 * 4 * 512)
