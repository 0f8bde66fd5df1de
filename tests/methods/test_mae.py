"""MAE: its masks, what the encoder may see, and that the decoder knows what is where."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.core import Now, Run, Signature
from ssljax.methods.mae import MAE, orders
from ssljax.nets.mae_decoder import MAEDecoder
from ssljax.nets.patches import patchify, unpatchify
from ssljax.nets.positions import sincos
from ssljax.nets.vit import ViT, vit

RUN = Run(examples=160, batch=16, steps=20, steps_per_epoch=10)
SMALL = MAE(ViT(16, 2, 2, patch=4, position='sincos', initial='xavier'), MAEDecoder(16, 2, 2))


def batch(n=6, size=24, seed=0):
    image = jax.random.normal(jax.random.key(seed), (n, 1, size, size, 3), jnp.float32)
    return {'image': image, 'key': jax.random.split(jax.random.key(seed + 1), n)}


def fresh(method, given):
    params, state = jax.jit(lambda b: method.init(jax.random.key(0), b, RUN))(given)
    # Far from zero, so that what is seen shows.
    noise = lambda leaf: 0.2 * jax.random.normal(jax.random.key(leaf.size), leaf.shape, leaf.dtype)
    return jax.tree.map(lambda leaf: leaf + noise(leaf), params), state


def forward(method, params, given):
    return jax.jit(lambda b: method.forward(params, {'stats': {}}, b, jax.random.key(9))[0])(given)


def hidden_pixels(mask, patch, size):
    """The mask of patches as one of pixels, [n, 1, h, w, 1]."""
    values = jnp.repeat(mask[:, :, None].astype(jnp.float32), patch**2, axis=2)
    side = size // patch
    return unpatchify(values, (side, side), patch)[:, None] > 0


@pytest.mark.parametrize(
    ('encoder', 'parts', 'total'),
    [
        (vit('S', 16, heads=6), (21_665_664, 25_912_576), 47_401_728),
        (vit('B', 16), (85_798_656, 26_109_184), 111_655_680),
        (vit('L', 16), (303_301_632, 26_240_256), 329_239_296),
        (vit('H', 14), (630_764_800, 26_309_708), 656_613_964),
    ],
    ids='SBLH',
)
def test_has_the_published_number_of_parameters(encoder, parts, total):
    method = MAE(encoder.clone(position='sincos'))
    given = {'image': jnp.zeros((1, 1, 224, 224, 3))}
    params, _ = jax.eval_shape(lambda: method.init(jax.random.key(0), given, RUN))
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    fixed = (224 // encoder.patch) ** 2 + 1  # rows of the tables that are computed here
    assert count(params['encoder']) == parts[0] - fixed * encoder.width
    assert count(params['decoder']) == parts[1] - fixed * 512
    assert count(params) == total


@pytest.mark.parametrize(
    ('masked', 'patches', 'kept'),
    [(0.75, 196, 49), (0.75, 49, 12), (0.9, 100, 10), (0.9, 196, 19), (0.6, 10, 4), (0.5, 7, 3)],
)
def test_as_many_patches_are_left_as_the_paper_leaves(masked, patches, kept):
    assert dataclasses.replace(SMALL, masked=masked).kept(patches) == kept


def test_every_image_has_a_mask_of_its_own_of_exactly_that_size():
    given = batch(64)
    outputs = forward(SMALL, fresh(SMALL, given)[0], given)
    mask = np.asarray(outputs['mask'])
    assert mask.shape == (64, 36) and np.array_equal(mask.sum(1), np.full(64, 27))
    assert len({row.tobytes() for row in mask}) == 64
    part = jax.tree.map(lambda leaf: leaf[10:14], given)
    assert np.array_equal(forward(SMALL, fresh(SMALL, given)[0], part)['mask'], mask[10:14])


def test_every_patch_is_as_likely_to_come_first_and_last():
    order = np.asarray(orders(jax.random.split(jax.random.key(0), 20_000), 8))
    assert np.array_equal(np.sort(order, axis=1), np.tile(np.arange(8), (20_000, 1)))
    shares = np.stack([(order == patch).mean(0) for patch in range(8)])
    np.testing.assert_allclose(shares, 1 / 8, atol=0.01)


def test_the_order_is_the_same_in_every_precision(x64):
    keys = jax.random.split(jax.random.key(0), 50)
    double = np.asarray(orders(keys, 16))
    with jax.enable_x64(False):
        assert np.array_equal(orders(keys, 16), double)


def test_targets_are_the_patches_of_the_image():
    given = batch()
    outputs = forward(SMALL, fresh(SMALL, given)[0], given)
    assert np.array_equal(outputs['target'], patchify(given['image'][:, 0], 4))
    assert outputs['prediction'].shape == outputs['target'].shape


def test_predictions_depend_on_what_is_left_and_not_on_what_is_hidden():
    given = batch()
    params, _ = fresh(SMALL, given)
    outputs = forward(SMALL, params, given)
    hidden, noise = hidden_pixels(outputs['mask'], 4, 24), batch(seed=5)['image']
    swap = lambda where: {**given, 'image': jnp.where(where, noise, given['image'])}
    other = forward(SMALL, params, swap(hidden))
    assert np.array_equal(other['prediction'], outputs['prediction'])
    assert not np.array_equal(other['target'], outputs['target'])
    third = forward(SMALL, params, swap(~hidden))
    change = jnp.abs(third['prediction'] - outputs['prediction']).max((1, 2))
    assert float(change.min()) > 1e-3


def test_nothing_but_hidden_patches_is_asked_for():
    given = batch()
    params, state = fresh(SMALL, given)
    outputs = forward(SMALL, params, given)
    now = Now(jnp.asarray(0), jax.random.key(3), RUN)
    loss = lambda prediction: SMALL.objective(
        params, {**outputs, 'prediction': prediction}, state, now
    )[0]
    slope = np.asarray(jax.grad(loss)(outputs['prediction']))
    asked = np.any(slope != 0, axis=-1)
    assert np.array_equal(asked, outputs['mask'])


def test_the_decoder_puts_each_feature_where_its_patch_was():
    """A token of its own for each patch seen, and no blocks between: only its own place sees it."""
    decoder = MAEDecoder(16, 1, 2)
    order = jnp.asarray([[3, 0, 5, 1, 2, 4], [1, 4, 0, 5, 3, 2]])
    rank = jnp.argsort(order, axis=1)
    tokens = jax.random.normal(jax.random.key(0), (2, 2, 8))
    params = decoder.init(jax.random.key(1), {'tokens': tokens}, rank, (2, 3), 16)['params']
    # Branches that add nothing, and pixels that are the normalised sum itself.
    quiet = jax.tree.map(jnp.zeros_like, params['block0'])
    pixels = {'kernel': jnp.eye(16), 'bias': jnp.zeros(16)}
    params = {**params, 'block0': quiet, 'pixels': pixels}
    got = decoder.apply({'params': params}, {'tokens': tokens}, rank, (2, 3), 16)
    embedded = np.asarray(tokens @ params['embed']['kernel'] + params['embed']['bias'])
    for example in range(2):
        x = np.tile(np.asarray(params['mask']), (6, 1))
        for i in range(2):
            x[int(order[example, i])] = embedded[example, i]
        x = x + sincos((2, 3), 16)
        x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(got[example], x, atol=1e-5)


def test_the_order_in_which_patches_are_seen_does_not_matter(x64):
    decoder, encoder = MAEDecoder(16, 2, 2), SMALL.encoder
    x = batch()['image'][:, 0].astype(jnp.float64)
    wide = lambda tree: jax.tree.map(lambda leaf: leaf.astype(jnp.float64), tree)
    f = wide(encoder.init(jax.random.key(0), x, train=False))
    order = orders(batch()['key'], 36)
    again = jnp.concatenate([order[:, 8::-1], order[:, :8:-1]], axis=1)
    assert not np.array_equal(order, again)

    def decode(order, g=None):
        rank = jnp.argsort(order, axis=1)
        seen = encoder.apply(f, x, train=False, keep=order[:, :9], method='features')
        if g is None:
            return wide(decoder.init(jax.random.key(1), seen, rank, (6, 6), 48))
        return decoder.apply(g, seen, rank, (6, 6), 48)

    g = decode(order)
    np.testing.assert_allclose(decode(order, g), decode(again, g), rtol=1e-8, atol=1e-10)


def test_the_product_sees_all_patches_and_needs_no_key():
    given = batch()
    params, state = fresh(SMALL, given)
    module, variables = SMALL.product(params, state)
    layers = module.apply(variables, given['image'][:, 0], train=False, method='features')
    assert layers['tokens'].shape == (6, 36, 16)
    assert jax.tree.structure(variables['params']) == jax.tree.structure(params['encoder'])


@pytest.mark.parametrize('normalize', [True, False])
def test_the_target_is_normalised_where_asked(normalize):
    method = dataclasses.replace(SMALL, normalize=normalize)
    given = batch()
    given['image'] = 3 * given['image'] + 5
    params, state = fresh(method, given)
    outputs = forward(method, params, given)
    outputs['prediction'] = jnp.zeros_like(outputs['prediction'])
    now = Now(jnp.asarray(0), jax.random.key(3), RUN)
    loss = float(method.objective(params, outputs, state, now)[0])
    plain = float(jnp.mean(outputs['target'][outputs['mask']] ** 2))
    assert loss == pytest.approx(47 / 48 if normalize else plain, rel=1e-4)


@pytest.mark.parametrize(
    ('fields', 'view', 'message'),
    [
        ({}, (2, 24), 'the recipe makes 2; use a recipe of one view'),
        ({}, (1, 30), '30 x 30 pixels cannot be cut into patches of 4'),
        ({'masked': 1.0}, (1, 24), 'masked is 1.0, which leaves 0 of 36'),
        ({'masked': 0.0}, (1, 24), 'masked is 0.0'),
        ({'masked': 0.9}, (1, 8), 'leaves 0 of 4 patches'),
    ],
)
def test_refuses_views_and_masks_that_do_not_fit(fields, view, message):
    method = dataclasses.replace(SMALL, **fields)
    with pytest.raises(ValueError, match=message):
        method.check(Signature((('image', view),), 3, None, 160), RUN)
