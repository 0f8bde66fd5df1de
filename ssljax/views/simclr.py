"""The views of SimCLR."""

import dataclasses

from ssljax.core import Batch
from ssljax.data.graph import Tensor
from ssljax.data.picture import Picture
from ssljax.views import device, host
from ssljax.views.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class SimCLRViews(Recipe):
    """Random resized crop, flip, colour jitter, grey, blur: each view drawn on its own.

    ImageNet has the defaults; CIFAR-10 `size=32, strength=0.5, blur=0.0, evaluation_crop=1.0`.
    Images that are not RGB need `saturation=0.0, hue=0.0, gray=0.0` and their own `mean` and `std`.
    Brightness multiplies, as in torchvision and the second version of the paper's code; the blur
    mirrors the image at its edges, where that code pads with zeros and so darkens them.

    Attributes:
        count: number of views.
        scale: least and greatest share of the picture's area in a crop.
        ratio: least and greatest width / height of a crop.
        flip: probability of a left-right flip.
        square: side of a square crop as a share of the picture's shorter side, in place of `scale`
            and `ratio`.
        strength: multiplies the four amplitudes of the jitter, the paper's s.
        brightness: amplitude: the factor is uniform in [max(0, 1 - b), 1 + b], b = s * brightness.
        contrast: likewise, around the mean grey level.
        saturation: likewise, around the grey image.
        hue: amplitude of the shift, as a share of the colour circle, at most 0.5.
        jitter: probability of these four, applied together in random order.
        gray: probability of dropping the colour.
        gray_first: whether that comes ahead of the jitter, as in MoCo v1's and NPID's code, not
            behind it.
        blur: probability of a Gaussian blur of about a tenth of the view's size.
        sigma: least and greatest standard deviation of the blur in pixels.

    Reference:
        Chen, Kornblith, Norouzi, Hinton 2020, A Simple Framework for Contrastive Learning of Visual
        Representations, arXiv 2002.05709, appendix A.
    """

    count: int = 2
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    square: float | None = None
    strength: float = 1.0
    brightness: float = 0.8
    contrast: float = 0.8
    saturation: float = 0.8
    hue: float = 0.2
    jitter: float = 0.8
    gray: float = 0.2
    gray_first: bool = False
    blur: float = 0.5
    sigma: tuple[float, float] = (0.1, 2.0)

    def views(self) -> dict[str, tuple[int, int]]:
        """`count` views of `size` pixels, under `image`."""
        return {'image': (self.count, self.size)}

    def on_host(self, picture: Picture, seed: Tensor) -> dict[str, Tensor]:
        """Crops, resizes and flips."""
        return {'image': host.random_views(picture, seed, self.count, self.random_crop())}

    def on_device(self, batch: Batch) -> Batch:
        """Jitters, drops colour, blurs and normalises."""
        views = device.photometric_views(batch['image'], batch['key'], self.photometric())
        return {**batch, 'image': self.standardize(views)}

    def random_crop(self) -> host.RandomCrop:
        """The distribution of windows and flips."""
        return host.RandomCrop(self.resize(), self.scale, self.ratio, self.flip, self.square)

    def photometric(self) -> device.Photometric:
        """The distribution of what happens to the colours."""
        return device.Photometric(
            brightness=self.strength * self.brightness,
            contrast=self.strength * self.contrast,
            saturation=self.strength * self.saturation,
            hue=self.strength * self.hue,
            jitter=self.jitter,
            gray=self.gray,
            gray_first=self.gray_first,
            blur=self.blur,
            sigma=self.sigma,
        )

    def check(self, channels: int) -> None:
        """Raises ValueError if a field is out of range or needs RGB and there is none."""
        super().check(channels)
        self.random_crop().check()
        self.photometric().check(channels)
        if self.count < 1:
            raise ValueError(f'count is {self.count}; a recipe makes at least one view')
