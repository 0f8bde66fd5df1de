"""Context encoder: features from painting in what is missing.

Part of every image is hidden; an encoder looks at the rest, a decoder paints what is missing from
its features. Mean squared error alone paints the blurred mean of all that would fit; a
discriminator that has to tell painted from real makes it decide. Pathak, Krahenbuhl, Donahue,
Darrell, Efros 2016, arXiv 1604.07379.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, PRNGKeyArray

from ssljax.core import Batch, Method, Now, Run, Signature, Tree
from ssljax.losses import adversarial, inpainting
from ssljax.methods.holes import Centre, Hole
from ssljax.nets.inpainting import ContextNet, Decoder, Discriminator

DRAW = 0xC0E
"""Folded into an example's key, so that its hole is drawn from a key that no recipe has used."""


@dataclasses.dataclass(frozen=True)
class ContextEncoder(Method):
    """Encoder and decoder (the generator, F) against a discriminator D, or by themselves.

    F minimises (1 - a) L_rec + a L_adv, with a the adversarial weight, D its own loss; both in one
    scalar, in which each sees the other as a constant. So both move at once, from where both were.
    The authors move D first, then F, by D's verdict from before that move and its new weights. The
    two want optimizers of their own (`ByPath`): F's rate is ten times D's in the paper.

    D judges what F painted, without what is around it: shown that too, it is too strong. It judges
    the whole output, also where that is not compared with the image. Real and painted images go
    through it one after the other, each normalised by its own batch. F ends in tanh, so images
    belong into [-1, 1]: a recipe with `mean` and `std` of 0.5.

    Attributes:
        encoder: images with a hole to features: what is kept. The paper's own is AlexNet.
        decoder: features to images, see `nets.inpainting.Decoder`.
        discriminator: images to logits; there is none if `adversarial_weight` is 0.
        hole: what is hidden: `Centre`, `Blocks` or `Region`.
        adversarial_weight: in [0, 1). Paper: 0.001. 0 is the paper's recipe for features, whose
            adversarial one did not converge with AlexNet.
        fill: what is put into the hole, in units of the normalised image; one number or one per
            channel. Paper: the mean colour, which is (-0.082, -0.184, -0.035) in [-1, 1].
        layer: which of the encoder's `features` the decoder is given, pooled ones or maps.
    """

    mean_over_examples: ClassVar[bool] = True

    encoder: nn.Module = dataclasses.field(default_factory=ContextNet)
    decoder: nn.Module = dataclasses.field(default_factory=Decoder)
    discriminator: nn.Module = dataclasses.field(default_factory=Discriminator)
    hole: Hole = dataclasses.field(default_factory=Centre)
    adversarial_weight: float = 0.001
    fill: tuple[float, ...] = (0.0,)
    layer: str = 'pool'

    def check(self, data: Signature, run: Run) -> None:
        """Raise ValueError unless there is one view, into which the hole and its fill fit."""
        views, size = dict(data.views).get('image', (0, 0))
        if views != 1:
            raise ValueError(
                f'a context encoder paints in 1 view, the recipe makes {views}; use a recipe of '
                'one view such as CropFlip'
            )
        if not 0 <= self.adversarial_weight < 1:
            raise ValueError(
                f'adversarial_weight is {self.adversarial_weight}; it must be in [0, 1), as the '
                'rest is the weight of the squared error'
            )
        if len(self.fill) not in (1, data.channels):
            raise ValueError(
                f'fill has {len(self.fill)} numbers but the images have {data.channels} '
                'channel(s); give one number, or one per channel'
            )
        self.hole.check(size)

    def init(self, key: PRNGKeyArray, batch: Batch, run: Run) -> tuple[Tree, Tree]:
        """Fresh networks."""
        k_encoder, k_decoder, k_discriminator = jax.random.split(key, 3)
        x = batch['image'][:, 0]
        target = self._window(x)
        f = self.encoder.init(k_encoder, x, train=False, method='features')
        h = self.encoder.apply(f, x, train=False, method='features')
        shape = (target.shape[1], target.shape[3])
        nets = {'encoder': f}
        nets['decoder'] = self.decoder.init(k_decoder, self._chosen(h), shape, train=False)
        if self.adversarial_weight:
            nets['discriminator'] = self.discriminator.init(k_discriminator, target, train=False)
        params = {name: net['params'] for name, net in nets.items()}
        return params, {'stats': {name: net.get('batch_stats', {}) for name, net in nets.items()}}

    def forward(
        self, params: Tree, state: Tree, batch: Batch, key: PRNGKeyArray
    ) -> tuple[Tree, Tree]:
        """What is painted, what is there, what it counts, and three verdicts of D.

        `prediction` and `target` [n, h, w, c] and `weight` [n, h, w] are of the hole's window.
        `real` and `fake` [n] are D's logits with a gradient to D alone, `fooled` those of the same
        painted images with a gradient to F alone.
        """
        x, keys = (
            batch['image'][:, 0],
            jax.vmap(lambda k: jax.random.fold_in(k, DRAW))(batch['key']),
        )
        hidden = jax.vmap(lambda k: self.hole.draw(k, x.shape[1]))(keys)
        context = jnp.where(hidden[..., None], jnp.asarray(self.fill, x.dtype), x)
        target = self._window(x)
        shape = (target.shape[1], target.shape[3])

        stats = dict(state['stats'])
        h, stats['encoder'] = _train(
            self.encoder, params['encoder'], stats['encoder'], context, method='features'
        )
        painted, stats['decoder'] = _train(
            self.decoder, params['decoder'], stats['decoder'], self._chosen(h), shape
        )
        weight = self._window(self.hole.weigh(hidden))
        outputs = {'prediction': painted, 'target': target, 'weight': weight}
        if self.adversarial_weight:
            d, old = params['discriminator'], stats['discriminator']
            outputs['real'], new = _train(self.discriminator, d, old, target)
            outputs['fake'], new = _train(
                self.discriminator, d, new, jax.lax.stop_gradient(painted)
            )
            outputs['fooled'], _ = _train(
                self.discriminator, jax.lax.stop_gradient(d), old, painted
            )
            stats['discriminator'] = new
        return outputs, stats

    def objective(self, params: Tree, outputs: Tree, state: Tree, now: Now):
        """Equation 3 for F, with L_adv in its non-saturating form, and equation 2 for D."""
        target = jax.lax.stop_gradient(outputs['target'])
        rec = inpainting.region_mse(outputs['prediction'], target, outputs['weight'])
        if not self.adversarial_weight:
            return rec, (state, {'reconstruction': rec})
        adv = adversarial.generator(outputs['fooled'])
        of_d = adversarial.discriminator(outputs['real'], outputs['fake'])
        of_f = (1 - self.adversarial_weight) * rec + self.adversarial_weight * adv
        metrics = {'reconstruction': rec, 'generator': adv, 'discriminator': of_d}
        return of_f + of_d, (state, metrics)

    def product(self, params: Tree, state: Tree) -> tuple[nn.Module, Tree]:
        """The encoder, at its running statistics."""
        return self.encoder, {
            'params': params['encoder'],
            'batch_stats': state['stats']['encoder'],
        }

    def _chosen(self, layers: dict[str, Array]) -> Array:
        """The layer that is decoded."""
        if self.layer not in layers:
            raise ValueError(f'layer {self.layer!r} is not one of {", ".join(layers)}')
        return layers[self.layer]

    def _window(self, x: Array) -> Array:
        """The predicted square of images or maps [n, h, w, ...]."""
        first, side = self.hole.window(x.shape[1])
        return x[:, first : first + side, first : first + side]


def _train(
    net: nn.Module, params: Tree, stats: Tree, *inputs, method: str | None = None
) -> tuple[Tree, Tree]:
    """A network in training mode: its outputs and its new running statistics."""
    variables = {'params': params, 'batch_stats': stats}
    y, new = net.apply(variables, *inputs, train=True, mutable=['batch_stats'], method=method)
    return y, new.get('batch_stats', {})
