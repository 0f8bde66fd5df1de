"""An experiment made ready: data opened, parts checked, functions built. Nothing has run yet."""

import dataclasses
import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from ssljax.core import Run, Signature, TrainState, Tree
from ssljax.data import splits
from ssljax.data.known import Facts
from ssljax.data.pipeline import Stream
from ssljax.data.registry import open_source
from ssljax.data.sources import Source
from ssljax.experiment import Experiment
from ssljax.train.placement import Placement, make_mesh
from ssljax.train.step import Step, make_init, make_step


@dataclasses.dataclass(frozen=True)
class Session:
    """What the loop, the plan and the evaluation of one experiment share.

    Attributes:
        experiment: what is run.
        data: what its data and recipe deliver.
        run: its sizes.
        placement: its devices.
        source: the training images; None where only the state is of interest.
    """

    experiment: Experiment
    data: Signature
    run: Run
    placement: Placement
    source: Source | None = None

    @classmethod
    def open(cls, experiment: Experiment, devices: int | None = None) -> 'Session':
        """Opens the data and checks that all parts fit, before anything starts.

        Raises:
            ValueError: saying which part does not fit and what to change.
        """
        source = open_source(experiment.data.name, experiment.data.train)
        data = signature(experiment, source)
        planned = cls.planned(experiment, data, make_mesh(experiment.fsdp, devices))
        experiment.data.check(shared_images(experiment.data.name))
        return dataclasses.replace(planned, source=source)

    @classmethod
    def planned(cls, experiment: Experiment, data: Signature, mesh: Mesh) -> 'Session':
        """A session that knows its data only by signature and whose devices need not exist.

        Everything can be traced, lowered and compiled; all parts are checked, as by `open`.

        Raises:
            ValueError: saying which part does not fit and what to change.
        """
        run = experiment.run(data.examples)
        placement = Placement(mesh)
        placement.check(experiment.batch, experiment.microbatches)
        experiment.recipe.check(data.channels)
        _check_views(experiment, data)
        experiment.method.check(data, run)
        _check_parts(experiment)
        return cls(experiment, data, run, placement)

    @classmethod
    def without_data(cls, experiment: Experiment, data: Signature) -> 'Session':
        """A session for the state alone, held whole: the parts are not checked.

        It is on one device; in a run of several processes on all, as each of them needs a copy.
        """
        placement = Placement(make_mesh(devices=1 if jax.process_count() == 1 else None))
        return cls(experiment, data, experiment.run(data.examples), placement)

    @functools.cached_property
    def transform(self) -> optax.GradientTransformation:
        """The optimizer."""
        return self.experiment.optimizer.build(self.run)

    @functools.cached_property
    def example(self) -> Tree:
        """Shapes of a batch of two, as the pipeline delivers it."""
        return batch_shapes(self.data, 2)

    @functools.cached_property
    def abstract(self) -> TrainState:
        """Shapes, dtypes and shardings of the state."""
        return self.placement.abstract(self._init)

    @functools.cached_property
    def batch(self) -> Tree:
        """Shapes, dtypes and shardings of a batch as the step takes it."""
        at = self.placement.batch
        place = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=at)
        return jax.tree.map(place, batch_shapes(self.data, self.run.batch))

    @functools.cached_property
    def step(self) -> Step:
        """The compiled step; its state is donated."""
        experiment = self.experiment
        step = make_step(
            experiment.method,
            experiment.recipe,
            self.transform,
            experiment.optimizer.schedule(self.run),
            self.run,
            experiment.microbatches,
        )
        return self.placement.compile_step(step, self.abstract)

    def fresh(self) -> TrainState:
        """The state before the first step, each array made where it lives."""
        return self.placement.compile_init(self._init, self.abstract)()

    def takes(self, source: Source) -> Source:
        """The source, whose images have the channels that the networks were made for.

        Raises:
            ValueError: they have others.
        """
        if source.channels != self.data.channels:
            raise ValueError(
                f'the images of {source.name} have {source.channels} channels, those that the '
                f'encoder is trained on {self.data.channels}; store all in grey, or all in colour'
            )
        return source

    def stream(self) -> Stream:
        """Which batches this process reads."""
        return Stream(
            batch=self.run.batch,
            seed=self.experiment.seed,
            rows=self.placement.rows(self.run.batch),
            max_corrupt=self.experiment.data.max_corrupt,
        )

    @functools.cached_property
    def _init(self):
        experiment = self.experiment
        return make_init(
            experiment.method,
            experiment.recipe,
            self.transform,
            self.run,
            experiment.seed,
            self.example,
        )


def _check_views(experiment: Experiment, data: Signature) -> None:
    """Raise ValueError if the recipe makes views that the method would not look at."""
    method, recipe = experiment.method, experiment.recipe
    idle = [(name, made) for name, made in data.views if name not in method.uses]
    if idle:
        made = ', '.join(f'{count} x {name} of {size} pixels' for name, (count, size) in idle)
        taken = ' and '.join(method.uses)
        raise ValueError(
            f'{type(method).__name__} looks at views named {taken}; {type(recipe).__name__} also '
            f'makes {made}, for nothing. Use a recipe that makes {taken} alone, or switch those '
            'off if it can (--recipe.local_count 0)'
        )


def _check_parts(experiment: Experiment) -> None:
    """Raise ValueError if the method cannot part the micro-batches as it needs."""
    parts = experiment.microbatches
    unit = experiment.method.batch_unit(parts)
    if experiment.batch % unit:
        raise ValueError(
            f'{type(experiment.method).__name__} cannot part a batch of {experiment.batch} in '
            f'{parts} micro-batches as it needs; use a multiple of {unit}, or fewer --microbatches'
        )


def shared_images(name: str) -> Callable[[str, str], int]:
    """A function that counts the images that two splits of a data set have in common.

    It opens a split only where that takes its size, so that test stays closed as long as other
    splits are named for training. A split that is not there shares nothing: the test split need not
    be there yet, and whoever reads one that is not is told so.
    """

    def shared(one: str, other: str) -> int:
        try:
            return splits.shared(one, other, lambda split: open_source(name, split).examples)
        except ValueError:
            return 0

    return shared


def signature(experiment: Experiment, source: Source) -> Signature:
    """What data and recipe of an experiment deliver."""
    classes = None if source.class_names is None else len(source.class_names)
    return delivered(experiment, Facts(source.examples, classes, source.channels))


def delivered(experiment: Experiment, facts: Facts) -> Signature:
    """What the recipe of an experiment delivers of data that need not be there."""
    return Signature(
        views=tuple(experiment.recipe.views().items()),
        channels=facts.channels,
        classes=facts.classes,
        examples=facts.examples,
    )


def batch_shapes(data: Signature, examples: int) -> Tree:
    """Shapes and dtypes of a batch of `examples`."""
    shaped = jax.ShapeDtypeStruct
    batch = {
        name: shaped((examples, views, size, size, data.channels), jnp.uint8)
        for name, (views, size) in data.views
    }
    batch['index'] = shaped((examples,), jnp.int32)
    if data.classes is not None:
        batch['label'] = shaped((examples,), jnp.int32)
    return batch
