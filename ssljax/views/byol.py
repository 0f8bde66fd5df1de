"""The views of BYOL: two that differ in how often they are blurred and solarised."""

import dataclasses

import jax
import jax.numpy as jnp

from ssljax.core import Batch
from ssljax.data.graph import Tensor
from ssljax.data.picture import Picture
from ssljax.views import device, host
from ssljax.views.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class BYOLViews(Recipe):
    """Random resized crop, flip, colour jitter, grey, blur, solarise, with probabilities per view.

    ImageNet has the defaults (MoCo v3 with a ResNet: `scale=(0.2, 1.0)`); CIFAR-10
    `size=32, blur=(0.0, 0.0), evaluation_crop=1.0`. Barlow Twins and VICReg use these views too.
    Colours are jittered as torchvision does it, and so MoCo v3's and solo-learn's code. BYOL's own
    adds to the brightness what is multiplied here, which moves dark images more, changes contrast
    around the mean of each channel and saturation in HSV; and it draws a crop once, cut to fit.
    Images that are not RGB need `saturation=0.0, hue=0.0, gray=0.0` and their own `mean` and `std`.

    Attributes:
        scale: least and greatest share of the picture's area in a crop.
        ratio: least and greatest width / height of a crop.
        flip: probability of a left-right flip.
        brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness].
        contrast: likewise, around the mean grey level.
        saturation: likewise, around the grey image.
        hue: amplitude of the shift, as a share of the colour circle, at most 0.5.
        jitter: probability of these four, applied together in random order.
        gray: probability of dropping the colour.
        blur: probability of a Gaussian blur of about a tenth of the view's size, one per view; as
            many views are made as there are numbers.
        solarize: probability of inverting what is 0.5 or brighter, one per view.
        sigma: least and greatest standard deviation of the blur in pixels.

    Reference:
        Grill et al. 2020, Bootstrap your own latent, arXiv 2006.07733, appendix B, table 6.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    jitter: float = 0.8
    gray: float = 0.2
    blur: tuple[float, ...] = (1.0, 0.1)
    solarize: tuple[float, ...] = (0.0, 0.2)
    sigma: tuple[float, float] = (0.1, 2.0)

    def views(self) -> dict[str, tuple[int, int]]:
        """As many views as `blur` has numbers, of `size` pixels, under `image`."""
        return {'image': (len(self.blur), self.size)}

    def on_host(self, picture: Picture, seed: Tensor) -> dict[str, Tensor]:
        """Crops, resizes and flips."""
        return {'image': host.random_views(picture, seed, len(self.blur), self.random_crop())}

    def on_device(self, batch: Batch) -> Batch:
        """Jitters, drops colour, blurs, solarises and normalises."""
        views = []
        for k, change in enumerate(self.photometric()):
            # A view that is changed on its own is number 0 there, so its own key goes in.
            keys = jax.vmap(lambda key, k=k: jax.random.fold_in(key, k))(batch['key'])
            views.append(device.photometric_views(batch['image'][:, k : k + 1], keys, change))
        return {**batch, 'image': self.standardize(jnp.concatenate(views, axis=1))}

    def random_crop(self) -> host.RandomCrop:
        """The distribution of windows and flips."""
        return host.RandomCrop(self.resize(), self.scale, self.ratio, self.flip)

    def photometric(self) -> tuple[device.Photometric, ...]:
        """The distribution of what happens to the colours, view by view."""
        both = device.Photometric(
            brightness=self.brightness,
            contrast=self.contrast,
            saturation=self.saturation,
            hue=self.hue,
            jitter=self.jitter,
            gray=self.gray,
            sigma=self.sigma,
        )
        return tuple(
            dataclasses.replace(both, blur=blur, solarize=solarize)
            for blur, solarize in zip(self.blur, self.solarize, strict=True)
        )

    def check(self, channels: int) -> None:
        """Raises ValueError if a field is out of range or needs RGB and there is none."""
        super().check(channels)
        self.random_crop().check()
        if not self.blur or len(self.blur) != len(self.solarize):
            raise ValueError(
                f'blur {self.blur} and solarize {self.solarize} describe different numbers of '
                'views; give each one probability per view'
            )
        for change in self.photometric():
            change.check(channels)
