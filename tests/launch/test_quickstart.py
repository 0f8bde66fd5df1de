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


def test_it_trains_on_two_devices_and_evaluates_exports_and_reports_on_one(tmp_path):
    shutil.copy(QUICKSTART, tmp_path)
    (tmp_path / 'environment.sh').write_text(f'PATH={tmp_path}:$PATH\n')
    (tmp_path / 'ssljax').write_text(SSLJAX)
    (tmp_path / 'ssljax').chmod(0o755)
    environ = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'} | {'JAX_PLATFORMS': 'cpu'}
    run = ['bash', str(tmp_path / 'quickstart.sh')]
    done = subprocess.run(run, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        'train experiments/simclr_fashion_mnist.py --folder runs/quickstart on 2',
        'evaluate runs/quickstart on 1',
        'export runs/quickstart --format native on 1',
        'report runs/quickstart on 1',
    ]
