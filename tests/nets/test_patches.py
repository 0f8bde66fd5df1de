"""Patches and positions: their order, their inverse, their closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from torch.nn import functional as F  # noqa: N812

from ssljax.nets.patches import grid_of, patchify, unpatchify
from ssljax.nets.positions import cubic_weights, resample, sincos


def test_values_of_a_patch_go_by_row_then_column_then_channel():
    x = np.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3).astype(np.float32)
    patches = np.asarray(patchify(jnp.asarray(x), 2))
    assert patches.shape == (2, 6, 12)
    for row in range(2):
        for column in range(3):
            block = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert np.array_equal(patches[:, 3 * row + column], block.reshape(2, -1))


def test_unpatchify_is_the_inverse():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 8, 12, 3)), jnp.float32)
    assert np.array_equal(unpatchify(patchify(x, 4), (2, 3), 4), x)


def test_a_patch_that_does_not_divide_the_image_is_named_with_the_sizes_that_fit():
    assert grid_of(224, 112, 16) == (14, 7)
    with pytest.raises(ValueError, match=r'30 x 28 pixels.*patches of 4.*28 or 32 pixels'):
        grid_of(30, 28, 4)
    with pytest.raises(ValueError, match='patches of 16'):
        grid_of(8, 32, 16)


def test_sines_and_cosines_of_column_then_row():
    table = sincos((3, 5), 16).reshape(3, 5, 16)
    assert np.array_equal(table[0, 0], np.repeat([0.0, 1.0, 0.0, 1.0], 4))
    np.testing.assert_allclose(np.sum(table**2, axis=-1), 8, rtol=1e-12)
    # The first frequency is 1, the second 10000^(-1/4) = 0.1.
    np.testing.assert_allclose(table[2, 3, [0, 1]], np.sin([3, 0.3]), rtol=1e-12)
    np.testing.assert_allclose(table[2, 3, [4, 5]], np.cos([3, 0.3]), rtol=1e-12)
    np.testing.assert_allclose(table[2, 3, [8, 9]], np.sin([2, 0.2]), rtol=1e-12)
    np.testing.assert_allclose(table[2, 3, [12, 13]], np.cos([2, 0.2]), rtol=1e-12)


def test_products_of_positions_depend_on_the_way_between_them_only():
    table = sincos((6, 6), 32).reshape(6, 6, 32)
    here = np.sum(table[1, 1] * table[3, 2])
    np.testing.assert_allclose(np.sum(table[2, 3] * table[4, 4]), here, rtol=1e-12)
    assert abs(np.sum(table[1, 1] * table[4, 4]) - here) > 0.1


def test_positions_need_a_width_in_fours():
    with pytest.raises(ValueError, match=r'width is 18.*multiple of 4'):
        sincos((2, 2), 18)


@pytest.mark.parametrize(('old', 'new'), [((14, 14), (6, 6)), ((4, 4), (7, 9)), ((3, 5), (6, 2))])
def test_resampling_is_pytorchs_bicubic(x64, old, new):
    table = np.random.default_rng(0).normal(size=(old[0] * old[1], 8))
    maps = torch.from_numpy(table.reshape(1, *old, 8)).permute(0, 3, 1, 2)
    want = F.interpolate(maps, new, mode='bicubic', align_corners=False).permute(0, 2, 3, 1)
    got = resample(jnp.asarray(table), old, new)
    np.testing.assert_allclose(got, want.numpy().reshape(-1, 8), rtol=1e-10, atol=1e-12)


def test_the_same_grid_gives_the_table_itself():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(12, 8)), jnp.float32)
    assert resample(table, (3, 4), (3, 4)) is table
    np.testing.assert_allclose(cubic_weights(5, 5), np.eye(5), atol=1e-15)


def test_a_constant_table_stays_constant():
    for old, new in ((14, 6), (3, 11), (1, 4)):
        np.testing.assert_allclose(cubic_weights(old, new).sum(1), 1, rtol=1e-12)
