"""A study: named variants of an experiment, each run over seeds and evaluated alike."""

import dataclasses
import difflib
import re
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

from flax import linen as nn

from ssljax.experiment import Experiment

Measure = Literal['linear', 'few', 'knn']
"""Probe on all labels, probe on a few labels a class, nearest neighbours: top-1 on test."""

_NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._+-]*')


@dataclasses.dataclass(frozen=True)
class Variant:
    """One line of a study's table.

    Attributes:
        name: of the line, and of the folder of its runs.
        experiment: what is run; its seed is replaced by the study's.
        factors: what sets it apart, by name: `(('temperature', 0.1), ('head', 'linear'))`. Where
            the variants of a study have two, its figure is a grid of their values.
        seeds: its own seeds; None for the study's.
    """

    name: str
    experiment: Experiment
    factors: tuple[tuple[str, str | int | float], ...] = ()
    seeds: tuple[int, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Run:
    """One variant with one seed.

    Attributes:
        variant: which.
        seed: of everything random in it.
    """

    variant: Variant
    seed: int

    @property
    def name(self) -> str:
        """For people, and as a path below the study's runs."""
        return f'{self.variant.name}/{self.seed}'

    @property
    def experiment(self) -> Experiment:
        """The variant's, with this seed."""
        return dataclasses.replace(self.variant.experiment, seed=self.seed)


@dataclasses.dataclass(frozen=True)
class Study:
    """Variants that may be compared: the same images, the same evaluation, the last checkpoint.

    Attributes:
        title: heads the table and the figure.
        variants: in the order of the table.
        seeds: of every variant that has none of its own.
        probe_split: split that probes are fitted to and neighbours taken from, in every row; None
            for the split trained on. A slice (`train[:10000]`) makes large sets quick.
        references: variants whose runs are shown beside their encoder at random, one line for each,
            and raw pixels, one line in all; None for the first variant.
        figure: measures that the figure shows, a panel each.
        note: further words below the table.

    Raises:
        ValueError: there is no variant or no seed, a name comes twice, is unknown or cannot be that
            of a folder, or the variants are not evaluated on the same images.
    """

    title: str
    variants: tuple[Variant, ...]
    seeds: tuple[int, ...] = (0,)
    probe_split: str | None = None
    references: tuple[str, ...] | None = None
    figure: tuple[Measure, ...] = ('linear', 'knn')
    note: str = ''

    def __post_init__(self):
        if not self.variants:
            raise ValueError(f'the study {self.title!r} has no variants; give it at least one')
        names = [variant.name for variant in self.variants]
        for name in names:
            if not _NAME.fullmatch(name):
                raise ValueError(
                    f'a variant is called {name!r}, which names its folder too; use letters, '
                    'digits and . _ + - only, a letter or digit first'
                )
            # Folders that differ in case only are one folder on some disks.
            if [other.lower() for other in names].count(name.lower()) > 1:
                raise ValueError(f'two variants are called {name!r}; give each its own name')
        for variant in self.variants:
            seeds = self.seeds_of(variant)
            if not seeds or len(set(seeds)) < len(seeds):
                raise ValueError(
                    f'the seeds of variant {variant.name!r} are {seeds}; give one or more, each '
                    'once'
                )
        if not self.figure or not set(self.figure) <= set(get_args(Measure)):
            raise ValueError(
                f'the figure shows {self.figure}; name one or more of '
                f'{", ".join(get_args(Measure))}'
            )
        self.named(self.references or ())
        self._check_images()

    def _check_images(self) -> None:
        first = self.variants[0]
        for field in ('name', 'validation', 'test', *(() if self.probe_split else ('train',))):
            for variant in self.variants:
                one, other = (getattr(v.experiment.data, field) for v in (first, variant))
                if one != other:
                    raise ValueError(
                        f'variant {first.name!r} has data.{field} {one!r} and {variant.name!r} '
                        f'{other!r}, so that their scores are not of the same images; make them '
                        'equal' + (', or set probe_split' if field == 'train' else '')
                    )

    def seeds_of(self, variant: Variant) -> tuple[int, ...]:
        """The seeds that a variant is run with."""
        return self.seeds if variant.seeds is None else variant.seeds

    def named(self, names: Iterable[str]) -> tuple[Variant, ...]:
        """The variants of these names, in the study's order.

        Raises:
            ValueError: there is none of that name (with the near ones).
        """
        known, wanted = {variant.name: variant for variant in self.variants}, set(names)
        for name in sorted(wanted - known.keys()):
            near = difflib.get_close_matches(name, known, n=3)
            raise ValueError(
                f'the study {self.title!r} has no variant {name!r}; '
                + (f'did you mean {" or ".join(near)}?' if near else f'it has {", ".join(known)}')
            )
        return tuple(variant for variant in self.variants if variant.name in wanted)

    def runs(self, only: Sequence[str] = ()) -> tuple[Run, ...]:
        """All runs, or those of the variants named, every variant's first seed first."""
        chosen = self.named(only) if only else self.variants
        seeds = [self.seeds_of(variant) for variant in chosen]
        return tuple(
            Run(variant, own[i])
            for i in range(max(map(len, seeds)))
            for variant, own in zip(chosen, seeds, strict=True)
            if i < len(own)
        )

    def has_references(self, variant: Variant) -> bool:
        """Whether random weights and raw pixels are evaluated beside this variant's runs."""
        names = (self.variants[0].name,) if self.references is None else self.references
        return variant.name in names

    def grid(self) -> dict[str, tuple[str | int | float, ...]] | None:
        """The values of both factors, in order of appearance, where two factors span a grid.

        They do if every variant that has factors has two, of the same names; None otherwise.
        """
        factors = [dict(variant.factors) for variant in self.variants if variant.factors]
        names = {tuple(own) for own in factors}
        if len(names) != 1 or len(next(iter(names))) != 2:
            return None
        return {name: tuple(dict.fromkeys(own[name] for own in factors)) for name in names.pop()}

    def smoke(self) -> 'Study':
        """The same study with every experiment shrunk to seconds, on made images."""
        small = (
            dataclasses.replace(variant, experiment=variant.experiment.smoke())
            for variant in self.variants
        )
        return dataclasses.replace(self, variants=tuple(small), probe_split=None)


def lasting(experiment: Experiment, images: int, examples: int) -> Experiment:
    """The experiment over another number of images, so that variants of any batch draw as many.

    Its steps are those that come nearest. What optimizer and method place in the run by epochs
    keeps its share of it: fields called `epochs`, `..._epochs` and `..._from`, milestones, what is
    frozen. Periods (`every`) stay. Validation is looked at once, at the end.

    Args:
        experiment: of any length.
        images: records to draw.
        examples: number of training images there are.
    """
    steps = max(1, round(images / experiment.batch))
    share = steps / experiment.run(examples).steps
    # In passes of whole batches: what a pass drops adds up.
    behind = (steps + 1) / experiment.run(examples).steps_per_epoch
    once = dataclasses.replace(experiment.evaluation, every=behind)
    return dataclasses.replace(
        experiment,
        method=_stretched(experiment.method, share),
        optimizer=_stretched(experiment.optimizer, share),
        steps=steps,
        epochs=None,
        evaluation=once,
    )


def _stretched(value: Any, share: float) -> Any:
    """A dataclass, or a tuple of them, with all its epochs multiplied."""
    if type(value) is tuple:
        return tuple(_stretched(item, share) for item in value)
    if not dataclasses.is_dataclass(value) or isinstance(value, nn.Module):
        return value
    changes = {}
    for field in dataclasses.fields(value):
        old = getattr(value, field.name)
        if re.search('(^|_)epochs$|_from$', field.name) and isinstance(old, int | float):
            changes[field.name] = share * old
        elif field.name == 'milestones':
            changes[field.name] = tuple(share * epoch for epoch in old)
        elif field.name == 'frozen':
            changes[field.name] = tuple((pattern, share * epochs) for pattern, epochs in old)
        else:
            changes[field.name] = _stretched(old, share)
    return dataclasses.replace(value, **changes)
