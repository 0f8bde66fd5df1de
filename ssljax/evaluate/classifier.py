"""A linear classifier on frozen features, as every probe returns it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ssljax.evaluate.accuracy import Accuracy, by_tiles, rank
from ssljax.evaluate.features import Features

_TILE = 4096


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of every feature; a constant feature gets deviation 1."""

    mean: Float[Array, ' d']
    std: Float[Array, ' d']

    @classmethod
    def of(cls, x: Float[np.ndarray, 'n d']) -> 'Moments':
        """The moments of the rows of x, summed in float64; no more than some rows are copied."""
        tiles = [x[start : start + _TILE] for start in range(0, len(x), _TILE)]
        mean = sum(np.sum(rows, axis=0, dtype=np.float64) for rows in tiles) / len(x)
        std = np.sqrt(sum(np.sum((rows - mean) ** 2, axis=0) for rows in tiles) / len(x))
        # Rounding of the features leaves a constant column a deviation of 1e-7 of its size.
        std = np.where(std <= 1e-5 * np.abs(mean), 1, std)
        return cls(jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))

    @classmethod
    def identity(cls, d: int) -> 'Moments':
        """Leaves features as they are."""
        return cls(jnp.zeros(d), jnp.ones(d))

    def standardise(self, x: Float[Array, 'n d']) -> Float[Array, 'n d']:
        """(x - mean) / std."""
        return (x - self.mean) / self.std


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Classifier:
    """Scores = standardised features @ kernel + bias.

    Attributes:
        moments: how features are standardised.
        kernel: weights, one column per class.
        bias: one per class.
        classes: class id of every column, ascending: the classes the probe was shown.
    """

    moments: Moments
    kernel: Float[Array, 'd c']
    bias: Float[Array, ' c']
    classes: Int[Array, ' c']

    def scores(self, x: Float[Array, 'n d']) -> Float[Array, 'n c']:
        """One score per example and class."""
        logits = jnp.matmul(self.moments.standardise(x), self.kernel, precision='highest')
        return logits + self.bias

    def accuracy(self, features: Features) -> Accuracy:
        """Accuracy on labelled features; a class the probe was never shown counts as an error.

        Raises:
            ValueError: no labels.
        """
        columns = encode(features.targets(), np.asarray(self.classes))
        return Accuracy.of(_ranks(self, features.features, columns))


def encode(labels: Int[np.ndarray, ' n'], classes: Int[np.ndarray, ' c']) -> Int[np.ndarray, ' n']:
    """The column of every label among ascending class ids; -1 where it is none of them."""
    column = np.minimum(np.searchsorted(classes, labels), len(classes) - 1)
    return np.where(classes[column] == labels, column, -1).astype(np.int32)


@jax.jit
def _ranks(classifier, x, columns):
    return by_tiles(lambda x, y: rank(classifier.scores(x), y), _TILE, x, columns)
