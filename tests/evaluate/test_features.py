"""Every example once, in index order, without waiting for each batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ssljax.evaluate.features import Features, extract, pixels


def evaluation_batches(n, batch, *, order=None, labelled=True):
    """Batches whose image i is filled with the value i, padded with copies of the last image."""
    order = np.arange(n) if order is None else order
    for start in range(0, n, batch):
        index = order[start : start + batch]
        padding = (0, batch - len(index))
        index, valid = np.pad(index, padding, mode='edge'), np.arange(batch) < len(index)
        images = np.broadcast_to(index[:, None, None, None], (batch, 2, 2, 1)).astype(np.uint8)
        batch_dict = {'image': images, 'index': index.astype(np.int32), 'valid': valid}
        yield {**batch_dict, 'label': (index % 3).astype(np.int32)} if labelled else batch_dict


def mean_of_pixels(image):
    return image.reshape(image.shape[0], -1).astype(jnp.float32)[:, :3]


@pytest.mark.parametrize('n', [1, 15, 16, 17, 100])
def test_each_example_once_in_index_order(n):
    features = extract(jax.jit(mean_of_pixels), evaluation_batches(n, 16))
    np.testing.assert_array_equal(features.index, np.arange(n))
    np.testing.assert_array_equal(features.features, np.repeat(np.arange(n)[:, None], 3, axis=1))
    np.testing.assert_array_equal(features.labels, np.arange(n) % 3)
    assert features.features.dtype == np.float32


def test_index_order_whatever_the_order_of_the_batches():
    order = np.random.default_rng(0).permutation(37)
    features = extract(jax.jit(mean_of_pixels), evaluation_batches(37, 8, order=order))
    np.testing.assert_array_equal(features.features[:, 0], np.arange(37))
    np.testing.assert_array_equal(features.labels, np.arange(37) % 3)


def test_sharded_embedding_gives_the_same(mesh8):
    rows = NamedSharding(mesh8, PartitionSpec('data'))
    sharded = jax.jit(mean_of_pixels, in_shardings=rows, out_shardings=rows)
    features = extract(sharded, evaluation_batches(21, 16))
    np.testing.assert_array_equal(features.features[:, 0], np.arange(21))


def test_bfloat16_features_come_back_as_float32():
    features = extract(
        lambda image: mean_of_pixels(image).astype(jnp.bfloat16), evaluation_batches(5, 4)
    )
    assert features.features.dtype == np.float32


def test_batches_are_dispatched_ahead_of_the_copy_but_not_without_bound():
    events = []

    class Output:
        def __init__(self, rows):
            self.rows = rows

        def __array__(self, dtype=None, copy=None):
            events.append('copy')
            return np.zeros((self.rows, 2), dtype)

    def embed(image):
        events.append('dispatch')
        return Output(len(image))

    extract(embed, evaluation_batches(40, 4))
    assert events[:6] == ['dispatch'] * 5 + ['copy']
    ahead = np.cumsum([1 if e == 'dispatch' else -1 for e in events])
    assert ahead.max() == 5
    assert ahead[-1] == 0


def test_data_without_labels_has_features_and_says_so_when_asked_for_labels():
    features = extract(jax.jit(mean_of_pixels), evaluation_batches(9, 4, labelled=False))
    assert features.labels is None
    with pytest.raises(ValueError, match='these 9 examples have no labels'):
        features.targets()


def test_an_example_that_comes_twice_is_refused():
    order = np.array([0, 1, 2, 1])
    with pytest.raises(ValueError, match='4 rows hold 3 different examples'):
        extract(jax.jit(mean_of_pixels), evaluation_batches(4, 4, order=order))


def test_nothing_to_embed_is_refused():
    with pytest.raises(ValueError, match='no example to embed'):
        extract(mean_of_pixels, [])


def test_take_keeps_rows_labels_and_index_together():
    features = Features.of(np.arange(12.0).reshape(6, 2), np.arange(6) * 10)
    taken = features.take(np.array([4, 1]))
    np.testing.assert_array_equal(taken.features, [[8, 9], [2, 3]])
    np.testing.assert_array_equal(taken.labels, [40, 10])
    np.testing.assert_array_equal(taken.index, [4, 1])


def test_raw_pixels_are_flat_and_between_0_and_1():
    image = np.array([[[[0], [255]], [[51], [102]]]], np.uint8)
    np.testing.assert_allclose(pixels(image), [[0, 1, 0.2, 0.4]], rtol=1e-6)
