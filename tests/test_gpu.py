import subprocess
import sys

import pytest

from ssljax import gpu

FLAG = '--xla_gpu_enable_triton_gemm=false'


@pytest.mark.parametrize('found', [True, False])
def test_only_where_jax_computes_on_nvidia_gpus(monkeypatch, found):
    spec = lambda name: object() if found and name == 'jax_cuda13_plugin' else None
    monkeypatch.setattr(gpu.importlib.util, 'find_spec', spec)
    environ = {'XLA_FLAGS': '--xla_a=1'}
    gpu.avoid_crash(environ)
    assert environ == {'XLA_FLAGS': f'--xla_a=1 {FLAG}' if found else '--xla_a=1'}


@pytest.mark.parametrize('given', ['', '--xla_gpu_enable_triton_gemm=true'])
def test_what_the_user_says_counts(monkeypatch, given):
    monkeypatch.setattr(gpu, 'present', lambda: True)
    environ = {'XLA_FLAGS': given}
    gpu.avoid_crash(environ)
    assert environ['XLA_FLAGS'] == (given or FLAG)


def test_importing_ssljax_sees_to_it_and_jax_knows_the_flag(tmp_path):
    (tmp_path / 'jax_cuda13_plugin.py').write_text('')
    program = 'import ssljax, jax, os; print(jax.jit(lambda x: x + 1)(1), os.environ["XLA_FLAGS"])'
    run = [sys.executable, '-c', program]
    environ = {'PYTHONPATH': str(tmp_path), 'JAX_PLATFORMS': 'cpu'}
    done = subprocess.run(run, capture_output=True, text=True, env=environ, check=True)
    assert done.stdout.split() == ['2', FLAG]
