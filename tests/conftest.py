"""Eight virtual CPU devices and a persistent compilation cache for every test."""

import gc
import importlib.metadata
import os
import pathlib

_CACHE = pathlib.Path(__file__).parent.parent / '.cache' / 'jax'
# Tests compile more than they compute; so do the processes that they start, which inherit it.
_FLAGS = ['--xla_backend_optimization_level=0']
if importlib.metadata.version('jaxlib').startswith('0.10.'):  # an unknown flag ends the process
    _FLAGS.append('--xla_cpu_use_fusion_emitters=false')  # takes 2.5 times less to compile
os.environ['XLA_FLAGS'] = ' '.join([os.environ.get('XLA_FLAGS', ''), *_FLAGS])
os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ.setdefault('JAX_COMPILATION_CACHE_DIR', str(_CACHE))
os.environ.setdefault('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0.5')
os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
os.environ.setdefault('MPLBACKEND', 'agg')

import jax  # noqa: E402
import pytest  # noqa: E402

jax.config.update('jax_num_cpu_devices', 8)  # of this process alone


@pytest.fixture(scope='module', autouse=True)
def forget():
    """What a file has compiled goes with it: it would pile up to gigabytes."""
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def x64():
    """Computes in float64 inside the test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def mesh8():
    """A mesh of eight devices along `data`."""
    return jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))


def pytest_addoption(parser):
    parser.addoption('--no-skips', action='store_true', help='a skipped test is a failure')


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    report = (yield).get_result()
    if report.skipped and not hasattr(report, 'wasxfail') and item.config.getoption('--no-skips'):
        report.outcome = 'failed'
        report.longrepr = f'skipped, which --no-skips forbids: {report.longrepr}'
