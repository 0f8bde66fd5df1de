"""Split syntax as TFDS has it, `train[:80%]+test`, for every kind of source."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int

Range = tuple[str, int, int]
"""A split's name, and the first and one past the last of its examples."""


def resolve(name: str, split: str, known: Any) -> list[Range]:
    """The ranges a split names.

    Args:
        name: of the data set, for messages.
        split: `train`, `train[:80%]`, `train[100:200]+test`, `all`, ...
        known: the splits there are: a `tfds.core.splits.SplitDict`, see `table`.

    Returns:
        The ranges in the order named, none of them empty.

    Raises:
        ValueError: if the syntax is wrong, the split unknown, or the range outside it or empty.
    """
    import tensorflow_datasets as tfds

    sizes = {key: info.num_examples for key, info in known.items()}
    listed = ', '.join(f'{key} ({size:,})' for key, size in sizes.items())
    try:
        named = tfds.core.ReadInstruction.from_spec(split).to_absolute(known)
    except (ValueError, NotImplementedError) as error:
        reason = str(error).splitlines()[-1].removesuffix('.')
        raise ValueError(
            f'split {split!r} of {name}: {reason}; '
            f'the splits are {listed}, with slices such as train[:80%]'
        ) from error
    ranges = [
        (part.splitname, part.from_ or 0, sizes[part.splitname] if part.to is None else part.to)
        for part in named
    ]
    for key, start, stop in ranges:
        if start >= stop:
            raise ValueError(
                f'split {split!r} of {name} is empty: [{start}:{stop}] of {key!r}; '
                f'the splits are {listed}'
            )
    return ranges


def table(sizes: Mapping[str, int]) -> Any:
    """The splits of a set that TFDS does not know: number of examples by name."""
    import tensorflow_datasets as tfds

    return tfds.core.splits.SplitDict(
        [
            tfds.core.SplitInfo(name=key, shard_lengths=[size], num_bytes=0)
            for key, size in sizes.items()
        ]
    )


def positions(ranges: list[Range], order: Mapping[str, np.ndarray]) -> Int[np.ndarray, '_']:
    """The records in the ranges, given for each split the indices of its records, in order."""
    return np.concatenate([order[key][start:stop] for key, start, stop in ranges])
