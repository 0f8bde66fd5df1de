"""SimCLR on Fashion-MNIST: its views by one and by two transformations, 17 runs of 15 epochs.

    ssljax sweep experiments/ablations/simclr_views.py
    ssljax sweep experiments/ablations/simclr_views.py --only crop jitter crop-jitter all   # a few

Figure 5 of arXiv 2002.05709 with what grey images of 28 pixels allow: crop, flip, jitter of
brightness and contrast, blur, solarisation. The diagonal has one transformation, the rest two. They
come in the order of the recipe (crop, flip, jitter, blur, solarisation), so that a pair is one run
and not two. Two differences from the figure: both views are transformed, not one, and nothing is
cropped first.
"""

import dataclasses
import itertools
import pathlib

from ssljax.definitions import load_experiment
from ssljax.experiment import Experiment
from ssljax.study import Study, Variant, lasting
from ssljax.views.byol import BYOLViews

BASE = pathlib.Path(__file__).parents[1] / 'simclr_fashion_mnist.py'
EXAMPLES, EPOCHS = 7_000, 15
OFF = {
    'crop': {'scale': (1.0, 1.0), 'ratio': (1.0, 1.0)},
    'flip': {'flip': 0.0},
    'jitter': {'jitter': 0.0},
    'blur': {'blur': (0.0, 0.0)},
    'solarise': {'solarize': (0.0, 0.0)},
}
"""What switches a transformation off, in the order in which they are applied."""


def study() -> Study:
    """Singles, pairs, nothing at all and everything."""
    base = lasting(load_experiment(BASE), EPOCHS * EXAMPLES, EXAMPLES)
    names = tuple(OFF)
    pairs = [(name, name) for name in names] + list(itertools.combinations(names, 2))
    pairs.sort(key=lambda pair: (names.index(pair[0]), names.index(pair[1])))
    variants = [
        Variant(
            '-'.join(dict.fromkeys(pair)),
            with_views(base, set(pair)),
            (('first', pair[0]), ('second', pair[1])),
        )
        for pair in pairs
    ]
    variants += [
        Variant('all', with_views(base, set(names))),
        Variant('no', with_views(base, set())),
    ]
    return Study(title='SimCLR: composition of views', variants=tuple(variants))


def with_views(base: Experiment, used: set[str]) -> Experiment:
    """The experiment with the transformations named and no others."""
    full = BYOLViews(
        size=28,
        scale=(0.3, 1.0),
        brightness=0.4,
        contrast=0.4,
        saturation=0.0,
        hue=0.0,
        gray=0.0,
        blur=(0.5, 0.5),
        solarize=(0.5, 0.5),
        sigma=(0.1, 1.0),
        mean=base.recipe.mean,
        std=base.recipe.std,
        evaluation_crop=1.0,
        interpolation='bilinear',
    )
    off = {field: value for name in OFF if name not in used for field, value in OFF[name].items()}
    return dataclasses.replace(base, recipe=dataclasses.replace(full, **off))
