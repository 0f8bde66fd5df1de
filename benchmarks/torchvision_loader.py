"""PyTorch's `DataLoader` with torchvision's transforms on a folder of JPEGs: two views an image.

    python benchmarks/torchvision_loader.py FOLDER                   # crop and flip
    python benchmarks/torchvision_loader.py FOLDER --recipe simclr   # SimCLR's colour and blur too

A program of its own for `benchmarks/pipeline.py`: the loader forks its workers, which a process
that runs the threads of TensorFlow cannot survive. Prints one rate a repetition, images by second.
"""

import argparse
import os
import pathlib
import time

import torch
from torchvision import datasets, transforms


class TwoViews(torch.utils.data.Dataset):
    """A recipe, twice, of the files of a folder in turn, without end."""

    def __init__(self, folder: str, size: int, recipe: str):
        self.files = sorted(pathlib.Path(folder).glob('*.jpg'))
        bicubic = transforms.InterpolationMode.BICUBIC
        crop = transforms.RandomResizedCrop(size, interpolation=bicubic)
        more = distortion(size) if recipe == 'simclr' else []
        flip = transforms.RandomHorizontalFlip()
        self.view = transforms.Compose([crop, flip, *more, transforms.PILToTensor()])

    def __len__(self):
        return 2**20

    def __getitem__(self, number):
        image = datasets.folder.default_loader(str(self.files[number % len(self.files)]))
        return torch.stack([self.view(image), self.view(image)])


def distortion(size):
    """SimCLR's colour and blur at strength 1 (arXiv 2002.05709, appendix A)."""
    jitter = transforms.ColorJitter(0.8, 0.8, 0.8, 0.2)
    blur = transforms.GaussianBlur(size // 10 // 2 * 2 + 1, (0.1, 2.0))
    return [
        transforms.RandomApply([jitter], 0.8),
        transforms.RandomGrayscale(0.2),
        transforms.RandomApply([blur], 0.5),
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder')
    parser.add_argument('--recipe', choices=('crop', 'simclr'), default='crop')
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--repetitions', type=int, default=7)
    parser.add_argument('--batches', type=int, default=10, help='batches a repetition')
    options = parser.parse_args()
    workers = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    data = TwoViews(options.folder, options.size, options.recipe)
    stream = iter(torch.utils.data.DataLoader(data, options.batch, num_workers=workers))
    for _ in range(2 * workers + 1):  # what the workers make ahead
        next(stream)
    for _ in range(options.repetitions):
        began = time.perf_counter()
        for _ in range(options.batches):
            next(stream)
        print(options.batches * options.batch / (time.perf_counter() - began), flush=True)


if __name__ == '__main__':
    main()
