"""`made_images`: small colour images made on the spot, for smoke tests of any experiment."""

import numpy as np

from ssljax.data import splits
from ssljax.data.arrays import from_arrays
from ssljax.data.sources import Source

NAME = 'made_images'
SIZE = 40
CLASSES = ('disc', 'square', 'stripes', 'checks')
SPLITS = {'train': 256, 'validation': 64, 'test': 64}


def load(split: str) -> Source:
    """A split of the made images: four shapes in random places, sizes and colours, with noise.

    Args:
        split: `train`, `validation` or `test`, with slices.
    """
    total = sum(SPLITS.values())
    rng = np.random.default_rng(0)
    label = np.arange(total) % len(CLASSES)
    y, x = np.mgrid[:SIZE, :SIZE]
    images = np.empty((total, SIZE, SIZE, 3), np.uint8)
    for i, kind in enumerate(label):
        radius, cy, cx = rng.integers(6, 14), *rng.integers(12, SIZE - 12, 2)
        inside = {
            0: (y - cy) ** 2 + (x - cx) ** 2 < radius**2,
            1: np.maximum(abs(y - cy), abs(x - cx)) < radius,
            2: (x + cx) % radius < radius // 2,
            3: ((x + cx) // radius + (y + cy) // radius) % 2 == 0,
        }[int(kind)]
        back, front = rng.integers(0, 256, (2, 3))
        noise = rng.integers(-12, 13, (SIZE, SIZE, 3))
        images[i] = np.clip(np.where(inside[..., None], front, back) + noise, 0, 255)
    whole = from_arrays(NAME, images, label, CLASSES)
    starts = np.cumsum([0, *SPLITS.values()])
    order = {name: np.arange(a, b) for name, a, b in zip(SPLITS, starts, starts[1:], strict=False)}
    ranges = splits.resolve(NAME, split, splits.table(SPLITS))
    return whole.select(splits.positions(ranges, order), f'{NAME}:{split}')
