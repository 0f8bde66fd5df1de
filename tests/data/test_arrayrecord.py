import dataclasses
import shutil
from typing import ClassVar

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from ssljax.data import faults
from ssljax.data.picture import Picture
from ssljax.data.pipeline import Stream, batches, in_order
from ssljax.data.registry import open_source


class Tiles(tfds.core.GeneratorBasedBuilder):
    """Twelve tiles; a class of its own, since TFDS registers builders by their class's name."""

    VERSION = tfds.core.Version('1.0.0')
    FEATURES: ClassVar = {
        'picture': tfds.features.Image(shape=(6, 5, 1)),
        'kind': tfds.features.ClassLabel(names=['odd', 'even']),
        'note': tfds.features.Text(),
    }

    def _info(self):
        features = tfds.features.FeaturesDict(self.FEATURES)
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
        return {'train': self._generate_examples(0, 12), 'test': self._generate_examples(12, 15)}

    def _generate_examples(self, start, stop):
        for i in range(start, stop):
            values = {
                'picture': np.full((6, 5, 1), 10 * i, np.uint8),
                'two': np.full((6, 5, 1), i, np.uint8),
                'kind': i % 2,
                'note': f'tile {i}',
                'deep': np.full((6, 5, 1), i, np.uint16),
            }
            yield i, {key: values[key] for key in self.FEATURES}


class TwoPictures(Tiles):
    FEATURES: ClassVar = {key: tfds.features.Image(shape=(6, 5, 1)) for key in ('picture', 'two')}


class DeepPicture(Tiles):
    FEATURES: ClassVar = {'deep': tfds.features.Image(shape=(6, 5, 1), dtype=np.uint16)}


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))

    def build(builder=Tiles, file_format='array_record', shards=1):
        config = tfds.download.DownloadConfig(num_shards=shards)
        prepared = builder(data_dir=tmp_path, file_format=file_format)
        prepared.download_and_prepare(download_config=config)
        return prepared

    return build


def flip(builder, text):
    """Flips one bit of the only place of a text in the training records."""
    (file,) = builder.data_path.glob('*train*')
    held = bytearray(file.read_bytes())
    assert held.count(text) == 1
    held[held.index(text)] ^= 1
    file.write_bytes(held)


def decoded(source):
    records = source.records(tf.range(source.examples, dtype=tf.int64))
    images = [Picture(image, source.channels).pixels().numpy() for image in records['image']]
    return np.stack(images), records['label'].numpy()


@pytest.mark.parametrize('split', ['train', 'test', 'train[25%:75%]', 'train[-2:]+test[:1]'])
@pytest.mark.parametrize('shards', [1, 3])
def test_examples_are_those_of_tfds(prepare, split, shards):
    builder = prepare(shards=shards)
    source = open_source('tiles', split)
    reference = builder.as_data_source(split)
    assert source.examples == len(reference)
    images, labels = decoded(source)
    np.testing.assert_array_equal(images, np.stack([row['picture'] for row in reference]))
    np.testing.assert_array_equal(labels, [row['kind'] for row in reference])
    np.testing.assert_array_equal(source.labels(), labels)
    assert (source.channels, source.size) == (1, (6, 5))
    assert source.class_names == ('odd', 'even')


def test_cifar10_is_what_tfds_decodes(prepared):
    source = open_source('cifar10', 'train[:45000]')
    assert (source.examples, source.channels, source.size) == (45_000, 3, (32, 32))
    assert source.class_names[3] == 'cat'
    held_out = open_source('cifar10:3.0.2', 'train[45000:]')
    reference = tfds.builder('cifar10', data_dir=prepared).as_data_source('train')
    for part, start in ((source, 0), (held_out, 45_000)):
        wanted = np.random.default_rng(start).integers(0, part.examples, 200)
        records = part.records(tf.constant(wanted))
        for image, label, index in zip(records['image'], records['label'], wanted, strict=True):
            expected = reference[int(start + index)]
            np.testing.assert_array_equal(Picture(image, 3).pixels(), expected['image'])
            assert label == expected['label']
    np.testing.assert_array_equal(np.bincount(open_source('cifar10', 'test').labels()), [1000] * 10)


def test_the_fingerprint_is_of_the_records(prepare):
    prepare()
    names = ['train', 'test', 'train[:6]', 'train[6:]']
    assert len({open_source('tiles', name).fingerprint() for name in names}) == 4
    ours = open_source('tiles', 'train').fingerprint()
    assert open_source('tiles:1.0.0', 'train').fingerprint() == ours
    (file,) = (open_source('tiles', 'train').reader._paths,)
    with open(file[0], 'ab') as stream:
        stream.write(b'x')
    assert open_source('tiles', 'train').fingerprint() != ours


def test_an_unreadable_record_has_no_label_and_costs_no_other(prepare):
    """The flipped byte fails the record's checksum."""
    builder = prepare()
    whole = list(builder.as_data_source('train'))
    flip(builder, b'tile 4')
    expected = [-1 if row['note'] == b'tile 4' else row['kind'] for row in whole]
    assert expected.count(-1) == 1
    np.testing.assert_array_equal(open_source('tiles', 'train').labels(), expected)


def test_a_corrupt_record_is_replaced_by_the_next(prepare, recipe):
    builder = prepare()
    tiles = [row['picture'][0, 0, 0] for row in builder.as_data_source('train')]
    flip(builder, b'tile 4')
    spoilt = tiles.index(40)
    plan = Stream(12, 0, max_corrupt=0.1)
    stream = batches(open_source('tiles', 'train'), dataclasses.replace(recipe, size=4), plan)
    batch = next(stream)
    assert stream.corrupt == (spoilt,)
    tiles[spoilt] = tiles[(spoilt + 1) % 12]
    np.testing.assert_array_equal(
        batch['image'][np.argsort(batch['index']), 0, 0, 0, 0], np.array(tiles)
    )


class Interrupted:
    """A reader whose first reads fail as those of its files do when a disk is gone for a while."""

    def __init__(self, reader, times):
        self.reader, self.times = reader, times

    def __getitems__(self, wanted):
        if self.times:
            self.times -= 1
            raise RuntimeError('pread() failed: Input/output error; reading tiles')
        return self.reader.__getitems__(wanted)


def test_a_disk_that_fails_for_a_while_corrupts_no_record_and_no_label(
    prepare, recipe, monkeypatch
):
    monkeypatch.setattr(faults, 'WAITS', (0.0,) * 3)
    builder = prepare()
    kinds = [row['kind'] for row in builder.as_data_source('train')]
    recipe = dataclasses.replace(recipe, size=4)
    whole = next(batches(open_source('tiles', 'train'), recipe, Stream(12, 0)))
    for times in (1, 3, 10**6):
        source = open_source('tiles', 'train')
        source = dataclasses.replace(source, reader=Interrupted(source.reader, times))
        stream = batches(source, recipe, Stream(12, 0, max_corrupt=1.0))
        if times > 3:
            with pytest.raises(faults.UnreachableDataError, match=r'4 tries.*reading tiles'):
                next(stream)
            continue
        np.testing.assert_array_equal(next(stream)['image'], whole['image'])
        assert stream.corrupt == ()
        source.reader.times = times
        np.testing.assert_array_equal(source.labels(), kinds)


def test_sets_that_cannot_be_read_say_how_to_prepare_them(prepare, tmp_path):
    with pytest.raises(ValueError, match='cifar100 is not prepared in') as error:
        open_source('cifar100', 'train')
    for part in (str(tmp_path), 'tfds build cifar100 --file_format=array_record', 'TFDS_DATA_DIR'):
        assert part in str(error.value)
    prepare(file_format='tfrecord')
    with pytest.raises(ValueError, match=r'is prepared as tfrecord .*expected array_record'):
        open_source('tiles', 'train')


def test_the_command_in_the_message_prepares_the_set(tmp_path, monkeypatch):
    monkeypatch.setenv('TFDS_DATA_DIR', str(tmp_path))
    with pytest.raises(ValueError, match='not prepared') as error:
        open_source('tiles', 'train')
    code = str(error.value).split('python -c "')[1].split('"')[0]
    exec(code)  # what the message asks for
    assert open_source('tiles', 'train').examples == 12


def test_an_unknown_name_names_the_near_ones(prepare):
    with pytest.raises(ValueError, match=r"no data set 'cifr10': did you mean .*cifar10"):
        open_source('cifr10', 'train')
    for name in ('fashion_mnst_10k', '', 'cifar10:', 'Fashion MNIST', 'a:b:c'):
        with pytest.raises(ValueError, match=r'there is no data set .*fashion_mnist_10k'):
            open_source(name, 'train')
    for name in ('folder:', 'arrays:'):
        with pytest.raises(ValueError, match=f"'{name}' names no path; expected {name}PATH"):
            open_source(name, 'train')


def test_unfit_features_splits_and_missing_files_are_refused(prepare):
    prepare(TwoPictures)
    with pytest.raises(ValueError, match='one image an example; its features are picture: Image'):
        open_source('two_pictures', 'train')
    prepare(DeepPicture)
    with pytest.raises(ValueError, match='are uint16 with 1 channels; expected uint8'):
        open_source('deep_picture', 'train')
    builder = prepare()
    for split in ('validation', 'train[:13]', 'train[3:3]', 'train['):
        with pytest.raises(ValueError, match=r'the splits are train \(12\), test \(3\)'):
            open_source('tiles', split)
    (file,) = builder.data_path.glob('*train*')
    shutil.move(file, file.parent / 'elsewhere')
    with pytest.raises(ValueError, match=r'tiles is incomplete: .* is missing'):
        open_source('tiles', 'train')


def test_png_records_flow_through_the_pipeline(prepare, recipe):
    builder = prepare()
    (batch,) = in_order(open_source('tiles', 'train'), dataclasses.replace(recipe, size=4), 12)
    expected = np.stack([row['picture'] for row in builder.as_data_source('train')])
    np.testing.assert_array_equal(batch['image'], expected[:, :4, :4])
