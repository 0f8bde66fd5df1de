"""Data in a bucket is the data on the disk that it was copied from."""

import json
import os
import subprocess
import sys

import bucket as made_up
import numpy as np
import pytest
from test_arrayrecord import Tiles

PROGRAM = """
import hashlib, json, os
import tensorflow as tf
from ssljax.data.registry import open_source
kinds = {'folder': 'folder:{}/photos', 'arrays': 'arrays:{}/held.npz', 'map': 'arrays:{}/held.npy'}
root = os.environ['TFDS_DATA_DIR']
for kind, name in {**kinds, 'tiles': 'tiles'}.items():
    source = open_source(name.format(root), 'train')
    images = source.records(tf.range(source.examples, dtype=tf.int64))['image'].numpy()
    content = hashlib.sha256(repr(images.tolist()).encode()).hexdigest()
    labels = source.labels()
    found = [source.fingerprint(), content, None if labels is None else labels.tolist()]
    print(json.dumps([kind, source.remote, found]))
"""


def opened(root, **environment):
    environment = {**os.environ, 'TFDS_DATA_DIR': str(root), **environment}
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM], env=environment, capture_output=True, text=True
    )
    return done, [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def held(tmp_path, write_image):
    """A folder with all kinds of data."""
    for label in ('cat', 'dog'):
        for i in range(3):
            write_image(tmp_path / 'photos' / label / f'{i}.png', (6, 5, 3), seed=i)
    images = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), np.uint8)
    np.savez(tmp_path / 'held.npz', image=images, label=np.arange(4))
    np.save(tmp_path / 'held.npy', images)
    Tiles(data_dir=tmp_path, file_format='array_record').download_and_prepare()
    return tmp_path


@pytest.mark.slow
def test_all_kinds_of_data_are_read_from_a_bucket_as_from_a_disk(held):
    _, here = opened(held)
    with made_up.served() as bucket:
        bucket.put(held, 'data')
        done, there = opened('gs://bucket/data', **bucket.environment())
        assert not [method for method, *_ in bucket.requests if method in made_up.WRITING]
    assert done.returncode == 0, done.stderr
    assert [kind for kind, *_ in here] == ['folder', 'arrays', 'map', 'tiles']
    assert [found for *_, found in there] == [found for *_, found in here]
    assert {kind for kind, remote, _ in there if remote} == {'folder', 'tiles'}


@pytest.mark.slow
def test_records_that_their_reader_does_not_reach_are_refused_before_anything_starts(held):
    with made_up.served() as bucket:
        bucket.put(held, 'data')
        astray = {'CLOUD_STORAGE_EMULATOR_ENDPOINT': f'http://127.0.0.1:{bucket.port}/astray'}
        done, there = opened('gs://bucket/data', **(bucket.environment() | astray))
    assert len(there) == 3
    assert 'ValueError: gs://bucket/data/tiles/1.0.0 can be listed but its records' in done.stderr
    assert 'mount the bucket with gcsfuse, and set TFDS_DATA_DIR' in done.stderr
