"""Which part of an image a context encoder has to paint in: three kinds of holes.

Pathak, Krahenbuhl, Donahue, Darrell, Efros 2016, arXiv 1604.07379, section 3.3.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray


@dataclasses.dataclass(frozen=True)
class Hole:
    """What is hidden of an image, what is predicted, and how much each pixel of that counts."""

    def check(self, size: int) -> None:
        """Raise ValueError, saying what to change, if it does not fit an image of `size` pixels."""

    def window(self, size: int) -> tuple[int, int]:
        """First row and column, and side, of the square that is predicted: here all of it."""
        return 0, size

    def draw(self, key: PRNGKeyArray, size: int) -> Bool[Array, 'h w']:
        """Where the image is hidden."""
        raise NotImplementedError

    def weigh(self, hidden: Bool[Array, 'n h w']) -> Float[Array, 'n h w']:
        """Weights of the squared error: 1 where it is hidden, 0 elsewhere (equation 1).

        The released code for random holes compares the whole output, of which its discriminator
        sees all, as this one does.
        """
        return hidden.astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class Centre(Hole):
    """The middle square of half the side, predicted by itself.

    A rim of it stays visible, so that the prediction has to fit on to what is around, and its
    errors count more. The encoder soon learns where to look: the other kinds make better features.

    Attributes:
        rim: pixels on each side of the square that stay visible. Paper: 7 of 227 (4 of 128 in the
            released code).
        rim_weight: of errors in the rim; 1 in the hole. Paper: 10.
    """

    rim: int = 7
    rim_weight: float = 10.0

    def check(self, size: int) -> None:
        """Raise ValueError unless the rim leaves a hole."""
        _, side = self.window(size)
        if not 0 <= 2 * self.rim < side:
            raise ValueError(
                f'a rim of {self.rim} on each side leaves no hole in a square of {side} pixels; '
                f'use 0 to {max((side - 1) // 2, 0)}'
            )
        if self.rim_weight <= 0:
            raise ValueError(f'rim_weight is {self.rim_weight}; it must be above 0, such as 10')

    def window(self, size: int) -> tuple[int, int]:
        """The middle half, rows and columns."""
        return size // 4, size // 2

    def draw(self, key: PRNGKeyArray, size: int) -> Bool[Array, 'h w']:
        """The same square for every key."""
        first, side = self.window(size)
        inside = _within(jnp.arange(size), first + self.rim, side - 2 * self.rim)
        return inside[:, None] & inside

    def weigh(self, hidden: Bool[Array, 'n h w']) -> Float[Array, 'n h w']:
        """`rim_weight` in the rim, 1 in the hole, 0 outside the square."""
        size = hidden.shape[-1]
        inside = _within(jnp.arange(size), *self.window(size))
        rim = jnp.where(inside[:, None] & inside, self.rim_weight, 0.0)
        return jnp.where(hidden, 1.0, rim).astype(jnp.float32)

    def smoke(self) -> 'Centre':
        """A rim that fits into a small image too."""
        return dataclasses.replace(self, rim=min(self.rim, 1))


@dataclasses.dataclass(frozen=True)
class Blocks(Hole):
    """Several squares in random places, which may overlap.

    The paper does not say how many and how large; here all are of one size, which makes up `share`
    of the image if none overlap.

    Attributes:
        count: number of squares.
        share: of the image, at most. Paper: 1/4.
    """

    count: int = 4
    share: float = 0.25

    def check(self, size: int) -> None:
        """Raise ValueError unless there are squares of a pixel or more, smaller than the image."""
        if self.count < 1 or not 0 < self.share < 1:
            raise ValueError(
                f'{self.count} blocks over {self.share} of the image; use one block or more, and a '
                'share between 0 and 1'
            )
        if self.side(size) < 1:
            raise ValueError(
                f'{self.count} blocks over {self.share} of an image of {size} pixels a side are '
                'less than a pixel each; use fewer blocks or a larger share'
            )

    def side(self, size: int) -> int:
        """Of a square, in pixels; rounded down."""
        return math.floor(size * math.sqrt(self.share / self.count) + 1e-9)

    def draw(self, key: PRNGKeyArray, size: int) -> Bool[Array, 'h w']:
        """The union of the squares; every place inside the image is as likely."""
        side = self.side(size)
        first = jax.random.randint(key, (2, self.count, 1), 0, size - side + 1)
        rows, columns = _within(jnp.arange(size), first, side)
        return jnp.any(rows[:, :, None] & columns[:, None, :], axis=0)


@dataclasses.dataclass(frozen=True)
class Region(Hole):
    """A random shape: the lowest places of a smooth random landscape.

    As in the released code, uniform noise is drawn on a coarse grid and smoothly enlarged. There
    the part below 0.25 is the hole and is drawn again until it is 20% to 30% of the image, once for
    the whole batch; here every image has its own, whose share is drawn uniformly from that range.
    (The paper cuts the shapes of objects out of segmented images instead.)

    Attributes:
        cells: cells of the grid along a side. The code's are of 17 pixels: 8 in 128.
        share: least and greatest share of the image.
    """

    cells: int = 8
    share: tuple[float, float] = (0.2, 0.3)

    def check(self, size: int) -> None:
        """Raise ValueError unless some number of pixels is a share in the range."""
        if self.cells < 2 or self.cells > size:
            raise ValueError(f'cells is {self.cells}; use 2 to {size}, the pixels of a side')
        least, most = self._pixels(size)
        if not 0 < least <= most < size**2:
            raise ValueError(
                f'share is {self.share}, which no hole in {size} x {size} pixels has; use two '
                'numbers in rising order between 0 and 1, such as 0.2 0.3'
            )

    def draw(self, key: PRNGKeyArray, size: int) -> Bool[Array, 'h w']:
        """The lowest pixels of the landscape, exactly as many as were drawn."""
        k_noise, k_pixels = jax.random.split(key)
        noise = jax.random.uniform(k_noise, (self.cells, self.cells))
        height = jax.image.resize(noise, (size, size), 'cubic')
        least, most = self._pixels(size)
        pixels = jax.random.randint(k_pixels, (), least, most + 1)
        rank = jnp.argsort(jnp.argsort(height.ravel())).reshape(size, size)
        return rank < pixels

    def _pixels(self, size: int) -> tuple[int, int]:
        """Least and greatest number of hidden pixels."""
        low, high = self.share
        return math.ceil(low * size**2 - 1e-9), math.floor(high * size**2 + 1e-9)


def _within(position: Array, first: Array | int, length: int) -> Array:
    """Which positions lie in an interval."""
    return (position >= first) & (position < first + length)
