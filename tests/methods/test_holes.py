"""The three kinds of holes: their areas, their places, their keys."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssljax.methods.holes import Blocks, Centre, Region

KEYS = jax.random.split(jax.random.key(0), 64)


def drawn(hole, size, keys=KEYS):
    return np.asarray(jax.jit(jax.vmap(lambda key: hole.draw(key, size)))(keys))


@pytest.mark.parametrize(('size', 'rim'), [(128, 4), (28, 1), (12, 0)])
def test_the_centre_is_the_middle_half_less_its_rim(size, rim):
    hole = Centre(rim=rim)
    hole.check(size)
    hidden = drawn(hole, size)
    first, side = hole.window(size)
    assert (first, side) == (size // 4, size // 2)
    assert (hidden == hidden[0]).all() and hidden[0].sum() == (side - 2 * rim) ** 2
    np.testing.assert_array_equal(hidden[0], hidden[0][::-1, ::-1])
    weight = np.asarray(hole.weigh(jnp.asarray(hidden[:1]))[0])
    np.testing.assert_array_equal(weight == 1, hidden[0])
    assert (weight == 10).sum() == side**2 - (side - 2 * rim) ** 2
    middle = weight[first : first + side, first : first + side]
    assert (middle > 0).all() and (weight > 0).sum() == side**2


def test_the_centre_of_the_released_code():
    """A hole of 56 x 56 in 128 x 128, inside a predicted square of 64 x 64."""
    hidden = drawn(Centre(rim=4), 128, KEYS[:1])[0]
    rows, columns = np.nonzero(hidden)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (36, 91, 36, 91)


@pytest.mark.parametrize(('size', 'count', 'share'), [(28, 4, 0.25), (32, 1, 0.25), (12, 5, 0.2)])
def test_blocks_cover_at_most_their_share(size, count, share):
    hole = Blocks(count, share)
    hole.check(size)
    hidden, side = drawn(hole, size), hole.side(size)
    area = hidden.sum(axis=(1, 2))
    assert area.max() <= share * size**2 and area.min() >= side**2
    assert (area == side**2).all() if count == 1 else len(set(area)) > 3
    np.testing.assert_array_equal(hole.weigh(jnp.asarray(hidden)), hidden)
    assert hole.window(size) == (0, size)


def test_a_block_is_a_square_and_may_lie_anywhere():
    hidden = drawn(Blocks(1, 0.25), 8, jax.random.split(jax.random.key(1), 500))
    places = set()
    for one in hidden:
        rows, columns = np.nonzero(one)
        assert rows.max() - rows.min() == columns.max() - columns.min() == 3
        places.add((rows.min(), columns.min()))
    assert places == {(i, j) for i in range(5) for j in range(5)}


@pytest.mark.parametrize('size', [128, 28, 12])
def test_a_region_covers_20_to_30_percent(size):
    hole = Region()
    hole.check(size)
    share = drawn(hole, size).mean(axis=(1, 2))
    assert share.min() >= 0.2 and share.max() <= 0.3
    assert share.max() - share.min() > 0.08


def test_a_region_is_smooth_and_nowhere_in_particular():
    hidden = drawn(Region(), 64)
    edges = (hidden[:, 1:] != hidden[:, :-1]).mean()
    assert edges < 0.1  # noise that is not enlarged has 2 x 0.25 x 0.75
    assert np.abs(hidden.mean(axis=0) - 0.25).max() < 0.25


@pytest.mark.parametrize('hole', [Blocks(), Region()])
def test_every_key_has_its_own_hole(hole):
    hidden = drawn(hole, 28)
    assert len({one.tobytes() for one in hidden}) > 60
    np.testing.assert_array_equal(drawn(hole, 28, KEYS[5:7]), hidden[5:7])


@pytest.mark.parametrize(
    ('hole', 'size', 'wrong'),
    [
        (Centre(rim=7), 28, 'rim of 7'),
        (Centre(rim=-1), 28, 'use 0 to 6'),
        (Centre(rim=1, rim_weight=0.0), 28, 'rim_weight is 0'),
        (Blocks(count=0), 28, '0 blocks'),
        (Blocks(share=1.0), 28, 'share between 0 and 1'),
        (Blocks(count=100), 12, 'less than a pixel'),
        (Region(cells=1), 28, 'use 2 to 28'),
        (Region(share=(0.3, 0.2)), 28, 'rising order'),
        (Region(share=(0.0, 0.2)), 28, 'share is'),
    ],
)
def test_holes_that_do_not_fit_say_so(hole, size, wrong):
    with pytest.raises(ValueError, match=wrong):
        hole.check(size)
