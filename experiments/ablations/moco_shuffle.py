"""MoCo v2 on Fashion-MNIST: shuffling BN on and off, by groups of BatchNorm, 15 epochs, 3 seeds.

    ssljax sweep experiments/ablations/moco_shuffle.py

Without shuffling, a query and its key are normalised in the same group of the batch, whose
statistics give the pair away (arXiv 1911.05722, figure A.1). With one group there is nothing to
shuffle: every key has the same statistics.
"""

import dataclasses
import pathlib

from ssljax.definitions import load_experiment
from ssljax.study import Study, Variant, lasting

BASE = pathlib.Path(__file__).parents[1] / 'moco_v2_fashion_mnist.py'
EXAMPLES, EPOCHS = 7_000, 15


def study() -> Study:
    """Shuffled, not shuffled, and nothing to shuffle."""
    base = lasting(load_experiment(BASE), EPOCHS * EXAMPLES, EXAMPLES)

    def variant(groups: int, shuffle: bool) -> Variant:
        encoder = base.method.encoder.clone(norm_groups=groups)
        method = dataclasses.replace(base.method, encoder=encoder, shuffle=shuffle)
        name = f'groups{groups}' + ('-shuffled' if shuffle else '')
        return Variant(name, dataclasses.replace(base, method=method))

    return Study(
        title='MoCo v2: shuffling BN',
        variants=(variant(8, True), variant(8, False), variant(1, False)),
        seeds=(0, 1, 2),
    )
