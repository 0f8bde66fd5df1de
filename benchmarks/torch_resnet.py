"""A CIFAR ResNet in PyTorch, written for comparisons; names as in `ssljax.nets.resnet`."""

from collections.abc import Callable

from torch import nn
from torch.nn import functional

from ssljax.nets.resnet import LAYOUTS


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, c: int, d: int, stride: int, norm: Callable[[int], nn.Module]):
        super().__init__()
        self.conv1 = nn.Conv2d(c, d, 3, stride, 1, bias=False)
        self.norm1 = norm(d)
        self.conv2 = nn.Conv2d(d, d, 3, 1, 1, bias=False)
        self.norm2 = norm(d)
        if stride != 1 or c != d:
            self.shortcut_conv = nn.Conv2d(c, d, 1, stride, bias=False)
            self.shortcut_norm = norm(d)

    def forward(self, x):
        """The maps behind the block."""
        y = self.norm2(self.conv2(functional.relu(self.norm1(self.conv1(x)))))
        if hasattr(self, 'shortcut_conv'):
            x = self.shortcut_norm(self.shortcut_conv(x))
        return functional.relu(x + y)


class TorchResNet(nn.Module):
    """Depth 10 or 18; pooled features.

    Args:
        depth: layers, of basic blocks.
        norm: makes the normalisation of so many channels.
    """

    def __init__(self, depth: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d):
        super().__init__()
        self.stem_conv = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.stem_norm = norm(64)
        blocks, c = {}, 64
        for i, count in enumerate(LAYOUTS[depth][1]):
            for j in range(count):
                stride = 2 if i > 0 and j == 0 else 1
                blocks[f'stage{i + 1}_block{j}'] = Block(c, 64 * 2**i, stride, norm)
                c = 64 * 2**i
        self.blocks = nn.ModuleDict(blocks)
        self.width = c

    def forward(self, x):
        """[n, 3, h, w] to [n, width]."""
        x = functional.relu(self.stem_norm(self.stem_conv(x)))
        for block in self.blocks.values():
            x = block(x)
        return x.mean((2, 3))
