"""The scripts for clusters, as far as a machine without one can try them.

Stand-ins for `srun`, `scontrol`, `nvidia-smi` and `gcloud` lie first on PATH.
"""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import yaml

from ssljax.cli import Train
from ssljax.train import metrics
from ssljax.train.processes import Asked

ROOT = pathlib.Path(__file__).parents[2]
LAUNCH = ROOT / 'launch'
SCRIPTS = sorted([*LAUNCH.glob('*.sh'), *LAUNCH.glob('*.sbatch')])

SRUN = """
import os, signal, subprocess, sys
command = sys.argv[sys.argv.index('ssljax'):]  # behind srun's own options
count = int(os.environ['SLURM_NTASKS'])
tasks = []
# Ahead of the tasks: they speak before the last of them is started.
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
listen = lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
for i in range(count):
    environment = {**os.environ, 'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i)}
    tasks.append(subprocess.Popen(command, env=environment, preexec_fn=listen))
listen()
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""


def stub(folder, name, body, shell='/bin/bash'):
    path = folder / name
    path.write_text(f'#!{shell}\n{body}\n')
    path.chmod(0o755)


@pytest.fixture
def cluster(tmp_path):
    """A folder with a SLURM of two tasks on this machine, and the environment it gives a job."""
    folder = tmp_path / 'bin'
    folder.mkdir()
    stub(folder, 'srun', SRUN, sys.executable)
    stub(folder, 'scontrol', f'echo "$@" >> {tmp_path}/scontrol')
    job = next(n for n in range(7000, 11000) if is_free(n % 2**12 + 2**16 - 2**12))
    environment = {
        **os.environ,
        'PATH': f'{folder}:{os.environ["PATH"]}',
        'SLURM_SUBMIT_DIR': str(ROOT),
        'SLURM_JOB_ID': str(job),
        'SLURM_NTASKS': '2',
        'SLURM_STEP_NODELIST': 'localhost',
        'SLURM_STEP_NUM_NODES': '1',
    }
    # A checkout's own environment would come first on PATH.
    if (ROOT / '.venv').exists():
        copied = tmp_path / 'checkout'
        shutil.copytree(LAUNCH, copied / 'launch')
        environment['SLURM_SUBMIT_DIR'] = str(copied)
    return folder, environment


def is_free(port):
    with socket.socket() as found:
        try:
            found.bind(('', port))
        except OSError:
            return False
        return True


def batch(script, environment, *arguments):
    return subprocess.Popen(
        ['bash', LAUNCH / script, *map(str, arguments)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process, within=400):
    try:
        output, _ = process.communicate(timeout=within)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the tasks, too
    return process.returncode, output


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
    command = pathlib.Path(sys.executable).with_name('shellcheck')
    done = subprocess.run(
        [command, '-x', '--source-path', ROOT, '--source-path', LAUNCH, script],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.slow
@pytest.mark.parametrize('number', [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize('script', ['slurm.sbatch', 'slurm_sweep.sbatch'])
def test_a_job_that_is_told_to_end_saves_and_is_queued_again(cluster, tmp_path, script, number):
    folder, environment = cluster
    stub(
        folder,
        'ssljax',
        'trap "sleep 1; exit 75" TERM; echo "task $SLURM_PROCID: $*"; while :; do sleep 0.1; done',
    )
    process = batch(script, environment, 'a b.py', '--folder', 'f')
    said = sorted(process.stdout.readline().rstrip() for _ in range(2))
    wanted = {
        'slurm.sbatch': 'train a b.py --folder f --distributed',
        'slurm_sweep.sbatch': 'sweep a b.py --folder f',
    }[script]
    assert said == [f'task {i}: {wanted}' for i in range(2)]
    process.send_signal(number)
    code, output = ended(process, 60)
    assert code == 75, output
    assert (tmp_path / 'scontrol').read_text() == f'requeue {environment["SLURM_JOB_ID"]}\n'


@pytest.mark.parametrize('code', [0, 1, 2])
def test_a_job_that_is_done_or_failed_is_not_queued_again(cluster, tmp_path, code):
    folder, environment = cluster
    stub(folder, 'ssljax', f'exit {code}')
    assert ended(batch('slurm.sbatch', environment, 'x.py'), 60)[0] == code
    assert not (tmp_path / 'scontrol').exists()


TINY = """
import time
from ssljax.data.batches import Batches
from ssljax.experiment import Data, Evaluation, Experiment
from ssljax.methods.simclr import SimCLR
from ssljax.nets.heads import ProjectionHead
from ssljax.nets.small import SmallResNet
from ssljax.optim import SGD
from ssljax.views.simclr import SimCLRViews

read = Batches.__next__
Batches.__next__ = lambda self: (time.sleep(0.2), read(self))[1]

def config():
    return Experiment(
        method=SimCLR(
            SmallResNet(stem_patch=4, widths=(4,), blocks=(1,)), ProjectionHead(widths=(8, 4))
        ),
        recipe=SimCLRViews(size=16, blur=0.0),
        data=Data(name='made_images', train='train[:64]'),
        optimizer=SGD(learning_rate=0.01, scaling='none'),
        batch=16,
        steps=40,
        evaluation=Evaluation(every=0.0),
        log_every=1,
    )
"""


@pytest.mark.slow
def test_real_processes_find_each_other_by_slurm_stop_and_go_on(cluster, tmp_path):
    folder, environment = cluster
    program = 'from ssljax.cli import main; main()'
    stub(folder, 'ssljax', f'exec {sys.executable} -c "{program}" "$@"')
    experiment, run = tmp_path / 'tiny.py', tmp_path / 'run'
    experiment.write_text(TINY)
    process = batch('slurm.sbatch', environment, experiment, '--folder', run)
    end = time.monotonic() + 300
    while not (run / 'metrics.jsonl').exists() or not metrics.read(run):
        assert process.poll() is None and time.monotonic() < end, ended(process)
        time.sleep(0.05)
    process.send_signal(signal.SIGUSR1)
    code, said = ended(process)
    assert code == 75 and 'goes back into the queue' in said, said
    assert metrics.read(run)[-1]['step'] < 40
    code, said = ended(batch('slurm.sbatch', environment, experiment, '--folder', run))
    assert code == 0 and 'continuing' in said, said
    assert [r['step'] for r in metrics.read(run)] == list(range(1, 41))
    assert '"2 x cpu"' in (run / 'run.json').read_text()


def copied(script, tmp_path):
    """A script in a checkout whose environment is ready."""
    launch = tmp_path / 'checkout' / 'launch'
    launch.mkdir(parents=True)
    for name in (script, 'local_multiprocess.py'):
        shutil.copy(LAUNCH / name, launch)
    (launch / 'environment.sh').write_text(f'cd {launch.parent}\necho "extra $1"\n')
    folder = tmp_path / 'bin'
    folder.mkdir()
    environment = {**os.environ, 'PATH': f'{folder}:{os.environ["PATH"]}', 'XLA_FLAGS': '--x=1'}
    return launch / script, folder, environment


@pytest.mark.parametrize(
    ('fast', 'flags'), [('', '--x=1 --xla_gpu_deterministic_ops=true'), ('1', '--x=1')]
)
def test_a_node_has_a_process_for_each_gpu(tmp_path, fast, flags):
    script, folder, environment = copied('gpu_node.sh', tmp_path)
    stub(folder, 'nvidia-smi', 'printf "GPU 0: H\\nGPU 1: H\\nGPU 2: H\\n"')
    stub(folder, 'ssljax', 'echo "$JAX_LOCAL_DEVICE_IDS $JAX_NUM_PROCESSES $XLA_FLAGS: $*"')
    done = subprocess.run(
        [script, 'x.py', '--batch', '8'],
        env={**environment, 'FAST': fast},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = sorted(done.stdout.splitlines())
    assert said == [f'[{i}] {i} 3 {flags}: train x.py --batch 8' for i in range(3)] + ['extra cuda']


def test_a_slice_gets_the_code_and_starts_it_on_every_host(tmp_path):
    script, folder, environment = copied('tpu_vm.sh', tmp_path)
    checkout, home = script.parents[1], tmp_path / 'host'
    home.mkdir()
    # The host of the stand-in is a folder; what it is told to run, it runs there.
    stub(
        folder,
        'gcloud',
        f"""
echo "$@" | head -1 >> {tmp_path}/told
case "$4" in
    scp) cp "$5" {home}/"${{6#*:}}" ;;
    ssh) cd {home} && bash -c "${{@: -1}}" ;;
esac""",
    )
    stub(folder, 'ssljax', 'pwd; printf "<%s>" "$@"')
    (checkout / 'launch' / 'environment.sh').write_text('echo "extra $1"\n')
    for git in (
        ('init', '-q'),
        ('add', '.'),
        ('-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '-qm', 'all'),
    ):
        subprocess.run(['git', *git], cwd=checkout, check=True)
    done = subprocess.run(
        [script, 'pod', 'us-x', 'a b.py', '--folder', 'gs://c/$d'],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        'extra tpu',
        str(home / 'ssljax'),
        '<train><a b.py><--folder><gs://c/$d><--distributed>',
    ]
    told = (tmp_path / 'told').read_text().splitlines()
    assert len(told) == 2 and all('--zone us-x --worker all' in line for line in told)
    assert subprocess.run([script, 'pod'], env=environment, capture_output=True).returncode == 2


LABEL = re.compile(r'[a-z]([-a-z0-9]{0,61}[a-z0-9])?')


def test_the_jobset_is_whole_and_its_pods_find_the_first_of_them():
    jobset = yaml.safe_load((LAUNCH / 'gke.yaml').read_text())
    assert (jobset['apiVersion'], jobset['kind']) == ('jobset.x-k8s.io/v1alpha2', 'JobSet')
    name, spec = jobset['metadata']['name'], jobset['spec']
    assert spec['network']['enableDNSHostnames'] is True  # the headless service
    (replicated,) = spec['replicatedJobs']
    job = replicated['template']['spec']
    assert replicated['replicas'] == 1
    assert job['completionMode'] == 'Indexed' and job['parallelism'] == job['completions'] > 1
    assert job['backoffLimit'] == 0 and spec['failurePolicy']['maxRestarts'] > 0
    pod = job['template']['spec']
    assert pod['restartPolicy'] == 'Never'  # a pod failure policy allows no other
    (container,) = pod['containers']
    for label in (name, replicated['name'], spec['network']['subdomain'], container['name']):
        assert LABEL.fullmatch(label)
    (rule,) = job['podFailurePolicy']['rules']
    assert rule['action'] == 'FailJob'
    assert rule['onExitCodes'] == {'containerName': 'train', 'operator': 'In', 'values': [2]}
    (outer,) = spec['failurePolicy']['rules']
    assert outer['action'] == 'FailJobSet'
    assert outer['onJobFailureReasons'] == ['PodFailurePolicy']
    assert container['image'] and set(container['resources']) == {'limits'}

    told = {entry['name']: entry.get('value') for entry in container['env']}
    first = f'{name}-{replicated["name"]}-0-0'
    port = container['ports'][0]['containerPort']
    assert len(first) <= 63
    assert told['JAX_COORDINATOR_ADDRESS'] == f'{first}.{spec["network"]["subdomain"]}:{port}'
    (source,) = (e['valueFrom'] for e in container['env'] if e['name'] == 'JAX_PROCESS_ID')
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    assert source == {'fieldRef': {'fieldPath': index}}
    for process in range(job['completions']):
        asked = Asked().completed({**told, 'JAX_PROCESS_ID': str(process)})
        assert (asked.processes, asked.process) == (job['completions'], process)
    assert all(isinstance(value, str) for value in told.values() if value is not None)


def test_the_jobset_names_an_experiment_and_options_that_there_are():
    jobset = yaml.safe_load((LAUNCH / 'gke.yaml').read_text())
    (replicated,) = jobset['spec']['replicatedJobs']
    (container,) = replicated['template']['spec']['template']['spec']['containers']
    assert container['command'] == ['ssljax', 'train']
    experiment, *options = container['args']
    assert (ROOT / experiment).exists()
    known = {f'--{name}' for name in Train.__dataclass_fields__}
    assert {option for option in options if option.startswith('--')} <= known
