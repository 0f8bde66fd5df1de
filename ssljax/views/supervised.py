"""The views of supervised training and of linear probes."""

import dataclasses

from ssljax.core import Batch
from ssljax.data.graph import Tensor
from ssljax.data.picture import Picture
from ssljax.views import host
from ssljax.views.recipe import Recipe


@dataclasses.dataclass(frozen=True)
class CropFlip(Recipe):
    """One view: random resized crop and flip, no change of colour.

    Attributes:
        scale: least and greatest share of the picture's area in a crop.
        ratio: least and greatest width / height of a crop.
        flip: probability of a left-right flip.
        square: side of a square crop as a share of the picture's shorter side, in place of `scale`
            and `ratio`.

    Reference:
        Szegedy et al. 2014, Going Deeper with Convolutions, arXiv 1409.4842, section 6.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    square: float | None = None

    def views(self) -> dict[str, tuple[int, int]]:
        """One view of `size` pixels, under `image`."""
        return {'image': (1, self.size)}

    def on_host(self, picture: Picture, seed: Tensor) -> dict[str, Tensor]:
        """Crops, resizes and flips."""
        return {'image': host.random_views(picture, seed, 1, self.random_crop())}

    def on_device(self, batch: Batch) -> Batch:
        """Normalises."""
        return {**batch, 'image': self.normalize(batch['image'])}

    def random_crop(self) -> host.RandomCrop:
        """The distribution of windows and flips."""
        return host.RandomCrop(self.resize(), self.scale, self.ratio, self.flip, self.square)

    def check(self, channels: int) -> None:
        """Raises ValueError if a field is out of range."""
        super().check(channels)
        self.random_crop().check()
