"""One device over all cores of a CPU, or one device of one thread for each?

    python benchmarks/cpu_devices.py             # the quickstart's step, both ways, in turns

XLA splits an operation over the cores of a device, one operation after the other; cores that are
devices of their own have a share of the batch each and meet in the sums over it. Every turn is a
process of its own, as XLA reads its flags once. What `launch/quickstart.sh` sets is compared with
nothing set.
"""

import argparse
import dataclasses
import os
import re
import statistics
import subprocess
import sys
import time

import jax
from provenance import header
from step import ROOT, session_of, whole_step

from ssljax.train.placement import Placement, make_mesh

SCRIPT = ROOT / 'launch' / 'quickstart.sh'


def flags() -> str:
    """Those of the quickstart."""
    return re.search(r'XLA_FLAGS="(.*)"', SCRIPT.read_text())[1]


def turn(steps: int) -> None:
    """Prints the number of devices and the median of the seconds of so many steps."""
    session = session_of('quickstart', 256)
    session = dataclasses.replace(session, placement=Placement(make_mesh()))
    run, taken = whole_step(session), []
    jax.block_until_ready(run())
    for _ in range(steps):
        began = time.perf_counter()
        jax.block_until_ready(run())
        taken.append(time.perf_counter() - began)
    print(session.placement.mesh.size, statistics.median(taken))


def seconds(xla_flags: str, steps: int) -> tuple[int, float]:
    """Number of devices and seconds of a step in a process with these flags."""
    done = subprocess.run(
        [sys.executable, __file__, '--turn', '--steps', str(steps)],
        env=os.environ | {'XLA_FLAGS': xla_flags},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    devices, median = done.stdout.split()
    return int(devices), float(median)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--steps', type=int, default=20, help='timed steps of a turn')
    parser.add_argument('--turns', type=int, default=3, help='of each')
    parser.add_argument('--turn', action='store_true', help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.turn:
        turn(options.steps)
        return
    print(header())
    found = {}
    for _ in range(options.turns):
        for given in ('', flags()):
            devices, median = seconds(given, options.steps)
            found.setdefault(devices, []).append(median)
            print(f'{devices} x cpu: {1e3 * median:.4g} ms a step, {256 / median:.0f} pairs/s')
    if len(found) == 2:
        (_, one), (devices, each) = sorted(found.items())
        ratio = statistics.median(one) / statistics.median(each)
        print(f'{devices} devices against one: {ratio:.2f} times the pairs a second')


if __name__ == '__main__':
    main()
