"""An experiment: everything that defines a run, as one frozen value."""

import dataclasses
import math
from collections.abc import Callable

from ssljax.core import Method, Run
from ssljax.optim import ByPath, Optimizer
from ssljax.views.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class Data:
    """Which images, by name and split. No image may be in two of the splits.

    Attributes:
        name: `fashion_mnist_10k`, `fashion_mnist` (its idx files), a prepared TFDS data set
            (`cifar10`), a folder of images (`folder:PATH`) or arrays (`arrays:FILE.npz`).
        train: split to train on; for a folder, a subfolder. TFDS slices (`train[:90%]`) work.
        validation: split for everything that is looked at or chosen while training.
        test: split that is looked at once, by `ssljax evaluate`.
        max_corrupt: share of undecodable images over which a run stops. In training, of those that
            this process has read since it started, which count as 10,000 (or all, of fewer) until
            they are more; where a split is read from end to end, of all.
    """

    name: str = 'fashion_mnist_10k'
    train: str = 'train'
    validation: str | None = 'validation'
    test: str = 'test'
    max_corrupt: float = 0.01

    def check(self, shared: Callable[[str, str], int], options: str = '--data.') -> None:
        """Raise ValueError, naming them, if two of the splits have images in common.

        Args:
            shared: the number of images that two splits have in common.
            options: what the options that set the splits begin with.
        """
        for one, other, why in OVERLAPS:
            a, b = getattr(self, one), getattr(self, other)
            if None in (a, b):
                continue
            if a == b:
                found = f'{one} and {other} are both {a!r}'
            elif count := shared(a, b):
                found = f'{one} ({a!r}) and {other} ({b!r}) share {count:,} images'
            else:
                continue
            raise ValueError(
                f'{found}, so that {why}; set {options}{one} to a split that shares nothing with it'
            )


OVERLAPS = (
    ('validation', 'test', 'what is chosen on validation would be chosen on test'),
    ('train', 'test', 'what learns from train would be scored on images that it has seen'),
    ('train', 'validation', 'an image would be its own nearest neighbour'),
)
"""Pairs of splits that may share no image, and what would come of it."""


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What is measured while training, on the validation split.

    Attributes:
        every: epochs between evaluations; 0 turns them off.
        bank: labelled training images at most, spread evenly, that neighbours and probe are taken
            from.
        queries: validation images at most, spread evenly.
        k: neighbours of the online kNN.
        batch: images a batch.
    """

    every: float = 1.0
    bank: int = 10_000
    queries: int = 5_000
    k: int = 20
    batch: int = 256


@dataclasses.dataclass(frozen=True)
class Checkpointing:
    """When the state is saved and what is kept.

    Attributes:
        every: steps between checkpoints; one is saved at the end and on SIGTERM too.
        keep_last: number of latest checkpoints kept.
        keep_best: number of best ones (by online kNN on validation) kept beside them.
    """

    every: int = 500
    keep_last: int = 2
    keep_best: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Experiment:
    """A run, completely: the same experiment gives the same bits on the same devices.

    Attributes:
        method: what is learned.
        recipe: the views it is learned from.
        optimizer: how it is learned.
        data: the images.
        batch: global batch size, in images.
        epochs: passes over the training images; give these or `steps`.
        steps: optimizer steps; give these or `epochs`.
        microbatches: parts that the networks see the batch in, one after the other, where the whole
            does not fit in memory. The loss is still that of the whole batch, with all its
            negatives; BatchNorm sees a part at a time.
        evaluation: what is measured on the way.
        checkpoint: what is saved on the way.
        fsdp: number of devices that parameters and optimizer state are split over.
        log_every: steps between lines of `metrics.jsonl`.
        max_nonfinite: steps with a non-finite loss or gradient that are skipped; one more stops.
        init_from: a run's folder or an exported encoder to take the weights from.
        seed: of everything random, in [0, 2**32).
    """

    method: Method
    recipe: Recipe
    optimizer: Optimizer | ByPath
    data: Data = dataclasses.field(default_factory=Data)
    batch: int = 256
    epochs: float | None = None
    steps: int | None = None
    microbatches: int = 1
    evaluation: Evaluation = dataclasses.field(default_factory=Evaluation)
    checkpoint: Checkpointing = dataclasses.field(default_factory=Checkpointing)
    fsdp: int = 1
    log_every: int = 10
    max_nonfinite: int = 10
    init_from: str | None = None
    seed: int = 0

    def run(self, examples: int) -> Run:
        """The sizes of this experiment on so many training examples.

        Raises:
            ValueError: if the batch does not fit the data set or the length is not given once.
        """
        for name, value in {
            'batch': self.batch,
            'microbatches': self.microbatches,
            'log_every': self.log_every,
            'checkpoint.every': self.checkpoint.every,
            'checkpoint.keep_last': self.checkpoint.keep_last,
            'evaluation.batch': self.evaluation.batch,
            'evaluation.k': self.evaluation.k,
            'evaluation.bank': self.evaluation.bank,
            'evaluation.queries': self.evaluation.queries,
        }.items():
            if value < 1:
                raise ValueError(f'{name} is {value}; it must be at least 1')
        for name, value in {
            'checkpoint.keep_best': self.checkpoint.keep_best,
            'max_nonfinite': self.max_nonfinite,
        }.items():
            if value < 0:
                raise ValueError(f'{name} is {value}; it must be 0 or more')
        for name, value in {
            'evaluation.every': self.evaluation.every,
            'epochs': 0.0 if self.epochs is None else self.epochs,
        }.items():
            if not 0 <= value < math.inf:
                raise ValueError(f'{name} is {value}; it must be 0 or more, and finite')
        if not 0 <= self.data.max_corrupt <= 1:
            raise ValueError(f'data.max_corrupt is {self.data.max_corrupt}; it is a share, 0 to 1')
        if not 0 <= self.seed < 2**32:
            raise ValueError(f'seed is {self.seed}; it must be in [0, 2**32)')
        if self.data.validation is not None and self.data.validation == self.data.test:
            raise ValueError(
                f'validation and test are both {self.data.test!r}; what is chosen while training '
                'must not be chosen on test: set --data.validation to a part of the training split'
            )
        if self.batch > examples:
            raise ValueError(
                f'a batch of {self.batch} is larger than the data set of {examples} images; '
                f'use --batch {examples} or less'
            )
        if (self.epochs is None) == (self.steps is None):
            raise ValueError(
                f'epochs={self.epochs} and steps={self.steps}; give the length of the run as one '
                'of them and None for the other'
            )
        if self.batch % self.microbatches:
            raise ValueError(
                f'a batch of {self.batch} cannot be split evenly into {self.microbatches} '
                f'microbatches; use a multiple of {self.microbatches}'
            )
        per_epoch = examples // self.batch
        steps = round(self.epochs * per_epoch) if self.steps is None else self.steps
        if steps < 1:
            raise ValueError(f'the run has {steps} steps; it needs at least 1')
        return Run(examples=examples, batch=self.batch, steps=steps, steps_per_epoch=per_epoch)

    def smoke(self) -> 'Experiment':
        """The same experiment shrunk to seconds: small made images, small networks, 3 steps.

        Networks and recipes that can be shrunk say so by a method `smoke`.
        """
        small = shrink(self)
        return dataclasses.replace(
            small,
            data=Data(name='made_images', train='train[:64]'),
            evaluation=dataclasses.replace(self.evaluation, every=1.0, batch=16, k=5),
            checkpoint=dataclasses.replace(self.checkpoint, every=2),
            batch=16,
            microbatches=min(self.microbatches, 2),
            epochs=None,
            steps=3,
            log_every=1,
        )


FREE_ON_RESUME = (
    'evaluation',
    'checkpoint',
    'fsdp',
    'log_every',
    'max_nonfinite',
    'data.max_corrupt',
)
"""Fields that may change between the parts of one run: none of them changes what is computed.
(`fsdp` changes where, and so the order of sums.)"""


def shrink(value):
    """`value` with every part of it that has a method `smoke` replaced by its result.

    A method's parts shrink first: its own `smoke`, if it has one, is for its numbers.
    """
    changes = {}
    for field in dataclasses.fields(value):
        part = getattr(value, field.name, None)
        if isinstance(part, Method):
            part = changes[field.name] = shrink(part)
        if field.init and hasattr(part, 'smoke'):
            changes[field.name] = part.smoke()
        elif isinstance(part, Optimizer):
            changes[field.name] = shrink(part)
    return dataclasses.replace(value, **changes)
