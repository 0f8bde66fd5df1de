"""Several hosts read one set by index: the same batches, and what a host's core makes of them.

    TFDS_DATA_DIR=... python benchmarks/hosts.py                        cifar10, 1, 2, 4 and 8 hosts
    python benchmarks/hosts.py --data fashion_mnist_10k --hosts 3 5

Each host is a process of its own, held to one core, that opens the set and reads its rows of every
batch, as `ssljax train` does with one process a host (rows in turn: an uneven split is fine). Put
together, the rows of all hosts have to be the bytes of one host that reads everything; exit code 0:
they are. Hosts of one machine share its cores, so what counts is `a core`, images by second of a
host's processor time, reading its own share: it falls where hosts repeat each other's work.
"""

import argparse
import concurrent.futures
import multiprocessing
import os
import statistics
import sys
import time

import numpy as np
from provenance import header

from ssljax.data.graph import cores
from ssljax.data.pipeline import Stream, batches
from ssljax.data.registry import open_source
from ssljax.views.simclr import SimCLRViews

ALONE = 3
"""Readings by a single host, whose median the others are set against."""


def share(name: str, host: int, hosts: int, batch: int, count: int):
    """One host's: rows of each of `count` batches [count, rows, ...] by name, and its rate."""
    if hasattr(os, 'sched_setaffinity'):
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {allowed[host % len(allowed)]})
    source = open_source(name, 'train[:90%]')
    grey = source.channels == 1
    channel = {'mean': (0.5,), 'std': (0.25,)} if grey else {}
    colour = {'saturation': 0.0, 'hue': 0.0, 'gray': 0.0} if grey else {}
    recipe = SimCLRViews(size=32, strength=0.5, blur=0.0, **channel, **colour)
    rows = np.arange(host, batch, hosts)
    stream = batches(source, recipe, Stream(batch, seed=0, rows=rows))
    for _ in range(3):  # the graph is built, and what is made ahead is there
        next(stream)
    began, read = time.process_time(), []
    for _ in range(count):
        read.append(next(stream))
    rate = count * len(rows) / (time.process_time() - began)
    return {key: np.stack([one[key] for one in read]) for key in read[0]}, rate


def together(name: str, hosts: int, batch: int, count: int):
    """The batches that so many hosts read, row by row as one would, and their rates."""
    spawn = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(
        min(hosts, cores()), spawn, max_tasks_per_child=1
    ) as pool:
        asked = [pool.submit(share, name, host, hosts, batch, count) for host in range(hosts)]
        shares, rates = zip(*(future.result() for future in asked), strict=True)
    joined = {}
    for key, first in shares[0].items():
        joined[key] = np.empty((count, batch, *first.shape[2:]), first.dtype)
        for host, part in enumerate(shares):
            joined[key][:, host::hosts] = part[key]
    return joined, rates


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--data', default='cifar10', help='the set, as in an experiment')
    parser.add_argument('--hosts', type=int, nargs='+', default=[1, 2, 4, 8])
    parser.add_argument('--batch', type=int, default=1024, help='images of a batch, of all hosts')
    parser.add_argument('--batches', type=int, default=40, help='so many are read and compared')
    options = parser.parse_args()
    os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # hosts are quiet, as `ssljax` is
    os.environ.setdefault('TF_ENABLE_ONEDNN_OPTS', '0')
    print(header())
    print(f'\n{options.data}, two views of 32 px, {options.batches} batches of {options.batch}\n')
    singly = [together(options.data, 1, options.batch, options.batches) for _ in range(ALONE)]
    wanted, alone = singly[0][0], statistics.median(rates[0] for _, rates in singly)
    same = True
    print('hosts  bytes of one host  images/s a core  of one host alone')
    for hosts in options.hosts:
        found, rates = together(options.data, hosts, options.batch, options.batches)
        equal = all(np.array_equal(found[key], wanted[key]) for key in wanted)
        same &= equal
        rate = statistics.median(rates)
        print(f'{hosts:5} {"yes" if equal else "NO":>18} {rate:16,.0f} {rate / alone:18.2f}')
    return 0 if same else 1


if __name__ == '__main__':
    sys.exit(main())
