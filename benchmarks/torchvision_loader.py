"""PyTorch's `DataLoader` with torchvision's transforms on a folder of JPEGs: two views an image.

    python benchmarks/torchvision_loader.py FOLDER

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
    """Random resized crop and flip, twice, of the files of a folder in turn, without end."""

    def __init__(self, folder: str, size: int):
        self.files = sorted(pathlib.Path(folder).glob('*.jpg'))
        bicubic = transforms.InterpolationMode.BICUBIC
        self.view = transforms.Compose(
            [
                transforms.RandomResizedCrop(size, interpolation=bicubic),
                transforms.RandomHorizontalFlip(),
                transforms.PILToTensor(),
            ]
        )

    def __len__(self):
        return 2**20

    def __getitem__(self, number):
        image = datasets.folder.default_loader(str(self.files[number % len(self.files)]))
        return torch.stack([self.view(image), self.view(image)])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder')
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--batch', type=int, default=64)
    parser.add_argument('--repetitions', type=int, default=7)
    parser.add_argument('--batches', type=int, default=10, help='batches a repetition')
    options = parser.parse_args()
    workers = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    data = TwoViews(options.folder, options.size)
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
