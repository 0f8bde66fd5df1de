"""Sizes of data sets that are planned for where they are not: examples, classes, channels."""

import dataclasses
from collections.abc import Mapping

from ssljax.data import splits


@dataclasses.dataclass(frozen=True)
class Facts:
    """What a split of a data set holds.

    Attributes:
        examples: number of images.
        classes: number of classes, None without labels.
        channels: of an image.
    """

    examples: int
    classes: int | None
    channels: int


@dataclasses.dataclass(frozen=True)
class _Set:
    sizes: Mapping[str, int]
    classes: int
    channels: int


SETS = {
    'imagenet2012': _Set({'train': 1_281_167, 'validation': 50_000}, 1000, 3),
    'cifar10': _Set({'train': 50_000, 'test': 10_000}, 10, 3),
    'cifar100': _Set({'train': 50_000, 'test': 10_000}, 100, 3),
    'fashion_mnist': _Set({'train': 60_000, 'test': 10_000}, 10, 1),
    'fashion_mnist_10k': _Set({'train': 7_000, 'validation': 1_000, 'test': 2_000}, 10, 1),
}
"""By the name that `open_source` takes."""


def facts(name: str, split: str) -> Facts | None:
    """What a split of a well-known data set holds; None if the set is not in the table.

    Args:
        name: with or without a version (`cifar10:3.0.2`).
        split: in TFDS's syntax, such as `train[:99%]`.

    Raises:
        ValueError: if the set has no such split.
    """
    found = SETS.get(name.partition(':')[0])
    if found is None:
        return None
    ranges = splits.resolve(name, split, splits.table(found.sizes))
    examples = sum(stop - start for _, start, stop in ranges)
    return Facts(examples, found.classes, found.channels)
