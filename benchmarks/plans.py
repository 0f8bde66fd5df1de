"""Plans of the experiments at full size: what each needs on TPUs, by `ssljax plan`.

    python benchmarks/plans.py                    # those that are missing
    python benchmarks/plans.py simclr_v5e_8x8     # one, anew
    python benchmarks/plans.py --table            # only write results.md and results.csv anew
    python benchmarks/plans.py --views            # main memory that SimCLR's device half takes

Needs the TPU compiler (`pip install -c launch/constraints.txt -e '.[tpu-plan]'`); no TPU, no data.
Each is compiled in a process of its own, 3 to 12 minutes on two cores, and leaves a JSON file in
`benchmarks/plans/`; the tables are written anew after each.
"""

import argparse
import csv
import importlib.metadata
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT / 'benchmarks' / 'plans'

VIT_L = tuple(
    f'--method.encoder.{field}={value}'
    for field, value in (('width', 1024), ('depth', 24), ('heads', 16))
)
PLANS = {
    'simclr_v5e_4x4': ('simclr_imagenet_r50', 'v5e:4x4'),
    'simclr_v5e_8x8': ('simclr_imagenet_r50', 'v5e:8x8'),
    'simclr_v5e_16x16': ('simclr_imagenet_r50', 'v5e:16x16'),
    'simclr_v5p_4x4x4': ('simclr_imagenet_r50', 'v5p:4x4x4'),
    'moco_v2_v5e_8x8': ('moco_v2_imagenet_r50', 'v5e:8x8'),
    'moco_v3_v5e_8x8': ('moco_v3_imagenet_vit_b', 'v5e:8x8'),
    'mae_v5e_8x8': ('mae_imagenet_vit_b', 'v5e:8x8'),
    'mae_vit_l_v5e_8x8': ('mae_imagenet_vit_b', 'v5e:8x8', *VIT_L),
}
"""Name -> experiment file, topology, and options; the batch is the experiment's."""

GIB, GB, TERA = 2**30, 1e9, 1e12


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('names', nargs='*', help=f'of {", ".join(PLANS)}')
    parser.add_argument('--table', action='store_true', help='only write the tables anew')
    parser.add_argument('--views', action='store_true', help='the device half alone, in parts')
    options = parser.parse_args()
    unknown = set(options.names) - set(PLANS)
    if unknown:
        parser.error(f'no plan {", ".join(sorted(unknown))}; there are {", ".join(PLANS)}')
    if options.views:
        views(pairs=256)
        return 0
    FOLDER.mkdir(exist_ok=True)
    missing = [name for name in PLANS if not (FOLDER / f'{name}.json').exists()]
    for name in () if options.table else options.names or missing:
        planned(name)
        write_tables()
    write_tables()
    return 0


def planned(name: str) -> None:
    experiment, topology, *options = PLANS[name]
    # Set before JAX is imported, as the command itself does.
    from ssljax.plan.environment import quiet

    quiet()
    from provenance import header

    made = dict(line.split(': ', 1) for line in header().splitlines())  # before a file is replaced
    file = FOLDER / f'{name}.json'
    command = ['plan', f'experiments/{experiment}.py', '--topology', topology, *options]
    print(f'ssljax {" ".join(command)}', flush=True)
    command += ['--json', str(file)]
    program = 'from ssljax.cli import main; main()'
    told = subprocess.run([sys.executable, '-c', program, *command], cwd=ROOT, env=dict(os.environ))
    if not file.exists():
        sys.exit(f'{name}: the plan failed with code {told.returncode}')
    facts = json.loads(file.read_text())
    facts['made'] = made | {'libtpu': importlib.metadata.version('libtpu')}
    facts['options'] = options
    file.write_text(json.dumps(facts, indent=2) + '\n')


def views(pairs: int) -> None:
    """SimCLR's device half on a chip, compiled alone: at once, and in the parts it is done in."""
    from ssljax.plan.environment import quiet

    quiet()
    import jax
    from provenance import header

    from ssljax.core import with_keys
    from ssljax.plan.hlo import Program
    from ssljax.plan.topology import topology
    from ssljax.plan.work import work
    from ssljax.views import device
    from ssljax.views.simclr import SimCLRViews

    print(header())
    at = jax.sharding.SingleDeviceSharding(topology('v5e:1x1').devices[0])
    place = lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=at)
    recipe = SimCLRViews(size=224, strength=1.0, blur=0.5)
    batch = {
        'image': place((pairs, 2, 224, 224, 3), 'uint8'),
        'index': place((pairs,), 'int32'),
    }
    key = place((), jax.random.key(0).dtype)
    for at_once in (2**40, device.AT_ONCE):
        device.AT_ONCE = at_once
        made = jax.jit(lambda b, k: recipe.on_device(with_keys(b, k))['image'])
        run = made.lower(batch, key).compile()
        done = work(Program.parse(run.as_text()), run.cost_analysis())
        parts = device._parts(pairs, batch['image'].size, 1)
        print(
            f'{pairs} pairs in {parts} parts: {done.hbm / GB:.2f} GB through main memory '
            f"({done.accessed / GB:.2f} GB by XLA's count)"
        )
        if parts == 1:  # of a loop, XLA counts the operations of one turn
            print(f"{run.cost_analysis()['flops'] / GB:.1f} GFLOP by XLA's count")


def row(facts: dict) -> dict[str, str]:
    made = {key: facts['made'][key] for key in ('date', 'commit', 'jax', 'libtpu')}
    words = [pathlib.Path(facts['experiment']).stem, *facts.get('options', ())]
    head = {'experiment': ' '.join(words), 'topology': facts['topology']}
    if 'work' not in facts:
        return head | {'fits': 'no'} | made
    seconds, memory, work = facts['seconds'], facts['memory'], facts['work']
    return {
        **head,
        'batch': f'{facts["batch"]}',
        'fits': 'yes' if facts['fits'] else 'no',
        'memory GiB': f'{memory["total"] / GIB:.2f}',
        'state GiB': f'{sum(memory[k] for k in ("parameters", "optimizer", "method")) / GIB:.2f}',
        'TFLOP': f'{work["flops"] / TERA:.2f}',
        'HBM GB': f'{work["hbm"] / GB:.1f}',
        'XLA GB': f'{work["accessed"] / GB:.1f}',
        'sent GB': f'{facts["sent"] / GB:.3f}',
        'collectives': f'{sum(c["count"] for c in facts["collectives"])}',
        'bound': seconds['bound'],
        'step ms': f'{seconds["best"] * 1e3:.1f} to {seconds["apart"] * 1e3:.1f}',
        'images/s': f'{facts["apart"]["images"]:,.0f} to {facts["best"]["images"]:,.0f}',
        'chip-hours': f'{facts["best"]["chip_hours"]:,.0f} to {facts["apart"]["chip_hours"]:,.0f}',
        'cores/chip': f'{facts["host"]["cores"]:.1f}',
        **made,
    }


def write_tables() -> None:
    files = [FOLDER / f'{name}.json' for name in PLANS]
    rows = [row(json.loads(file.read_text())) for file in files if file.exists()]
    if not rows:
        return
    columns = list(max(rows, key=len))
    with (FOLDER / 'results.csv').open('w', newline='') as out:
        writer = csv.DictWriter(out, columns, restval='')
        writer.writeheader()
        writer.writerows(rows)
    lines = [
        '# Plans at full size',
        '',
        'By `python benchmarks/plans.py` (`ssljax plan`): the real step, compiled for TPUs that',
        'nobody owns here. Figures are those of one chip and step. "HBM" is the least that has to',
        'cross main memory as the program is scheduled, "XLA" the bytes accessed by XLA\'s count.',
        "Times are at the chip's peaks, with everything overlapped and with nothing: bounds, not",
        'measurements. "cores/chip" are the host cores that decode for it at the better pace.',
        '',
        '| ' + ' | '.join(columns) + ' |',
        '| ' + ' | '.join('---' for _ in columns) + ' |',
        *('| ' + ' | '.join(r.get(c, '') for c in columns) + ' |' for r in rows),
    ]
    (FOLDER / 'results.md').write_text('\n'.join(lines) + '\n')


if __name__ == '__main__':
    sys.exit(main())
