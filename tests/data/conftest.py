"""A small recipe, folders of images, and where the prepared TFDS sets lie."""

import dataclasses
import os
import pathlib

import numpy as np
import pytest
from PIL import Image


@dataclasses.dataclass(frozen=True)
class Window:
    """`count` windows of a picture at places drawn from the seed; evaluation: the upper left."""

    size: int = 8
    count: int = 2

    def views(self):
        return {'image': (self.count, self.size)}

    def check(self, channels):
        if channels not in (1, 3):
            raise ValueError(f'{channels} channels; expected 1 or 3')

    def on_host(self, picture, seed):
        import tensorflow as tf

        height, width = picture.shape()
        windows = []
        for view in range(self.count):
            draw = tf.random.stateless_uniform(
                [2], seed + tf.constant([view << 40, 0], tf.int64), 0, 2**20, tf.int32
            )
            top, left = draw[0] % (height - self.size + 1), draw[1] % (width - self.size + 1)
            windows.append(picture.crop(top, left, self.size, self.size))
        return {'image': tf.stack(windows)}

    def evaluation(self, picture):
        import tensorflow as tf

        return tf.ensure_shape(
            picture.pixels()[: self.size, : self.size], [self.size, self.size, picture.channels]
        )


@pytest.fixture
def recipe():
    return Window()


@pytest.fixture
def write_image():
    """Writes a random smooth image of (height, width[, 3]) to a path, as its suffix says."""

    def write(path, shape, seed=0):
        rng = np.random.default_rng(seed)
        coarse = rng.integers(0, 256, (5, 5, *shape[2:])).astype(np.uint8)
        image = Image.fromarray(coarse).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
        return np.asarray(image)

    return write


@pytest.fixture
def prepared(monkeypatch):
    """The folder with the prepared cifar10: $TFDS_DATA_DIR, or the one beside the repository."""
    beside = pathlib.Path(__file__).parents[3] / 'shared' / 'data' / 'tfds'
    folder = pathlib.Path(os.environ.get('TFDS_DATA_DIR') or beside)
    if not (folder / 'cifar10').is_dir():
        pytest.skip(f'no cifar10 in {folder}: set TFDS_DATA_DIR to a folder of prepared TFDS sets')
    monkeypatch.setenv('TFDS_DATA_DIR', str(folder))
    return folder
