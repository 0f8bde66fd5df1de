"""What sits on an encoder: projection heads and the linear classifier."""

from typing import Literal

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ssljax.nets.norm import batch_norm
from ssljax.nets.precision import Precision, at_least_float32, compute_dtype

Norm = Literal['none', 'plain', 'scale', 'affine']
"""BatchNorm behind a layer: none; without parameters; with a scale; with a scale and an offset."""


class ProjectionHead(nn.Module):
    """Linear layers with BatchNorm and ReLU between them, and a last layer of its own kind.

    The defaults are SimCLR's: no biases, since a BatchNorm follows each layer, and a scale but no
    offset in the last BatchNorm. The published heads differ only in these fields:

    | head              | widths             | hidden_norm | hidden_bias | last_norm | last_bias |
    |-------------------|--------------------|-------------|-------------|-----------|-----------|
    | SimCLR v1         | (2048, 128)        | affine      | no          | scale     | no        |
    | SimCLR v2         | (2048, 2048, 128)  | affine      | no          | scale     | no        |
    | MoCo v2           | (2048, 128)        | none        | yes         | none      | yes       |
    | BYOL, both        | (4096, 256)        | affine      | yes         | none      | no        |
    | Barlow Twins      | (8192, 8192, 8192) | affine      | no          | none      | no        |
    | VICReg            | (8192, 8192, 8192) | affine      | yes         | none      | no        |

    Attributes:
        widths: output features of the layers, hidden ones first.
        hidden_norm: BatchNorm behind the hidden layers.
        hidden_bias: whether the hidden layers have biases.
        last_norm: BatchNorm behind the last layer.
        last_bias: whether the last layer has a bias.
        dtype: `float32` or `bfloat16` computation.

    Reference: Chen, Kornblith, Norouzi, Hinton 2020, arXiv 2002.05709 (v1), 2006.10029 (v2).
    """

    widths: tuple[int, ...] = (2048, 128)
    hidden_norm: Norm = 'affine'
    hidden_bias: bool = False
    last_norm: Norm = 'scale'
    last_bias: bool = False
    dtype: Precision = 'float32'

    def __post_init__(self):
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f'widths is {self.widths}; give the features of one layer or more')
        for norm in (self.hidden_norm, self.last_norm):
            if norm not in ('none', 'plain', 'scale', 'affine'):
                raise ValueError(f"the norm is {norm!r}; use 'none', 'plain', 'scale' or 'affine'")
        compute_dtype(self.dtype)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Float[Array, 'n c'], train: bool) -> Float[Array, 'n d']:
        """The projections, in at least float32; not normalised to unit length.

        Args:
            x: features.
            train: batch statistics (and their update) instead of running ones.
        """
        dtype = compute_dtype(self.dtype)
        for i, width in enumerate(self.widths):
            last = i == len(self.widths) - 1
            bias, norm = (
                (self.last_bias, self.last_norm) if last else (self.hidden_bias, self.hidden_norm)
            )
            dense = nn.Dense(
                width, use_bias=bias, dtype=dtype, param_dtype=jnp.float32, name=f'linear{i + 1}'
            )
            x = dense(x)
            if norm != 'none':
                scale, offset = norm in ('scale', 'affine'), norm == 'affine'
                name = f'norm{i + 1}'
                x = batch_norm(train, dtype, use_scale=scale, use_bias=offset, name=name)(x)
            x = x if last else nn.relu(x)
        return at_least_float32(x)

    @nn.nowrap
    def smoke(self) -> 'ProjectionHead':
        """The same head with narrow layers."""
        return self.clone(widths=tuple(min(width, 32) for width in self.widths))


class NoHead(nn.Module):
    """No head at all: the loss acts on the features themselves, as an ablation."""

    def __call__(self, x: Float[Array, 'n c'], train: bool) -> Float[Array, 'n c']:
        """The features as they are, in at least float32; `train` changes nothing."""
        return at_least_float32(x)


class Classifier(nn.Module):
    """A linear classifier on features, in float32.

    Attributes:
        classes: number of classes.
    """

    classes: int

    @nn.compact
    def __call__(self, x: Float[Array, 'n c'], train: bool = False) -> Float[Array, 'n k']:
        """The scores (logits); `train` changes nothing."""
        # Small at first, so that training starts near the uniform prediction.
        init = nn.initializers.normal(0.01)
        return nn.Dense(self.classes, kernel_init=init, param_dtype=jnp.float32, name='linear')(x)
