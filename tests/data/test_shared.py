"""What two splits have in common, and whose size has to be known for it."""

import pytest

from ssljax.data.registry import open_source
from ssljax.data.splits import resolve, shared, table

SIZES = {'train': 1000, 'test': 100}


def indices(split):
    return {(key, i) for key, a, b in resolve('s', split, table(SIZES)) for i in range(a, b)}


@pytest.mark.parametrize(
    ('one', 'other', 'asked'),
    [
        ('train', 'test', []),
        ('train[:80%]', 'train[80%:]', []),
        ('train[:333]', 'train[333:]', []),
        ('train[:33.3%]', 'train[33.3%:]', []),
        ('train[:80%]', 'train[90%:]+test', []),
        ('train', 'train', ['train']),
        ('test[:50%]', 'test', ['test']),
        ('train[:90%]', 'train[-100:]', ['train']),
        ('train[:90%]', 'train[-101:]', ['train']),
        ('train[:450]', 'train[45%:]', ['train']),
        ('train[:451]', 'train[45%:]', ['train']),
        ('train[:-10%]', 'train[890:]', ['train']),
        ('train + test', 'test[10:20]', ['test']),
        ('train[:10]+train[10:20]', 'train', ['train', 'train']),
        ('train[0shard]', 'train', ['train[0shard:1shard]']),
        ('all', 'train[5:10]', ['train[5:10]']),
        ('test', 'all', ['test']),
    ],
)
def test_as_many_as_there_are_in_both_and_no_split_opened_in_vain(one, other, asked):
    for pair in ((one, other), (other, one)):
        opened = []

        def size(split, opened=opened):
            opened.append(split)
            return len(indices(split))

        in_both = len(indices(one) & indices(other)) if 'all' not in pair else None
        found = shared(*pair, size)
        assert found == (len(indices(asked[0])) if in_both is None else in_both)
        assert opened == asked


def test_slices_by_shard():
    shards = {'train[2shard:3shard]': 40}.__getitem__
    assert shared('train[:3shard]', 'train[2shard:]', shards) == 40
    assert shared('train[:3shard]', 'train[3shard:]', shards) == 0
    # Where a shard begins is not known.
    assert shared('train[:1shard]', 'train[:10]', shards) == 0


@pytest.mark.parametrize(('one', 'other'), [('train[', 'test'), ('train[:2000]', 'train[50%:]')])
def test_what_is_no_split_is_refused(one, other):
    with pytest.raises(ValueError):
        shared(one, other, SIZES.__getitem__)


@pytest.mark.parametrize('kind', ['arrays', 'folder', 'cifar10'])
def test_the_numbers_are_those_of_real_sources(kind, tmp_path, write_image, request):
    import numpy as np

    name = str(tmp_path / 'images.npy')
    np.save(name, np.zeros((50, 4, 4, 3), np.uint8))
    if kind == 'folder':
        name = f'folder:{tmp_path}/images'
        for i in range(50):
            write_image(tmp_path / 'images' / f'{i:02}.png', (4, 4, 3), i)
    elif kind == 'cifar10':
        request.getfixturevalue('prepared')
        name = 'cifar10'
    size = lambda split: open_source(name, split).examples
    assert shared('train[:60%]', 'train[50%:]', size) == size('train') // 10
    assert shared('train[:60%]', 'train[-7:]', size) == 0


@pytest.mark.parametrize('split', ['train[:60%]+train[50%:]', 'test+test', 'all+test[:1]'])
def test_examples_named_twice_are_refused(split):
    with pytest.raises(ValueError, match=r'names examples twice: \[.* overlap'):
        resolve('s', split, table(SIZES))
