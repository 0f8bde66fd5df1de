"""`launch/quickstart.sh`: which commands it runs, and on how many devices."""

import os
import pathlib
import shutil
import subprocess
import sys

QUICKSTART = pathlib.Path(__file__).parents[2] / 'launch' / 'quickstart.sh'
SSLJAX = f"""#!{sys.executable}
import sys
import jax
print(*sys.argv[1:], 'on', jax.device_count())
"""


ENVIRON = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'} | {'JAX_PLATFORMS': 'cpu'}


def quickstart(folder, *arguments):
    """What the script prints, run in `folder`."""
    shutil.copy(QUICKSTART, folder)
    command = ['bash', 'quickstart.sh', *arguments]
    options = {'cwd': folder, 'env': ENVIRON, 'text': True, 'check': True}
    return subprocess.run(command, stdout=subprocess.PIPE, **options).stdout


def test_it_trains_on_two_devices_and_evaluates_exports_and_reports_on_one(tmp_path):
    (tmp_path / 'environment.sh').write_text(f'[ -z "$1" ]; PATH={tmp_path}:$PATH\n')
    (tmp_path / 'ssljax').write_text(SSLJAX)
    (tmp_path / 'ssljax').chmod(0o755)
    after = [
        'evaluate runs/quickstart on 1',
        'export runs/quickstart --format native on 1',
        'report runs/quickstart on 1',
    ]
    first = 'train experiments/simclr_fashion_mnist.py --folder runs/quickstart --epochs 3 on 2'
    assert quickstart(tmp_path, '--epochs', '3').splitlines() == [first, *after]
    (tmp_path / 'runs' / 'quickstart').mkdir(parents=True)
    (tmp_path / 'runs' / 'quickstart' / 'run.json').touch()
    said = quickstart(tmp_path).splitlines()
    assert said[1:] == ['train runs/quickstart --folder runs/quickstart on 2', *after]
