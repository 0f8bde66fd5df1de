"""SimCLR and MoCo v2 on CIFAR-10 for 40 epochs with a small network: 2 runs, and their curves.

    ssljax sweep experiments/ablations/cifar10_long.py

As long as two CPU cores allow: about two hours both, side by side in two shells, where
`simclr_cifar10.py` and `moco_v2_cifar10.py` have the papers' ResNet-18 and hundreds of epochs.
Networks, temperatures, queue and optimizer are those of the Fashion-MNIST files, data and views
those of the CIFAR-10 files. Probes are fitted to the first 10,000 training images, in every row.
"""

import dataclasses
import pathlib

from ssljax.definitions import load_experiment
from ssljax.experiment import Checkpointing, Evaluation
from ssljax.study import Study, Variant

FILES = pathlib.Path(__file__).parents[1]
EPOCHS = 40

SMALL = {'simclr': 'simclr_common_fashion_mnist.py', 'moco_v2': 'moco_v2_fashion_mnist.py'}


def study() -> Study:
    """Both, with random weights and raw pixels beside them."""

    def variant(name: str) -> Variant:
        small = load_experiment(FILES / SMALL[name])
        colour = load_experiment(FILES / f'{name}_cifar10.py')
        experiment = dataclasses.replace(
            small,
            recipe=colour.recipe,
            data=colour.data,
            epochs=float(EPOCHS),
            evaluation=Evaluation(every=2.0, k=200),
            checkpoint=Checkpointing(every=175),
        )
        return Variant(name, experiment)

    return Study(
        title=f'CIFAR-10, {EPOCHS} epochs of a small network',
        variants=(variant('simclr'), variant('moco_v2')),
        probe_split='train[:10000]',
    )
