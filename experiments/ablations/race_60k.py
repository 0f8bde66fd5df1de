"""The race on all of Fashion-MNIST: 100,000 images drawn of 54,000, 10,000 test images.

    ssljax sweep experiments/ablations/race_60k.py

Needs the whole set (`apt-get install dataset-fashion-mnist`, or a folder with its files in
SSLJAX_FASHION_MNIST). See `race.py`: here every image is seen about twice instead of 14 times, and
the standard error of a score is 0.36 points at 85 per cent instead of 0.8. Probes are fitted to
10,000 of the training images, which takes a few seconds where all of them would take minutes.
"""

import pathlib
import runpy

from ssljax.study import Study

RACE = runpy.run_path(str(pathlib.Path(__file__).parent / 'race.py'))


def study() -> Study:
    """The race on the whole set."""
    return Study(
        title='Race: 100,000 images drawn of 54,000',
        variants=RACE['variants'](
            examples=54_000,
            name='fashion_mnist',
            train='train[:54000]',
            validation='train[54000:]',
            test='test',
        ),
        probe_split='train[:10000]',
        references=RACE['references'](),
    )
