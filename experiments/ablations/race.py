"""Every method on Fashion-MNIST from the same 100,000 images drawn: one network, one evaluation.

    ssljax sweep experiments/ablations/race.py
    ssljax sweep experiments/ablations/race.py --only simclr byol     # some of it

A variant for every `experiments/*_fashion_mnist.py`, as it stands there, with its own batch,
learning rate and views, cut to 100,000 images drawn; SimCLR's is `simclr_common_fashion_mnist.py`.
Warmups keep their share of the run. An image drawn may be seen several times: SimCLR makes two
views of it, rotation prediction turns it four ways; the table has the seconds beside the accuracy.
`supervised` is the upper reference, networks at random and raw pixels are the lower ones. SimCLR
and MoCo v2 (and so random weights) have three seeds, the others one: what differs by less than
their spread is a tie.

On the embedded 7,000 / 1,000 / 2,000 images, so that anybody can run it: 14 passes over each image.
The standard error of a score on 2,000 images is 0.8 points at 85 per cent; `race_60k.py` is the
same race with 10,000 test images, for those who have the whole set.
"""

import dataclasses
import pathlib

from ssljax.definitions import load_experiment
from ssljax.experiment import Experiment
from ssljax.nets.small import SmallResNet
from ssljax.study import Study, Variant, lasting

IMAGES = 100_000
EXAMPLES = 7_000
FILES = sorted(pathlib.Path(__file__).parents[1].glob('*_fashion_mnist.py'))
REPEATED = ('simclr', 'moco_v2')
SEEDS = (0, 1, 2)


def study() -> Study:
    """The race on the embedded images."""
    return Study(
        title='Race: 100,000 images drawn of 7,000',
        variants=variants(),
        references=references(),
    )


def variants(examples: int = EXAMPLES, **data: str) -> tuple[Variant, ...]:
    """A variant for every file, by name, the one that has labels last.

    Args:
        examples: number of training images.
        data: fields of `Data` to replace.
    """
    found = {file.stem.removesuffix('_fashion_mnist'): load_experiment(file) for file in FILES}
    # The quickstart has a network and views of its own, which the other methods did not get.
    found['simclr'] = found.pop('simclr_common')
    if 'context_encoder' in found:
        found['context_encoder_l2'] = without_discriminator(found['context_encoder'])
    names = sorted(found, key=lambda name: (name == 'supervised', name))

    def cut(experiment: Experiment) -> Experiment:
        other = dataclasses.replace(experiment.data, **data)
        return lasting(dataclasses.replace(experiment, data=other), IMAGES, examples)

    seeds = {name: SEEDS for name in REPEATED}
    return tuple(Variant(name, cut(found[name]), seeds=seeds.get(name)) for name in names)


def without_discriminator(experiment: Experiment) -> Experiment:
    """The context encoder by squared error alone: the paper's own recipe for features."""
    method = dataclasses.replace(experiment.method, adversarial_weight=0.0)
    return dataclasses.replace(experiment, method=method, optimizer=experiment.optimizer.default)


def references() -> tuple[str, ...]:
    """The variants shown at random too: one of the common network, and those with another."""
    common = lambda variant: isinstance(variant.experiment.method.encoder, SmallResNet)
    return ('simclr', *(variant.name for variant in variants() if not common(variant)))
