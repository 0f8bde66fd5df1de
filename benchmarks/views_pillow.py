"""Views of MoCo's CIFAR-10 recipe beside Pillow's: do they differ in what training feels?

    python benchmarks/views_pillow.py

Pillow's half does what torchvision's transforms of the authors' demonstration do to an image,
written out for this comparison: crop of 8 to 100% of the area, flip, jitter of 0.4, 0.4, 0.4, 0.1
with probability 0.8 in random order, grey with 0.2. Two views an image from either, by random
numbers of its own. Needs `cifar10`.
"""

import argparse
import math
import pathlib
import random
import sys

import jax
import numpy as np
from PIL import Image, ImageEnhance
from provenance import header

from ssljax.commands.train import load
from ssljax.core import with_keys
from ssljax.data.pipeline import Stream, batches, in_order
from ssljax.data.registry import open_source

ROOT = pathlib.Path(__file__).parent.parent
CANDIDATES = 500
"""Second views that a first one's partner is looked for among."""


def cropped(image: Image.Image, rng: random.Random) -> Image.Image:
    width, height = image.size
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.randint(0, width - w), rng.randint(0, height - h)
            image = image.crop((left, top, left + w, top + h))
            break
    return image.resize((width, height), Image.Resampling.BILINEAR)


def turned(image: Image.Image, shift: float) -> Image.Image:
    """The hue shifted by a share of the circle."""
    hue, saturation, value = image.convert('HSV').split()
    moved = (np.asarray(hue, int) + int(shift * 255)) % 256
    hue = Image.fromarray(moved.astype(np.uint8))
    return Image.merge('HSV', (hue, saturation, value)).convert('RGB')


def by_pillow(image: np.ndarray, rng: random.Random) -> np.ndarray:
    """One view, float [h, w, 3] in [0, 1]."""
    view = cropped(Image.fromarray(image), rng)
    if rng.random() < 0.5:
        view = view.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.8:
        kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        changes = [lambda x, kind=kind: kind(x).enhance(rng.uniform(0.6, 1.4)) for kind in kinds]
        changes.append(lambda x: turned(x, rng.uniform(-0.1, 0.1)))
        rng.shuffle(changes)
        for change in changes:
            view = change(view)
    if rng.random() < 0.2:
        view = view.convert('L').convert('RGB')
    return np.asarray(view, np.float32) / 255


def found(one: np.ndarray, two: np.ndarray) -> float:
    """How often the nearest second view is a first one's own."""
    one, two = (a.reshape(len(a), -1)[:CANDIDATES] for a in (one, two))
    middle = np.concatenate([one, two]).mean(0)
    one, two = one - middle, two - middle
    distance = np.sum(two**2, 1) - 2 * one @ two.T
    return float(np.mean(distance.argmin(1) == np.arange(len(one))))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--images', type=int, default=1500)
    options = parser.parse_args()
    experiment = load(str(ROOT / 'experiments' / 'moco_v2_cifar10.py'))
    recipe, n = experiment.recipe, options.images
    source = open_source(experiment.data.name, f'train[:{n}]')
    batch = next(iter(batches(source, recipe, Stream(batch=n, seed=0), stop=1)))

    @jax.jit
    def colored(batch):
        return recipe.denormalize(recipe.on_device(with_keys(batch, jax.random.key(0)))['image'])

    # As they are evaluated: whole, at their own size.
    images, rng = next(iter(in_order(source, recipe, n)))['image'], random.Random(0)
    pillow = np.stack([[by_pillow(image, rng) for _ in range(2)] for image in images])
    print(header(), f'\n{n} images\n', sep='')
    print('| views | mean | std | grey | squared difference of a pair | partner is nearest |')
    print('| --- | ---: | ---: | ---: | ---: | ---: |')
    for name, views in (('ours', np.asarray(colored(batch))), ('Pillow', pillow)):
        one, two = views[:, 0], views[:, 1]
        grey = np.mean(np.max(np.ptp(views, axis=-1), axis=(2, 3)) < 1e-3)
        figures = (views.mean(), views.std(), grey, np.mean((one - two) ** 2), found(one, two))
        print(f'| {name} | {" | ".join(f"{figure:.3f}" for figure in figures)} |')
    return 0


if __name__ == '__main__':
    sys.exit(main())
