"""The views of SimCLR's ablation: each transformation against its definition, and their order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage
from view_batches import batch_of

from ssljax.views import composition
from ssljax.views.composition import TRANSFORMATIONS, CompositionViews

GRAY = {'saturation': 0.0, 'hue': 0.0, 'gray': 0.0, 'mean': (0.3,), 'std': (0.35,)}
WHOLE = {'first_scale': (1.0, 1.0)}


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def every(op, image, n=200):
    """What an op makes of an image with so many keys."""
    return np.asarray(jax.jit(jax.vmap(lambda key: op(image, key)))(keys(n)))


def image_of(channels=3, side=12):
    return jnp.asarray(np.random.default_rng(0).uniform(size=(channels, side, side)), jnp.float32)


@pytest.mark.slow
@pytest.mark.parametrize('name', TRANSFORMATIONS)
@pytest.mark.parametrize('channels', [1, 3])
def test_one_view_is_changed_and_the_other_is_the_picture(name, channels):
    fields = GRAY if channels == 1 else {}
    recipe = CompositionViews(size=24, transformations=(name,), **WHOLE, **fields)
    recipe.check(channels)
    batch, pictures = batch_of(recipe, 16, channels)
    views = jax.jit(recipe.on_device)(batch)['image']
    assert recipe.views() == {'image': (2, 24)} and views.shape == batch['image'].shape
    np.testing.assert_allclose(views[:, 1], recipe.normalize(jnp.asarray(pictures)), atol=1e-6)
    assert np.mean(np.any(np.asarray(views[:, 0] != views[:, 1]), axis=(1, 2, 3))) > 0.6
    unit = np.asarray(recipe.denormalize(views))
    assert unit.min() > -1e-6 and unit.max() < 1 + 1e-6


def test_without_transformations_both_views_are_one_crop():
    recipe = CompositionViews(size=20)
    batch, _ = batch_of(recipe)
    views = recipe.on_device(batch)['image']
    np.testing.assert_array_equal(views[:, 0], views[:, 1])


def test_transformations_come_in_the_order_named():
    image, key = image_of(), jax.random.key(3)
    made = lambda *names: np.asarray(
        CompositionViews(size=12, transformations=names).transformed(image, key)
    )
    assert np.abs(made('sobel', 'blur') - made('blur', 'sobel')).max() > 0.01
    # What comes first is as if it were alone.
    turned, alone = made('sobel', 'rotate'), made('sobel')
    assert any(np.array_equal(turned, np.rot90(alone, k, axes=(1, 2))) for k in range(4))


def test_crop_is_a_window_of_the_share_and_shape_asked_for():
    side = 64
    places = (jnp.arange(side) + 0.5) / side
    down, across = jnp.meshgrid(places, places, indexing='ij')
    made = every(
        lambda image, key: composition.crop(image, key, (0.2, 0.6), (3 / 4, 4 / 3)),
        jnp.stack([down, across, jnp.zeros_like(down)]),
    )
    # What was linear stays so inside the window: its slopes are the window's sides.
    height = (made[:, 0, 40, 32] - made[:, 0, 24, 32]) / (16 / side)
    width = (made[:, 1, 32, 40] - made[:, 1, 32, 24]) / (16 / side)
    area, ratio = height * np.abs(width), np.abs(width) / height
    assert 0.199 < area.min() < 0.22 and 0.56 < area.max() < 0.601
    assert 0.749 < ratio.min() < 0.78 and 1.28 < ratio.max() < 1.334
    assert 0.35 < np.mean(width < 0) < 0.65
    middle = made[:, 0, 31:33, 32].mean(1)
    assert np.all(middle - height / 2 > -0.01) and np.all(middle + height / 2 < 1.01)


def test_the_whole_is_a_crop_too():
    image = image_of()
    made = every(lambda x, key: composition.crop(x, key, (1.0, 1.0), (1.0, 1.0)), image, 40)
    image = np.asarray(image)
    flipped = np.abs(made - image[:, :, ::-1]).max((1, 2, 3)) < 1e-5
    same = np.abs(made - image).max((1, 2, 3)) < 1e-5
    assert np.all(flipped ^ same) and flipped.any() and same.any()


def test_cutout_fills_one_square():
    image, fill = image_of(side=13), jnp.asarray([0.1, 0.2, 0.3], jnp.float32)[:, None, None]
    made = every(lambda x, key: composition.cutout(x, key, 0.5, fill), image)
    hidden = np.all(made == np.asarray(fill), axis=1)
    assert np.all(np.where(hidden[:, None], np.asarray(image), made) == np.asarray(image))
    areas = hidden.sum((1, 2))
    assert areas.max() == 36 and areas.min() >= 9 and np.mean(areas == 36) > 0.2
    for one in hidden:
        rows, columns = one.any(1).sum(), one.any(0).sum()
        assert rows * columns == one.sum()


def test_sobel_is_scipys_gradient():
    image = image_of()
    gray = np.tensordot([0.2989, 0.5870, 0.1140], np.asarray(image, np.float64), 1)
    length = np.hypot(
        ndimage.sobel(gray, 0, mode='nearest'), ndimage.sobel(gray, 1, mode='nearest')
    )
    made = np.asarray(composition.sobel(image))
    np.testing.assert_allclose(
        made, np.broadcast_to(np.clip(length / 4, 0, 1), made.shape), atol=1e-6
    )
    assert np.all(composition.sobel(jnp.full((1, 5, 5), 0.3)) == 0)


def test_noise_is_of_every_strength_up_to_the_greatest():
    made = every(lambda x, key: composition.noise(x, key, 0.1), jnp.full((3, 16, 16), 0.5))
    strength = made.std((1, 2, 3))
    assert strength.max() < 0.11 and strength.min() < 0.01
    assert strength.mean() == pytest.approx(0.05, abs=0.01)
    assert np.abs(made.mean() - 0.5) < 1e-3


def test_rotation_is_by_a_quarter_a_half_three_quarters_or_nothing():
    image = image_of()
    made = every(composition.rotate, image)
    turned = np.stack([np.rot90(np.asarray(image), k, axes=(1, 2)) for k in range(4)])
    which = np.all(made[:, None] == turned, axis=(2, 3, 4))
    assert np.all(which.sum(1) == 1) and np.all(which.sum(0) > 25)


@pytest.mark.parametrize(
    ('fields', 'says'),
    [
        ({'hole': 0.0}, 'hole is 0.0'),
        ({'noise': -0.1}, 'noise is -0.1'),
        ({'scale': (0.0, 1.0)}, r'scale is \(0.0, 1.0\)'),
        ({'first_scale': (0.5, 1.5)}, r'scale is \(0.5, 1.5\)'),
        ({'sigma': (2.0, 1.0)}, r'sigma is \(2.0, 1.0\)'),
    ],
)
def test_what_does_not_fit_is_refused(fields, says):
    with pytest.raises(ValueError, match=says):
        CompositionViews(**fields).check(3)


def test_color_wants_rgb_unless_told_otherwise():
    plain = {'mean': (0.3,), 'std': (0.35,)}
    CompositionViews(transformations=('blur',), **plain).check(1)
    with pytest.raises(ValueError, match='need RGB'):
        CompositionViews(transformations=('color',), **plain).check(1)
    CompositionViews(transformations=('color',), **GRAY).check(1)


def test_a_transformation_that_there_is_not_is_refused():
    recipe = CompositionViews()
    object.__setattr__(recipe, 'transformations', ('crop', 'crip'))  # past the tests' type checks
    with pytest.raises(ValueError, match="no transformation 'crip'; there are crop, cutout"):
        recipe.check(3)
