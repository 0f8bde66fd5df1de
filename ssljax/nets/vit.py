"""Vision Transformers, of the published sizes."""

from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float, Int, Key

from ssljax.nets.patches import PatchProjection, grid_of, patchify
from ssljax.nets.positions import resample, sincos
from ssljax.nets.precision import Precision, at_least_float32, compute_dtype
from ssljax.nets.transformer import Block, Initial, layer_norm

Size = Literal['Ti', 'S', 'B', 'L', 'H']

SIZES = {
    'Ti': (192, 12, 3),
    'S': (384, 12, 6),
    'B': (768, 12, 12),
    'L': (1024, 24, 16),
    'H': (1280, 32, 16),
}
"""Width, depth and heads: Dosovitskiy et al. 2020, arXiv 2010.11929, table 1; Ti and S from Touvron
et al. 2020, arXiv 2012.12877, table 1 (MoCo v3 has an S with 12 heads)."""

DEPTH = 0x0DE9
"""Folded into an example's key to draw the branches that stochastic depth drops."""


def vit(letter: Size, patch: int = 16, **fields: Any) -> 'ViT':
    """A ViT of a published size.

    Args:
        letter: of the size, `Ti`, `S`, `B`, `L` or `H`.
        patch: side of a patch in pixels.
        fields: others of `ViT`; they win over those of the size.
    """
    if letter not in SIZES:
        raise ValueError(f'the size is {letter!r}; use one of {", ".join(SIZES)}')
    width, depth, heads = SIZES[letter]
    return ViT(**{'width': width, 'depth': depth, 'heads': heads, 'patch': patch, **fields})


class ViT(nn.Module):
    """A Vision Transformer without its classifier: pre-norm blocks, and a LayerNorm at the end.

    Takes images of any size that the patch divides, of any number of channels. Collection: `params`
    (float32); an image never sees its batch. Positions that are sines and cosines are no
    parameters.

    Attributes:
        width: features of a token.
        depth: blocks.
        heads: of the attention; must divide the width.
        patch: side of a patch in pixels.
        mlp_ratio: hidden units of the perceptrons, as a multiple of the width.
        position: `sincos` is computed for the image's own grid of patches; `learned` is a table for
            the grid of `size`, resampled for others (DINO's local crops).
        size: side in pixels of the images that a learned table is for.
        cls: whether a learned class token goes ahead of the patches.
        pool: what stands for the image: the class token, or the mean over the patches.
        initial: how weight matrices start, see `Initial`.
        drop_path: probability that stochastic depth drops a branch in training: rises linearly from
            0 in the first block to this in the last.
        frozen_patch: whether no gradient reaches the weights of the projection of the patches, as
            MoCo v3 has it against unstable training. Weight decay moves them still: the optimizer
            has to freeze them too (`frozen`). To fine-tune all of it: `clone(frozen_patch=False)`.
        remat: computes a block again in the backward pass instead of keeping what is inside.
        dtype: `float32` or `bfloat16` computation.

    Reference: Dosovitskiy et al. 2020, arXiv 2010.11929; stochastic depth: Huang et al. 2016,
        arXiv 1603.09382; frozen projection: Chen, Xie, He 2021, arXiv 2104.02057, section 4.2.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    patch: int = 16
    mlp_ratio: float = 4.0
    position: Literal['sincos', 'learned'] = 'learned'
    size: int = 224
    cls: bool = True
    pool: Literal['cls', 'mean'] = 'cls'
    initial: Initial = 'normal'
    drop_path: float = 0.0
    frozen_patch: bool = False
    remat: bool = False
    dtype: Precision = 'float32'

    def __post_init__(self):
        compute_dtype(self.dtype)
        for field, options in (
            ('position', ('sincos', 'learned')),
            ('pool', ('cls', 'mean')),
            ('initial', get_args(Initial)),
        ):
            if getattr(self, field) not in options:
                raise ValueError(f'{field} is {getattr(self, field)!r}; use one of {options}')
        if min(self.width, self.depth, self.heads, self.patch) < 1 or self.width % self.heads:
            raise ValueError(
                f'width {self.width}, depth {self.depth}, heads {self.heads} and patch '
                f'{self.patch} must be at least 1, and heads must divide width'
            )
        if self.position == 'sincos' and self.width % 4:
            raise ValueError(
                f'width is {self.width}; sines and cosines of positions need a multiple of 4'
            )
        if self.position == 'learned':
            grid_of(self.size, self.size, self.patch)
        if self.pool == 'cls' and not self.cls:
            raise ValueError("pool is 'cls' but there is no class token; use 'mean' or cls=True")
        if not 0 <= self.drop_path < 1:
            raise ValueError(f'drop_path is {self.drop_path}; it must be in [0, 1)')
        super().__post_init__()

    def __call__(
        self, x: Float[Array, 'n h w c'], train: bool, keys: Key[Array, ' n'] | None = None
    ) -> Float[Array, 'n d']:
        """The features of the image, in at least float32; for arguments, see `features`."""
        return self.features(x, train, keys=keys)['pool']

    @nn.compact
    def features(
        self,
        x: Float[Array, 'n h w c'],
        train: bool,
        keep: Int[Array, 'n k'] | None = None,
        keys: Key[Array, ' n'] | None = None,
    ) -> dict[str, Float[Array, '...']]:
        """What the last blocks know, in at least float32 and behind the last LayerNorm.

        Args:
            x: normalised images.
            train: whether stochastic depth acts; nothing else depends on it.
            keep: the patches that are seen (their positions are those of the whole image), counted
                from left to right, then down; None keeps all. What is not kept costs nothing.
            keys: one for each example, for stochastic depth.

        Returns:
            `tokens` [n, t, d], one for each patch seen, in the order of `keep`; `cls` [n, d], if
            there is a class token; `mean` [n, d] over the tokens; `pool`, one of these two; and
            `last4`, the pools of the last four blocks (of all, if fewer), the last one last, each
            behind the last LayerNorm, one behind the other: DINO's probe of a ViT-S.

        Raises:
            ValueError: if the patch does not divide the image, or stochastic depth lacks its keys.
        """
        grid = grid_of(x.shape[1], x.shape[2], self.patch)
        patches, (ahead, places) = patchify(x, self.patch), self._positions(grid)
        if keep is not None:
            patches, places = jnp.take_along_axis(patches, keep[:, :, None], axis=1), places[keep]
        start = 'torch' if self.initial == 'normal' else 'xavier'
        project = PatchProjection
        if self.frozen_patch:
            # Of its weights, not of what it returns: the image keeps its gradient.
            init = self.is_initializing()
            project = nn.map_variables(project, 'params', jax.lax.stop_gradient, init=init)
        x = at_least_float32(
            project(self.width, self.patch, start, self.dtype, name='patch')(patches)
        )
        x = x + places.astype(x.dtype)
        if self.cls:
            start = nn.initializers.normal(1e-6 if self.initial == 'xavier_apart' else 0.02)
            token = self.param('cls', start, (self.width,), jnp.float32)
            first = jnp.broadcast_to(token + ahead, (x.shape[0], 1, self.width))
            x = jnp.concatenate([first.astype(x.dtype), x], axis=1)
        factors = self._factors(train, keys)
        block = nn.remat(Block) if self.remat else Block
        norm = layer_norm(self.dtype, name='norm')
        last = []
        for i in range(self.depth):
            x = block(
                self.heads, self.mlp_ratio, self.initial, self.dtype, name=f'block{i}'
            )(x, None if factors is None else factors[:, i])  # fmt: skip
            if i >= self.depth - 4:
                last.append(self._pools(at_least_float32(norm(x))))
        pools = last[-1]
        return {**pools, 'last4': jnp.concatenate([layer[self.pool] for layer in last], axis=-1),
                'pool': pools[self.pool]}  # fmt: skip

    @nn.nowrap
    def smoke(self) -> 'ViT':
        """The same network of two narrow blocks and patches of at most 4 pixels."""
        patch = min(self.patch, 4)
        return self.clone(width=32, depth=2, heads=2, patch=patch, size=8 * patch)

    def _pools(self, x: Float[Array, 'n t d']) -> dict[str, Float[Array, '...']]:
        """Tokens of patches, their mean, and the class token."""
        tokens = x[:, 1:] if self.cls else x
        return {
            'tokens': tokens,
            'mean': jnp.mean(tokens, axis=1),
            **({'cls': x[:, 0]} if self.cls else {}),
        }

    def _positions(self, grid: tuple[int, int]) -> tuple[Array, Array]:
        """What is added to the class token, [d] or 0, and to the patches, [t, d]."""
        if self.position == 'sincos':
            return jnp.zeros(()), jnp.asarray(sincos(grid, self.width))
        side, ahead = self.size // self.patch, int(self.cls)
        shape = (ahead + side**2, self.width)
        table = jnp.asarray(
            self.param('position', nn.initializers.normal(0.02), shape, jnp.float32)
        )
        return table[0], resample(table[ahead:], (side, side), grid)

    def _factors(self, train: bool, keys: Array | None) -> Float[Array, 'n depth 2'] | None:
        """0 for branches that are dropped, 1 / (1 - rate) for others; None if none can be."""
        if not train or self.drop_path == 0:
            return None
        if keys is None:
            raise ValueError(
                f'drop_path is {self.drop_path}, but this method gives the network no keys to draw '
                'from; use drop_path 0'
            )
        # float32 whatever the default: the same branches in every precision.
        kept = 1 - np.linspace(0, self.drop_path, self.depth, dtype=np.float32)[:, None]
        draw = lambda key: jax.random.bernoulli(
            jax.random.fold_in(key, DEPTH), kept, (self.depth, 2)
        )
        return jax.vmap(draw)(keys) / kept
