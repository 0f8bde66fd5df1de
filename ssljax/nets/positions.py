"""Where a patch is: fixed sines and cosines for any grid, and learned tables brought to others."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def sincos(grid: tuple[int, int], width: int) -> Float[np.ndarray, 't d']:
    """Sines and cosines of the column, then of the row, each of width / 4 frequencies.

    With D = width and w_i = 10000^(-i / (D / 4)), i = 0 ... D/4 - 1, the patch in row r and column
    c has [sin(c w), cos(c w), sin(r w), cos(r w)]: a squared norm of D / 2 everywhere.

    Args:
        grid: patches along height and width.
        width: features of a patch, a multiple of 4.

    Returns:
        float64 [patches, width], row by row.

    Reference: He, Chen, Xie, Li, Dollar, Girshick 2021, arXiv 2111.06377, appendix A.1; Vaswani et
        al. 2017, arXiv 1706.03762, section 3.5.
    """
    if width % 4:
        raise ValueError(
            f'width is {width}, but sines and cosines of rows and columns fill it in fours; use a '
            'multiple of 4, or learned positions'
        )
    quarter = width // 4
    frequencies = 10000.0 ** (-np.arange(quarter) / quarter)
    rows, columns = np.meshgrid(np.arange(grid[0]), np.arange(grid[1]), indexing='ij')
    angles = [np.outer(place.reshape(-1), frequencies) for place in (columns, rows)]
    return np.concatenate([f(a) for a in angles for f in (np.sin, np.cos)], axis=1)


def resample(
    table: Float[Array, 't d'], old: tuple[int, int], new: tuple[int, int]
) -> Float[Array, 's d']:
    """A table of positions brought to another grid, bicubic; the same grid gives the table itself.

    Args:
        table: features of the patches of grid `old`, row by row.
        old: its patches along height and width.
        new: the grid wanted.

    Reference: Dosovitskiy et al. 2020, arXiv 2010.11929, section 3.2; the kernel as in the DINO
        code (Keys' cubic with a = -0.75, no low-pass filter, edges repeated).
    """
    if old == new:
        return table
    maps = table.reshape(*old, -1)
    down, across = (
        jnp.asarray(cubic_weights(a, b), table.dtype) for a, b in zip(old, new, strict=True)
    )
    exact = jax.lax.Precision.HIGHEST
    found = jnp.einsum('ar,bc,rcd->abd', down, across, maps, precision=exact)
    return found.reshape(new[0] * new[1], -1)


def cubic_weights(old: int, new: int, a: float = -0.75) -> Float[np.ndarray, 'new old']:
    """What each of `new` points takes of `old` ones, both spread over the same length.

    Args:
        old: points there are.
        new: points wanted; point i lies at (i + 1/2) old / new - 1/2.
        a: slope of the kernel at distance 1.

    Returns:
        float64, rows of sum 1, at most four entries each but for repeated edges.
    """
    weights = np.zeros((new, old))
    for i in range(new):
        place = (i + 0.5) * old / new - 0.5
        first = int(np.floor(place)) - 1
        for j in range(first, first + 4):
            weights[i, min(max(j, 0), old - 1)] += _cubic(abs(place - j), a)
    return weights


def _cubic(x: float, a: float) -> float:
    """Keys' kernel: 1 at 0, and 0 at 1 and from 2 on."""
    if x <= 1:
        return ((a + 2) * x - (a + 3)) * x * x + 1
    return a * (((x - 5) * x + 8) * x - 4) if x < 2 else 0.0
