"""CPC, contrastive predictive coding, for images.

An image is cut into a grid of overlapping patches, each encoded by itself (z = g_enc(patch)). A
context network reads the grid from top to bottom (c = g_ar(z of this row and those above)), and
from c the patches some rows further down the same column are to be told from all other patches of
the batch. g_enc is kept. van den Oord, Li, Vinyals 2018, arXiv 1807.03748, section 3.2.

Views: one of each image, whose colours say less than its shapes. The paper, quoted from memory and
not re-checked: a crop of 256 of 300 pixels, a flip, no colour; `SimCLRViews` with `count=1,
size=256, square=256 / 300, jitter=0.0, blur=0.0` and a high `gray`, but below 1: images are
evaluated in colour.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from einops import rearrange
from flax import linen as nn
from jaxtyping import Array, Float, Key, PRNGKeyArray

from ssljax.core import Batch, Method, Now, Run, Signature, Tree
from ssljax.losses import prediction
from ssljax.nets.patch_encoder import PatchEncoder, grid_patches, grid_size
from ssljax.nets.pixelcnn import PixelCNN

SUBCROP = 0x435043
"""Folded into an example's key for its patches: other numbers than its view is drawn from."""


@dataclasses.dataclass(frozen=True)
class CPC(Method):
    """CPC v1 on images.

    Attributes:
        encoder: g_enc on a grid of patches; its `pool`, the mean over the grid, is the image's
            representation. Without BatchNorm: statistics of the batch tell patches of one image
            from those of others, and the task is solved without looking. Paper: a ResNet-101 v2 up
            to its third stack, without normalisation; CPC v2: LayerNorm.
        context: g_ar, the grid of z to the grid of c, no row seeing what lies below it.
        steps: number of W_k, of rows that are predicted. Paper: up to five rows down.
        first_step: the nearest row that is predicted. Patches that overlap by half share pixels
            with the next row, which is found by comparing edges: 2 skips it.
        subcrop: pixels by which every patch is cut down at random and then padded with zeros on
            both sides. Paper: 4, 60 x 60 of 64 x 64 pixels (from memory, not re-checked).
        group: images whose patches are candidates for each other, a divisor of the batch; None: all
            of the batch. Paper: 16, the batch of each of its 32 GPUs (from memory, not re-checked);
            here they are groups of the whole batch, and whatever the number of devices these share
            the work evenly. Where each holds whole groups, they exchange nothing for it.
        tile: rows of the matrix of scores held at a time; None holds all of it. With groups it pays
            where an image and the others of its group have more than three times as many patches as
            z has numbers, and is of no effect below: 16 images of 49 patches are too few.
    """

    encoder: PatchEncoder = dataclasses.field(default_factory=PatchEncoder)
    context: nn.Module = dataclasses.field(default_factory=PixelCNN)
    steps: int = 4
    first_step: int = 2
    subcrop: int = 4
    group: int | None = None
    tile: int | None = None

    def check(self, data: Signature, run: Run) -> None:
        """Raise ValueError if the view, the grid and the steps do not fit."""
        views, size = dict(data.views).get('image', (0, 0))
        if views != 1:
            raise ValueError(
                f'CPC makes its patches of 1 view, the recipe makes {views}; use CropFlip, or '
                'SimCLRViews with count=1'
            )
        patch, stride = self.encoder.patch, self.encoder.stride
        rows, _ = grid_size(size, size, patch, stride)
        last = self.first_step + self.steps - 1
        if self.steps < 1 or self.first_step < 1 or last >= rows:
            raise ValueError(
                f'steps {self.first_step} to {last} do not fit into a grid of {rows} rows (views '
                f'of {size} pixels, patches of {patch} every {stride}); use steps between 1 and '
                f'{rows - 1}, or views of at least {patch + last * stride} pixels'
            )
        if not 0 <= self.subcrop < patch:
            raise ValueError(
                f'subcrop takes {self.subcrop} of {patch} pixels; use 0 to {patch - 1}'
            )
        if self.group is not None and (self.group < 1 or run.batch % self.batch_unit()):
            raise ValueError(
                f'groups of {self.group} images cannot be made of a batch of {run.batch}; use a '
                'divisor of it, or None for one group of all'
            )

    def batch_unit(self, microbatches: int = 1) -> int:
        """The images of a group, of whatever micro-batches they come."""
        return max(1, self.group or 1)

    def init(self, key: PRNGKeyArray, batch: Batch, run: Run) -> tuple[Tree, Tree]:
        """Fresh encoder and context network, and small W_k: the loss starts near its chance."""
        k_encoder, k_context, k_weights = jax.random.split(key, 3)
        patches = self.patches(batch['image'][:1, 0])
        z, f = self.encoder.init_with_output(k_encoder, patches, train=False, method='of_patches')
        c, g = self.context.init_with_output(k_context, z, train=False)
        shape = (self.steps, z.shape[-1], c.shape[-1])
        weights = jax.random.normal(k_weights, shape, jnp.float32) / (shape[1] * shape[2]) ** 0.5
        params = {'encoder': f['params'], 'context': g['params'], 'weights': weights}
        stats = {'encoder': f.get('batch_stats', {}), 'context': g.get('batch_stats', {})}
        return params, {'stats': stats}

    def forward(
        self, params: Tree, state: Tree, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Tree, Tree]:
        """z and c at every place of the grid, [n, i, j, ...]."""
        patches = self.patches(batch['image'][:, 0])
        if self.subcrop:
            patches = moved(patches, batch['key'], self.subcrop)
        stats = state['stats']
        f = {'params': params['encoder'], 'batch_stats': stats['encoder']}
        g = {'params': params['context'], 'batch_stats': stats['context']}
        z, f = self.encoder.apply(
            f, patches, train=True, method='of_patches', mutable=['batch_stats']
        )
        c, g = self.context.apply(g, z, train=True, mutable=['batch_stats'])
        stats = {'encoder': f.get('batch_stats', {}), 'context': g.get('batch_stats', {})}
        return {'z': z, 'c': c}, stats

    def objective(self, params: Tree, outputs: Tree, state: Tree, now: Now):
        """Equation 4 down every column, each a sequence of rows; all of a group are candidates."""
        n, i, j, _ = outputs['z'].shape
        z, c = (rearrange(outputs[name], 'n i j d -> (n j) i d') for name in ('z', 'c'))
        group = n if self.group is None else self.group
        loss = prediction.log_bilinear(
            c,
            z,
            params['weights'],
            first_step=self.first_step,
            group=group * j,
            tile=self.tile,
        )
        # The mutual information of context and target is at least this (section 2.3).
        information = jnp.log(group * i * j) - loss / self.steps
        return loss, (state, {'information': information})

    def patches(self, image: Float[Array, 'n h w c']) -> Float[Array, 'n i j p p c']:
        """The grid of patches of images."""
        return grid_patches(image, self.encoder.patch, self.encoder.stride)

    def product(self, params: Tree, state: Tree) -> tuple[nn.Module, Tree]:
        """g_enc over the grid, at its running statistics if it has any."""
        return self.encoder, {
            'params': params['encoder'],
            'batch_stats': state['stats']['encoder'],
        }

    def smoke(self) -> 'CPC':
        """The same method with groups that a small batch has, or those that no batch has."""
        possible = self.group is not None and self.group > 0
        group = math.gcd(self.group, 16) if possible else self.group
        return dataclasses.replace(self, group=group)


def moved(
    patches: Float[Array, 'n i j p p c'], keys: Key[Array, 'n'], less: int
) -> Float[Array, 'n i j p p c']:
    """Every patch less a frame of `less` pixels in all, at random, padded with zeros evenly.

    So the content moves by up to half of `less` in each direction, and edges of neighbouring
    patches no longer fit together.

    Args:
        patches: grids of patches of n examples.
        keys: one per example, for all its patches.
        less: pixels that a side loses, fewer than it has.
    """
    _, rows, columns, side, *_ = patches.shape
    kept, before = side - less, less // 2

    def offsets(key: PRNGKeyArray) -> Array:
        key = jax.random.fold_in(key, SUBCROP)
        return jax.random.randint(key, (rows, columns, 2), 0, less + 1, jnp.int32)

    def one(patch: Float[Array, 'p p c'], at: Array) -> Float[Array, 'p p c']:
        place = (at[0], at[1], jnp.zeros_like(at[0]))
        inside = jax.lax.dynamic_slice(patch, place, (kept, kept, patch.shape[2]))
        edge = (before, less - before)
        return jnp.pad(inside, (edge, edge, (0, 0)))

    return jax.vmap(jax.vmap(jax.vmap(one)))(patches, jax.vmap(offsets)(keys))
