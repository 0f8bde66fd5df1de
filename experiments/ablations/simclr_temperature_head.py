"""SimCLR on Fashion-MNIST: temperature x projection head, 12 runs of 15 epochs.

    ssljax sweep experiments/ablations/simclr_temperature_head.py

The two ablations of the paper (arXiv 2002.05709, table 5 and figure 8) as one grid: is the best
temperature the same with and without a head? The probe always sees the features below the head.
"""

import dataclasses
import pathlib

from ssljax.definitions import load_experiment
from ssljax.nets.heads import NoHead, ProjectionHead
from ssljax.study import Study, Variant, lasting

BASE = pathlib.Path(__file__).parents[1] / 'simclr_common_fashion_mnist.py'
EXAMPLES, EPOCHS = 7_000, 15
TEMPERATURES = (0.05, 0.1, 0.5, 1.0)
HEADS = {
    'none': NoHead(),
    'linear': ProjectionHead(widths=(64,), last_norm='none'),
    'MLP': ProjectionHead(widths=(256, 64), last_norm='none'),
}


def study() -> Study:
    """The grid."""
    base = lasting(load_experiment(BASE), EPOCHS * EXAMPLES, EXAMPLES)

    def variant(head: str, temperature: float) -> Variant:
        method = dataclasses.replace(base.method, head=HEADS[head], temperature=temperature)
        return Variant(
            f'{head}-t{temperature}',
            dataclasses.replace(base, method=method),
            (('head', head), ('temperature', temperature)),
        )

    return Study(
        title='SimCLR: projection head x temperature',
        variants=tuple(variant(head, t) for head in HEADS for t in TEMPERATURES),
    )
