"""Sobel filters ahead of a network: edges in the place of colours."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from ssljax.nets.precision import at_least_float32
from ssljax.nets.resnet import ResNet


class Sobel(nn.Module):
    """A network that sees of an image only how its grey level changes, across and down.

    Nothing is trained here: the parameters are those of `net`, whose first layer has two channels.

    Attributes:
        net: what comes behind the filters, any encoder.

    Reference: Caron, Bojanowski, Joulin, Douze 2018, arXiv 1807.05520, section 3.4 (DeepCluster).
    """

    net: nn.Module = dataclasses.field(default_factory=ResNet)

    def __call__(self, x: Float[Array, 'n h w c'], train: bool) -> Float[Array, 'n d']:
        """Pooled features of the edges, in at least float32.

        Args:
            x: normalised images, any number of channels.
            train: batch statistics (and their update) instead of running ones.
        """
        return self.net(edges(x), train)

    def features(self, x: Float[Array, 'n h w c'], train: bool) -> dict[str, Float[Array, '...']]:
        """The layers of `net`, and `edges` [n, h, w, 2]."""
        found = edges(x)
        return {'edges': found, **self.net.features(found, train)}

    @nn.nowrap
    def smoke(self) -> 'Sobel':
        """The filters ahead of the smallest of the network."""
        return self.clone(net=self.net.smoke() if hasattr(self.net, 'smoke') else self.net)


def edges(x: Float[Array, 'n h w c']) -> Float[Array, 'n h w 2']:
    """How the mean of the channels falls from left to right, and from top to bottom.

    Differences of the pixels on both sides, of three rows (columns) weighted 1, 2, 1. Beyond the
    edge images are 0, their mean once normalised.
    """
    grey = at_least_float32(jnp.mean(x, axis=-1))
    padded = jnp.pad(grey, ((0, 0), (1, 1), (1, 1)))
    down = padded[:, :-2] + 2 * padded[:, 1:-1] + padded[:, 2:]
    across = padded[:, :, :-2] + 2 * padded[:, :, 1:-1] + padded[:, :, 2:]
    return jnp.stack([down[:, :, :-2] - down[:, :, 2:], across[:, :-2] - across[:, 2:]], axis=-1)
