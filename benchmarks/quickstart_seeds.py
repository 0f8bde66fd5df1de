"""The quickstart over several training seeds: the table of the README, and its goals.

    python benchmarks/quickstart_seeds.py                     # trains three seeds, or goes on
    python benchmarks/quickstart_seeds.py --seeds 5

Every seed is a run of `ssljax train experiments/simclr_fashion_mnist.py --seed K`, with a device
for each of two cores as in `launch/quickstart.sh`, followed by `ssljax evaluate`; random
initialisation is drawn anew with every seed, raw pixels have none. The upper reference is the same
encoder trained as long with labels: `experiments/supervised_fashion_mnist.py`, changed as
`SUPERVISED` says.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

from cpu_devices import flags
from provenance import header

ROOT = pathlib.Path(__file__).parent.parent
EXPERIMENTS = ROOT / 'experiments'
SUPERVISED = ('--method.encoder.widths', '32', '128', '--epochs', '40')
SUPERVISED += ('--optimizer.warmup-epochs', '4')
GOALS = {'random': (4.0, 12.0, 4.0), 'raw': (None, 3.0, 3.0)}


def run(name: str, folder: pathlib.Path, seed: int, changes=(), asked=()) -> list[dict]:
    """The rows of the table of a run of `experiments/{name}_fashion_mnist.py`."""
    ssljax = str(pathlib.Path(sys.executable).parent / 'ssljax')
    file = str(EXPERIMENTS / f'{name}_fashion_mnist.py')
    train = [ssljax, 'train', file, *changes, '--seed', str(seed), '--folder', str(folder)]
    subprocess.run(train, env=os.environ | {'XLA_FLAGS': flags()}, check=True)
    subprocess.run([ssljax, 'evaluate', str(folder), *asked], check=True)
    return json.loads((folder / 'evaluation.json').read_text())['table']['rows']


def numbers(row: dict) -> tuple[float, float, float]:
    """Linear, few labels, kNN, in per cent."""
    return tuple(100 * v for v in (row['linear']['top1'], row['few']['mean'], row['knn']['top1']))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--seeds', type=int, default=3)
    parser.add_argument('--folder', type=pathlib.Path, default=ROOT / 'runs' / 'quickstart_seeds')
    options = parser.parse_args()
    seeds = range(options.seeds)
    tables = [run('simclr', options.folder / str(seed), seed) for seed in seeds]
    for seed in seeds:
        folder = options.folder / f'supervised_{seed}'
        tables[seed] += run('supervised', folder, seed, SUPERVISED, ['--no-references'])
    print(header())
    rows = [[numbers(table[i]) for table in tables] for i in range(4)]
    print('| encoder | linear, 7,000 labels | linear, 10 labels a class | kNN |')
    print('| --- | ---: | ---: | ---: |')
    names = [row['name'] for row in tables[0]]
    for name, found in zip(names, rows, strict=True):
        cells = [
            f'{statistics.mean(column):.1f} ± {statistics.stdev(column):.1f}'
            if len(set(column)) > 1
            else f'{column[0]:.1f}'
            for column in zip(*found, strict=True)
        ]
        print(f'| {name} | ' + ' | '.join(cells) + ' |')
    print(f'\nMean ± standard deviation over {options.seeds} training seeds, per cent.')
    means = [[statistics.mean(column) for column in zip(*found, strict=True)] for found in rows]
    for i, (name, goals) in enumerate(GOALS.items(), 1):
        for column, goal, ours, theirs in zip(
            ('linear', 'few labels', 'kNN'), goals, means[0], means[i], strict=True
        ):
            if goal is not None:
                verdict = 'met' if ours - theirs >= goal else 'MISSED'
                print(f'{column} over {name}: {ours - theirs:+.1f} (goal {goal:+.0f}: {verdict})')


if __name__ == '__main__':
    main()
