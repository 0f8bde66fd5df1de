"""Multi-crop: a few large views of a picture and many small ones of parts of it."""

import dataclasses

import jax
import jax.numpy as jnp

from ssljax.core import Batch
from ssljax.data.graph import Tensor, tensorflow
from ssljax.data.picture import Picture
from ssljax.views import device, host
from ssljax.views.recipe import Recipe

LOCAL = 1 << 16
"""Folded into an example's key for its local views: no global view has this number."""


@dataclasses.dataclass(frozen=True)
class MultiCrop(Recipe):
    """Global views of most of the picture and, at a lower resolution, local views of small parts.

    Each is cropped, flipped, jittered, greyed, blurred and solarised by draws of its own. The
    defaults are DINO's. The others of ImageNet:

    | for               | scale       | local_scale  | local_count | colours                       |
    |-------------------|-------------|--------------|-------------|-------------------------------|
    | DINO, ResNet-50   | (0.14, 1.0) | (0.05, 0.14) | 8           | as here                       |
    | DINO, 800 epochs  | (0.25, 1.0) | (0.05, 0.25) | 10          | as here                       |
    | SwAV              | (0.14, 1.0) | (0.05, 0.14) | 6           | jitter of 0.8, 0.8, 0.8, 0.2, |
    |                   |             |              |             | blur 0.5 everywhere, no       |
    |                   |             |              |             | solarisation                  |

    A blur reaches a twentieth of the view's size to each side, so that on small views a wide one is
    cut short (deviation 2 on 96 pixels acts as 1.85); SwAV's code has 23 pixels and DINO's as many
    as the deviation takes, whatever the size.
    Images that are not RGB need `saturation=0.0, hue=0.0, gray=0.0` and their own `mean` and `std`.

    Attributes:
        scale: least and greatest share of the picture's area in a global view, of `size` pixels.
        local_size: height and width of a local view in pixels.
        local_scale: least and greatest share of the picture's area in a local view.
        local_count: number of local views; 0 makes none, nor an array of them.
        ratio: least and greatest width / height of a crop.
        flip: probability of a left-right flip.
        brightness: the factor is uniform in [max(0, 1 - brightness), 1 + brightness].
        contrast: likewise, around the mean grey level.
        saturation: likewise, around the grey image.
        hue: amplitude of the shift, as a share of the colour circle, at most 0.5.
        jitter: probability of these four, applied together in random order.
        gray: probability of dropping the colour.
        blur: probability of a Gaussian blur of about a tenth of the view's size, one per global
            view; as many global views are made as there are numbers.
        solarize: probability of inverting what is 0.5 or brighter, one per global view.
        local_blur: probability of the blur in every local view.
        local_solarize: probability of solarisation in every local view.
        sigma: least and greatest standard deviation of the blur in pixels.

    Reference:
        Caron et al. 2020, Unsupervised Learning of Visual Features by Contrasting Cluster
        Assignments, arXiv 2006.09882, section 3.2; Caron et al. 2021, Emerging Properties in
        Self-Supervised Vision Transformers, arXiv 2104.14294, section 3.1.
    """

    scale: tuple[float, float] = (0.4, 1.0)
    local_size: int = 96
    local_scale: tuple[float, float] = (0.05, 0.4)
    local_count: int = 8
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
    local_blur: float = 0.5
    local_solarize: float = 0.0
    sigma: tuple[float, float] = (0.1, 2.0)

    def views(self) -> dict[str, tuple[int, int]]:
        """Global views under `image`, one for each number in `blur`, local ones under `local`."""
        views = {'image': (len(self.blur), self.size)}
        return views | ({'local': (self.local_count, self.local_size)} if self.local_count else {})

    def on_host(self, picture: Picture, seed: Tensor) -> dict[str, Tensor]:
        """Crops, resizes and flips."""
        picture = picture.decoded()
        views = {'image': host.random_views(picture, seed, len(self.blur), self.random_crop())}
        if self.local_count:
            # Run seeds are 0 or more, so no other example and no other run draws from this one.
            tf = tensorflow()
            other = tf.stack([-1 - seed[0], seed[1]])
            crop = self.random_local_crop()
            views['local'] = host.random_views(picture, other, self.local_count, crop)
        return views

    def on_device(self, batch: Batch) -> Batch:
        """Jitters, drops colour, blurs, solarises and normalises."""
        views = []
        for k, change in enumerate(self.photometric()):
            # A view that is changed on its own is number 0 there, so its own key goes in.
            keys = _folded(batch, k)
            views.append(device.photometric_views(batch['image'][:, k : k + 1], keys, change))
        made = {'image': self.standardize(jnp.concatenate(views, axis=1))}
        if self.local_count:
            keys = _folded(batch, LOCAL)
            local = device.photometric_views(batch['local'], keys, self.local_photometric())
            made['local'] = self.standardize(local)
        return {**batch, **made}

    def random_crop(self) -> host.RandomCrop:
        """The distribution of windows and flips of the global views."""
        return host.RandomCrop(self.resize(), self.scale, self.ratio, self.flip)

    def random_local_crop(self) -> host.RandomCrop:
        """The distribution of windows and flips of the local views."""
        resize = dataclasses.replace(self.resize(), size=self.local_size)
        return host.RandomCrop(resize, self.local_scale, self.ratio, self.flip)

    def photometric(self) -> tuple[device.Photometric, ...]:
        """The distribution of what happens to the colours of the global views, one by one."""
        return tuple(
            self._photometric(blur, solarize)
            for blur, solarize in zip(self.blur, self.solarize, strict=True)
        )

    def local_photometric(self) -> device.Photometric:
        """The distribution of what happens to the colours of every local view."""
        return self._photometric(self.local_blur, self.local_solarize)

    def _photometric(self, blur: float, solarize: float) -> device.Photometric:
        return device.Photometric(
            brightness=self.brightness,
            contrast=self.contrast,
            saturation=self.saturation,
            hue=self.hue,
            jitter=self.jitter,
            gray=self.gray,
            blur=blur,
            solarize=solarize,
            sigma=self.sigma,
        )

    def check(self, channels: int) -> None:
        """Raises ValueError if a field is out of range or needs RGB and there is none."""
        super().check(channels)
        if not self.blur or len(self.blur) != len(self.solarize):
            raise ValueError(
                f'blur {self.blur} and solarize {self.solarize} describe different numbers of '
                'global views; give each one probability per view'
            )
        if self.local_count < 0 or self.local_size < 1:
            raise ValueError(
                f'there are {self.local_count} local views of {self.local_size} pixels; give '
                'local_count 0 or more and local_size 1 or more'
            )
        self.random_crop().check()
        try:
            self.random_local_crop().check()
        except ValueError as error:
            raise ValueError(f'local views: {error}') from error
        for change in (*self.photometric(), self.local_photometric()):
            change.check(channels)

    def smoke(self) -> 'MultiCrop':
        """The same recipe with small and few views."""
        return dataclasses.replace(
            super().smoke(),
            local_size=min(self.local_size, 16),
            local_count=min(self.local_count, 2),
        )


def _folded(batch: Batch, number: int) -> jax.Array:
    """The key of every example for a view of this number."""
    return jax.vmap(lambda key: jax.random.fold_in(key, number))(batch['key'])
