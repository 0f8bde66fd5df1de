"""MoCo v2 on Fashion-MNIST: momentum x length of the queue, 12 runs of 15 epochs.

    ssljax sweep experiments/ablations/moco_momentum_queue.py

Figure 3 and the table on momentum of arXiv 1911.05722, as one grid. With momentum 0 the keys are
made by the encoder itself, and only those in the queue are by older ones. Queues are those of 7,000
images: from one batch to more than half an epoch.
"""

import dataclasses
import pathlib

from ssljax.definitions import load_experiment
from ssljax.memory import Queue
from ssljax.momentum import Momentum
from ssljax.study import Study, Variant, lasting

BASE = pathlib.Path(__file__).parents[1] / 'moco_v2_fashion_mnist.py'
EXAMPLES, EPOCHS = 7_000, 15
MOMENTA = (0.0, 0.9, 0.99, 0.999)
LENGTHS = (256, 1024, 4096)


def study() -> Study:
    """The grid."""
    base = lasting(load_experiment(BASE), EPOCHS * EXAMPLES, EXAMPLES)

    def variant(momentum: float, length: int) -> Variant:
        method = dataclasses.replace(
            base.method, momentum=Momentum(momentum, 'constant'), queue=Queue(length)
        )
        return Variant(
            f'm{momentum}-k{length}',
            dataclasses.replace(base, method=method),
            (('momentum', momentum), ('queue', length)),
        )

    return Study(
        title='MoCo v2: momentum x queue length',
        variants=tuple(variant(m, k) for m in MOMENTA for k in LENGTHS),
    )
