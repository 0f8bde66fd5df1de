"""The scripts for clusters, as far as a machine without one can try them.

Stand-ins for `srun`, `scancel`, `scontrol`, `nvidia-smi` and `gcloud` lie first on PATH.
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
# As the real one does: "forcing job termination".
signal.signal(signal.SIGTERM, lambda *_: [task.kill() for task in tasks])
listen = lambda: signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
for i in range(count):
    environment = {**os.environ, 'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i)}
    tasks.append(subprocess.Popen(command, env=environment, preexec_fn=listen))
with open(os.environ['STEP'], 'w') as file:
    file.write(' '.join(str(task.pid) for task in tasks))
listen()
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""


SCANCEL = """
[ "$1" = --signal=TERM ] && [ "$2" = "$SLURM_JOB_ID" ] || exit 1
[ ! -s "$STEP" ] || kill -TERM $(cat "$STEP")
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
    stub(folder, 'scancel', SCANCEL)
    stub(folder, 'scontrol', f'echo "$@" >> {tmp_path}/scontrol')
    job = next(n for n in range(7000, 11000) if is_free(n % 2**12 + 2**16 - 2**12))
    environment = {
        **os.environ,
        'PATH': f'{folder}:{os.environ["PATH"]}',
        'SLURM_SUBMIT_DIR': str(ROOT),
        'SLURM_JOB_ID': str(job),
        'SLURM_NTASKS': '2',
        'STEP': str(tmp_path / 'step'),  # the tasks' process numbers, between the stand-ins
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
def test_a_job_told_to_end_saves_and_only_one_out_of_time_is_queued_by_us(
    cluster, tmp_path, script, number
):
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
    if number == signal.SIGUSR1:
        queued = f'requeue {environment["SLURM_JOB_ID"]}\n'
        assert (tmp_path / 'scontrol').read_text() == queued
    else:  # preempted, which SLURM sees to, or cancelled
        assert not (tmp_path / 'scontrol').exists()


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


DETERMINISTIC = (
    '--xla_gpu_deterministic_ops=true --xla_gpu_enable_scatter_determinism_expander=true'
)


@pytest.mark.parametrize(
    ('fast', 'visible', 'count', 'flags'),
    [('', '', 3, f'--x=1 {DETERMINISTIC}'), ('1', '', 3, '--x=1'), ('1', '0,2', 2, '--x=1')],
)
def test_a_node_has_a_process_for_each_gpu(tmp_path, fast, visible, count, flags):
    script, folder, environment = copied('gpu_node.sh', tmp_path)
    stub(folder, 'nvidia-smi', 'printf "GPU 0: H\\n  MIG 1g: 0\\nGPU 1: H\\nGPU 2: H\\n"')
    told = 'set -- $XLA_FLAGS: "$@"; echo "$JAX_LOCAL_DEVICE_IDS $JAX_NUM_PROCESSES $*"'
    stub(folder, 'ssljax', told)
    done = subprocess.run(
        [script, 'x.py', '--batch', '8'],
        env={**environment, 'FAST': fast, 'CUDA_VISIBLE_DEVICES': visible},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    said = sorted(done.stdout.splitlines())
    lines = [f'[{i}] {i} {count} {flags}: train x.py --batch 8' for i in range(count)]
    assert said == [*lines, 'extra cuda']


@pytest.fixture
def slice_(tmp_path):
    """`launch/tpu_vm.sh` for a slice of one host, a folder, which does there what it is told."""
    script, folder, environment = copied('tpu_vm.sh', tmp_path)
    checkout, home = script.parents[1], tmp_path / 'host'
    shutil.copy(LAUNCH / 'tpu_host.sh', checkout / 'launch')
    home.mkdir()
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
    (checkout / 'launch' / 'environment.sh').write_text('echo "extra $1"\n')
    committed(checkout, 'init', '-q')

    def command(*arguments):
        return subprocess.Popen(
            [script, 'pod', 'us-x', *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    yield checkout, folder, home, command
    with contextlib.suppress(OSError, ValueError):
        os.killpg(int((home / '.ssljax.pid').read_text()), signal.SIGKILL)


def committed(checkout, *first):
    commit = ('-c', 'user.name=a', '-c', 'user.email=a@b', 'commit', '-qm', 'all')
    for git in (first, ('add', '-A'), commit):
        if git:
            subprocess.run(['git', *git], cwd=checkout, check=True)


def test_a_slice_gets_the_code_and_starts_it_on_every_host(slice_, tmp_path):
    checkout, folder, home, command = slice_
    stub(folder, 'ssljax', 'pwd; printf "<%s>" "$@"; exit 75')
    (checkout / 'gone.py').touch()
    committed(checkout)
    code, said = ended(command('a b.py', '--folder', 'gs://c/$d'), 60)
    assert said.splitlines() == [
        'extra tpu',
        str(home / 'ssljax'),
        '<train><a b.py><--folder><gs://c/$d><--distributed>',
    ]
    assert code == 75
    told = (tmp_path / 'told').read_text().splitlines()
    assert len(told) == 2 and all('--zone us-x --worker all' in line for line in told)
    # The next commit takes the place of this one; what pip has installed stays, and runs do.
    for kept in ('.venv', 'runs/x', 'studies/y'):
        (home / 'ssljax' / kept).mkdir(parents=True)
    assert (home / 'ssljax' / 'gone.py').exists()
    (checkout / 'gone.py').unlink()
    committed(checkout)
    assert ended(command('x.py'), 60)[0] == 75
    assert not (home / 'ssljax' / 'gone.py').exists()
    for kept in ('.venv', 'runs/x', 'studies/y'):
        assert (home / 'ssljax' / kept).exists()
    heads = [
        subprocess.check_output(['git', 'rev-parse', 'HEAD'], cwd=where)
        for where in (checkout, home / 'ssljax')
    ]
    assert heads[0] == heads[1]  # which run.json names
    assert ended(command(), 60)[0] == 2


def test_a_run_on_a_slice_outlives_the_connection_and_stops_when_told(slice_):
    _, folder, _, command = slice_
    stub(
        folder, 'ssljax', 'trap "echo saved; exit 75" TERM; echo step; while :; do sleep 0.1; done'
    )
    first = command('x.py')
    assert [first.stdout.readline() for _ in range(2)] == ['extra tpu\n', 'step\n']
    os.killpg(first.pid, signal.SIGKILL)  # the laptop is closed
    code, said = ended(command('x.py'), 60)
    assert code == 2 and 'a run is going on here: launch/tpu_vm.sh pod us-x --show' in said
    watching = command('--show')
    assert [watching.stdout.readline() for _ in range(2)] == ['extra tpu\n', 'step\n']
    code, said = ended(command('--stop'), 60)
    assert code == 75 and said.splitlines()[-1] == 'saved'
    code, last = ended(watching, 60)
    assert code == 75 and last.endswith('saved\n')
    assert ended(command('--show'), 60) == (75, said)
    assert ended(command('--stop'), 60) == (75, said)


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
