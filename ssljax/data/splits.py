"""Split syntax as TFDS has it, `train[:80%]+test`, for every kind of source."""

import math
from collections.abc import Callable, Mapping
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
        ValueError: if the syntax is wrong, the split unknown, a range outside it or empty, or if
            two ranges overlap.
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
    for number, (key, start, stop) in enumerate(ranges):
        for other, first, last in ranges[:number]:
            if key == other and max(start, first) < min(stop, last):
                raise ValueError(
                    f'split {split!r} of {name} names examples twice: [{first}:{last}] and '
                    f'[{start}:{stop}] of {key!r} overlap'
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


def shared(one: str, other: str, size: Callable[[str], int]) -> int:
    """How many examples two splits of one data set have in common.

    Slices by shard (`train[:3shard]`) are compared with slices by shard and with whole splits; how
    they lie to other slices is not known, and counts as apart.

    Args:
        one: a split, such as `train[:80%]`.
        other: likewise.
        size: the number of examples of a split. It is not asked where any number would do: of
            different splits, and of slices that are apart in all (`[:80%]` and `[80%:]`).

    Raises:
        ValueError: if the syntax is wrong or a slice outside its split; what `size` raises.
    """
    parts = [{part.strip() for part in split.split('+')} for split in (one, other)]
    if 'all' in parts[0]:
        return size(other)
    if 'all' in parts[1]:
        return size(one)
    first, second = ([_slice(part) for part in found] for found in parts)
    return sum(_common(a, b, size) for a in first for b in second if a.split_name == b.split_name)


def _slice(part: str) -> Any:
    import tensorflow_datasets as tfds

    return tfds.core.ReadInstruction.from_spec(part)


def _common(a: Any, b: Any, size: Callable[[str], int]) -> int:
    """Examples in both of two slices (`tfds.core.ReadInstruction`) of the same split."""
    name = a.split_name
    units = {part.unit for part in (a, b) if (part.from_, part.to) != (None, None)}
    starts = [part.from_ or 0 for part in (a, b)]
    stops = [math.inf if part.to is None else part.to for part in (a, b)]
    start, stop = max(starts), min(stops)
    alike = len(units) < 2 and min(*starts, *stops) >= 0
    if alike and start >= stop:
        return 0
    if 'shard' in units:
        end = '' if stop == math.inf else f'{stop}shard'
        return size(f'{name}[{start}shard:{end}]') if alike else 0
    number = size(name)
    known = table({name: number})
    (first,), (second,) = a.to_absolute(known), b.to_absolute(known)
    start = max(first.from_ or 0, second.from_ or 0)
    stop = min(number if part.to is None else part.to for part in (first, second))
    return max(0, stop - start)
