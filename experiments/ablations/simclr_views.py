"""SimCLR on Fashion-MNIST: its views by one and by two transformations, 50 runs of 15 epochs.

    ssljax sweep experiments/ablations/simclr_views.py
    ssljax sweep experiments/ablations/simclr_views.py --only none crop color crop-color color-crop

Figure 5 of arXiv 2002.05709: seven transformations, each alone (the diagonal) and each behind each
other one, of one view; the other view is the image as it is. Differences from the figure: images of
28 pixels are not cropped first; they are grey, so that `color` is brightness and contrast; 15
epochs of 7,000 images instead of 100 of ImageNet. `none` has two equal views, and is not in the
figure.
"""

import dataclasses
import itertools
import pathlib

from ssljax.definitions import load_experiment
from ssljax.study import Study, Variant, lasting
from ssljax.views.composition import TRANSFORMATIONS, CompositionViews, Transformation

BASE = pathlib.Path(__file__).parents[1] / 'simclr_common_fashion_mnist.py'
EXAMPLES, EPOCHS = 7_000, 15


def study() -> Study:
    """The grid, and two equal views."""
    base = lasting(load_experiment(BASE), EPOCHS * EXAMPLES, EXAMPLES)

    def variant(first: Transformation, second: Transformation) -> Variant:
        names = (first,) if first == second else (first, second)
        views = dataclasses.replace(recipe, transformations=names)
        return Variant(
            '-'.join(names),
            dataclasses.replace(base, recipe=views),
            (('first', first), ('second', second)),
        )

    recipe = CompositionViews(
        size=28,
        first_scale=(1.0, 1.0),
        scale=(0.3, 1.0),
        brightness=0.4,
        contrast=0.4,
        saturation=0.0,
        hue=0.0,
        gray=0.0,
        sigma=(0.1, 1.0),
        mean=base.recipe.mean,
        std=base.recipe.std,
        evaluation_crop=1.0,
        interpolation='bilinear',
    )
    none = Variant('none', dataclasses.replace(base, recipe=recipe))
    pairs = itertools.product(TRANSFORMATIONS, repeat=2)
    return Study(
        title='SimCLR: composition of views',
        variants=(*(variant(*pair) for pair in pairs), none),
    )
