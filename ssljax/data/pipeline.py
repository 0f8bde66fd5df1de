"""Index to batch: batch t is a pure function of (seed, t), on one host or on many."""

import dataclasses
from typing import Protocol, runtime_checkable

import numpy as np

from ssljax.data.batches import Batches
from ssljax.data.graph import Tensor, tensorflow
from ssljax.data.picture import Picture
from ssljax.data.sources import Source
from ssljax.data.stream import Examples

_FOREVER = 2**62
_SMALL = 128 * 128
_JUDGED_FROM = 10_000


@runtime_checkable
class HostHalf(Protocol):
    """What the pipeline asks of a recipe."""

    def views(self) -> dict[str, tuple[int, int]]:
        """The arrays of views by name, each (number of views, size in pixels)."""

    def check(self, channels: int) -> None:
        """Raises ValueError if images of so many channels do not fit."""

    def on_host(self, picture: Picture, seed: Tensor) -> dict[str, Tensor]:
        """The views named in `views()`, uint8 [v, size, size, c], a function of the seed."""

    def evaluation(self, picture: Picture) -> Tensor:
        """The image as it is evaluated, uint8 [size, size, c]."""


@dataclasses.dataclass(frozen=True, eq=False)
class Stream:
    """Which examples make up the batches of a run, and what this host reads of them.

    Attributes:
        batch: global batch size in examples.
        seed: of the order and of the host half of the views, in [0, 2**63).
        rows: the positions in the global batch that this host reads, in this order; None: all.
        max_corrupt: share that may be corrupt of the examples read since the batches began; one
            more stops the run. From the start 10,000 count as read, or all of a smaller source.
    """

    batch: int
    seed: int
    rows: np.ndarray | None = None
    max_corrupt: float = 0.01


def batches(
    source: Source,
    recipe: HostHalf,
    plan: Stream,
    start: int = 0,
    stop: int | None = None,
) -> Batches:
    """Training batches `start` to `stop`, each a function of `plan.seed` and its number alone.

    An epoch is `source.examples // plan.batch` batches in a fresh order; its tail is dropped, so
    no index comes twice in a batch. Starting late costs nothing: nothing before is computed.

    Args:
        source: the data.
        recipe: its host half runs here, seeded with (seed, position in the run).
        plan: batch size, seed, this host's rows.
        start: number of the first batch.
        stop: number of the batch behind the last; None: endless.

    Returns:
        Batches as dicts of NumPy arrays over this host's rows: the recipe's views, uint8
        [n, v, size, size, c]; `index`, int32 [n]; and, with labels, `label`, int32 [n]. A record
        that cannot be read or decoded is replaced by the image and label of a neighbour (the next
        readable one of those 1, 2, 4, 8, ... further on), under its own index.

    Raises:
        ValueError: if the batch is larger than the data set, or the plan or recipe does not fit.
    """
    _check(source, recipe, plan)
    tf = tensorflow()
    rows = np.arange(plan.batch) if plan.rows is None else np.asarray(plan.rows, np.int64)
    steps = source.examples // plan.batch

    def place(places: Tensor) -> tuple[Tensor, Tensor]:
        batch, row = places // len(rows), tf.gather(tf.constant(rows), places % len(rows))
        epoch, within = batch // steps, (batch % steps) * plan.batch + row
        seed = tf.stack(_shuffle_key(plan.seed, epoch), 1)
        # `tf.random.experimental.index_shuffle` has 4 rounds, visibly too few.
        index = tf.raw_ops.RandomIndexShuffle(
            index=within, seed=seed, max_index=tf.constant(source.examples - 1, tf.int64), rounds=8
        )
        return index, batch * plan.batch + row

    count = sum(views for views, _ in recipe.views().values())

    def view(record: dict[str, Tensor], position: Tensor) -> dict[str, Tensor]:
        seed = tf.stack([tf.constant(plan.seed, tf.int64), position])
        made = recipe.on_host(_picture(source, record['image'], count), seed)
        return {
            name: _shaped(made[name], [views, size, size, source.channels], f'view {name!r}')
            for name, (views, size) in recipe.views().items()
        }

    examples = Examples(source, place, view, neighbours(source.examples), blank=False)
    last = _FOREVER // len(rows) if stop is None else max(stop, start)
    span = (start * len(rows), last * len(rows))
    # Were a share of 0.01 judged from 1,000 on, data with one corrupt record in 200 would have one
    # chance in 70 to be over it there; of 10,000 next to none. Bad data end sooner: at the 101st.
    judged_from = min(source.examples, _JUDGED_FROM)
    return Batches(
        examples, len(rows), span, plan.max_corrupt, judged_from, lambda batch, used: batch
    )


def _shuffle_key(seed: int, epoch: Tensor) -> list[Tensor]:
    """The three words that an epoch's order is drawn from, int64 [n] each.

    Where examples are few, of each word only the first byte counts (of a million's, eleven bits),
    so that seed and epoch alone would come around after 256. What is above goes into the third
    word: of one seed 65,536 epochs have orders of their own, and of one epoch as many seeds.
    """
    tf = tensorflow()
    above = tf.bitwise.bitwise_xor(
        tf.bitwise.right_shift(epoch, tf.constant(8, tf.int64)),
        tf.constant(157 * (seed >> 8), tf.int64),
    )
    return [tf.fill(tf.shape(epoch), tf.constant(seed, tf.int64)), epoch, above]


def neighbours(examples: int) -> tuple[int, ...]:
    """The records tried for one of so many, as distances ahead of it: itself, then 1, 2, 4, ...

    They double, as corrupt records tend to lie together.
    """
    return (0, *(1 << k for k in range(64) if 1 << k < examples))


def in_order(source: Source, recipe: HostHalf, batch: int, max_corrupt: float = 0.01) -> Batches:
    """Every example once, in index order, as the recipe evaluates it.

    Args:
        source: the data.
        recipe: its `evaluation` runs here.
        batch: rows of every batch; the last is padded.
        max_corrupt: share of all the examples that may be corrupt.

    Returns:
        Batches as dicts of NumPy arrays: `image`, uint8 [batch, size, size, c]; `index`, int32
        [batch]; with labels, `label`, int32 [batch]; and `valid`, bool [batch]. Rows that are
        padding are not valid: `image` 0, `label` -1, `index` the number of examples (behind the
        end, where JAX drops what is scattered). A record that cannot be read or decoded is not
        valid either, under its own index: it is not evaluated, rather than another one twice.

    Raises:
        ValueError: if `batch` is not positive or the recipe does not fit.
    """
    if batch < 1:
        raise ValueError(f'the batch of an evaluation is {batch}; expected at least 1')
    recipe.check(source.channels)

    def place(places: Tensor) -> tuple[Tensor, Tensor]:
        return places, places

    def view(record: dict[str, Tensor], position: Tensor) -> dict[str, Tensor]:
        image = recipe.evaluation(_picture(source, record['image'], 1))
        size = image.shape[0]
        return {'image': _shaped(image, [size, size, source.channels], 'evaluation image')}

    def finish(made: dict[str, np.ndarray], used: np.ndarray) -> dict[str, np.ndarray]:
        missing = batch - len(used)
        made['valid'] = used == made['index']
        fill = {'index': source.examples, 'label': -1}
        return {
            name: np.concatenate(
                [value, np.full((missing, *value.shape[1:]), fill.get(name, 0), value.dtype)]
            )
            if missing
            else value
            for name, value in made.items()
        }

    examples = Examples(source, place, view, (0,), blank=True)
    # Of all, since they come in order: those of one folder may all be bad, and it the first.
    span = (0, source.examples)
    return Batches(examples, batch, span, max_corrupt, source.examples, finish)


def _shaped(image: Tensor, shape: list[int | None], what: str) -> Tensor:
    tf = tensorflow()
    if image.dtype != tf.uint8 or not image.shape.is_compatible_with(shape) or None in shape:
        raise ValueError(
            f"the recipe's {what} is {image.dtype.name} {image.shape}; "
            f'expected uint8 {tuple(shape)}'
        )
    return tf.ensure_shape(image, shape)


def _picture(source: Source, image: Tensor, looks: int) -> Picture:
    """What a recipe gets; decoded first where it will be looked at twice, or is small."""
    picture = Picture(image, source.channels)
    small = source.size is not None and source.size[0] * source.size[1] <= _SMALL
    if not source.encoded or (looks == 1 and not small):
        return picture
    decoded = picture.decoded()
    if source.size is None:
        return decoded
    tf = tensorflow()
    return Picture(tf.ensure_shape(decoded.data, [*source.size, source.channels]), source.channels)


def _check(source: Source, recipe: HostHalf, plan: Stream) -> None:
    recipe.check(source.channels)
    if plan.batch < 1:
        raise ValueError(f'the batch is {plan.batch}; expected at least 1 example')
    if plan.batch > source.examples:
        raise ValueError(
            f'the batch of {plan.batch} is larger than {source.name} with {source.examples} '
            'examples; an example comes at most once in a batch, so use a smaller batch'
        )
    if not 0 <= plan.seed < 2**63:
        raise ValueError(f'the seed is {plan.seed}; expected an integer in [0, 2**63)')
    if not 0 <= plan.max_corrupt <= 1:
        raise ValueError(f'max_corrupt is {plan.max_corrupt}; expected a share in [0, 1]')
    if plan.rows is not None:
        rows = np.asarray(plan.rows)
        whole = rows.ndim == 1 and rows.size and np.issubdtype(rows.dtype, np.integer)
        if not whole or rows.min() < 0 or rows.max() >= plan.batch or len(set(rows)) < len(rows):
            raise ValueError(
                f'rows is {rows!r}; expected distinct positions in [0, {plan.batch}), at least one'
            )
