"""Tests tpu_vm.sh, tpu_worker.sh, slurm.sbatch and gke.sh, with fake tools."""

import os
import pathlib
import shutil
import signal
import subprocess
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
GOLDEN = pathlib.Path(__file__).parent / 'golden'
COMMAND = [
  'python', '-m', 'launch.train', '--gin_file=gin_configs/runs/poems_cpu.gin',
  '--workdir=../bucket/my poems',
]  # fmt: skip


def tpu_vm(verb, *flags, command=(), environment=None):
  return subprocess.run(
    ['bash', ROOT / 'launch' / 'tpu_vm.sh', verb, '--name=a', '--zone=z']
    + [*flags, *(['--', *command] if command else [])],
    capture_output=True,
    text=True,
    check=False,
    env={**os.environ, 'TMPDIR': '/tmp', **(environment or {})},
  )


@pytest.mark.parametrize(
  ('name', 'verb', 'flags'),
  [
    ('spot', 'run', ['--type=v6e-16', '--spot', '--bucket=gs://b']),
    ('two_slices', 'run', ['--type=v5p-32', '--slices=2', '--reserved']),
    ('logs', 'logs', []),
    ('stop', 'stop', ['--slices=2']),
    ('delete', 'delete', []),
  ],
)
def test_a_dry_run_prints_all_commands(name, verb, flags):
  command = COMMAND if verb == 'run' else ()
  done = tpu_vm(verb, '--dry-run', *flags, command=command)
  assert done.returncode == 0, done.stderr
  expected = (GOLDEN / f'tpu_vm_{name}.txt').read_text(encoding='utf-8')
  assert done.stdout == expected


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--type=tpu7x-8'], 'tpu7x is offered on GKE alone'),
    (['--type=v9-8'], '--type=v9-8 must be'),
    (['--type=v4-8', '--spt'], 'unknown flag --spt'),
  ],
)
def test_a_mistake_is_one_sentence_and_code_2(flags, message):
  done = tpu_vm('run', '--dry-run', *flags, command=COMMAND)
  assert done.returncode == 2 and message in done.stderr


# A fake gcloud: `describe` prints the next line of the file `states`. A worker
# reports the exit code in the file `code`, or 0.
GCLOUD = """#!/bin/bash
echo "$*" >> "$FAKE/calls"
case "$*" in
  *queued-resources*describe*)
    head -n 1 "$FAKE/states"
    sed -i 1d "$FAKE/states" ;;
  *networkEndpoints*) echo 10.0.0.1 ;;
  *tpu_worker.sh' 'code) cat "$FAKE/code" 2> /dev/null || echo 0 ;;
esac
"""


@pytest.mark.parametrize('code', [None, '69'])
def test_a_preempted_tpu_is_created_again_and_the_command_started_again(
  tmp_path, code
):
  # With a code, the command ends with it twice: the first time just before the
  # TPU is lost, and the second time while the TPU stays. Without a code, the
  # TPU is lost while the command runs.
  if code:
    (tmp_path / 'code').write_text(code)
  (tmp_path / 'gcloud').write_text(GCLOUD)
  (tmp_path / 'gcloud').chmod(0o755)
  # States that the fake gcloud reports: the TPU is active at first, and is then
  # lost. After that it is deleted and created again.
  before = 'ACTIVE ' * (3 if code else 1)
  states = before + 'SUSPENDED ' * 3 + 'ACTIVE' + ' ACTIVE' * 9
  (tmp_path / 'states').write_text(states.replace(' ', '\n') + '\n')
  environment = {
    'PATH': f'{tmp_path}:{os.environ["PATH"]}',
    'FAKE': str(tmp_path),
    'TMPDIR': str(tmp_path),
    'POLL_SECONDS': '0',
    'LOGS': str(tmp_path / 'logs'),
  }
  done = tpu_vm(
    'run', '--type=v4-8', '--spot', command=COMMAND, environment=environment
  )
  assert done.returncode == int(code or 0), done.stdout + done.stderr
  calls = (tmp_path / 'calls').read_text().splitlines()
  kinds = (
    'queued-resources delete',
    'queued-resources create',
    ' start 0 1',
    'worker.sh stop',
  )
  order = [kind for call in calls for kind in kinds if kind in call]
  # At the end the command has ended on worker 0. Supervisors of other workers
  # may still run, so `stop` follows.
  assert order == [kinds[2], kinds[0], kinds[1], kinds[2], kinds[3]]


# This script replaces the supervisor. It ends when it gets a signal.
SUPERVISOR = """#!/bin/bash
trap 'exit 75' TERM
echo "$NUM_PROCESSES $PROCESS_ID $JAX_COORDINATOR_ADDRESS $*" >> attempts
while true; do sleep 0.02; done
"""
# This script replaces the metadata server. There are two workers, and this is
# the second.
CURL = """#!/bin/bash
case "$*" in
  *worker-network-endpoints) echo 'a:1:10.0.0.1,b:2:10.0.0.2' ;;
  *agent-worker-number) echo 1 ;;
esac
"""


def test_a_worker_runs_one_command_at_a_time(tmp_path):
  scripts = {'.venv/bin/python': SUPERVISOR, 'bin/curl': CURL}
  for name, text in scripts.items():
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  (tmp_path / 'launch').mkdir()
  shutil.copy(ROOT / 'launch/tpu_worker.sh', tmp_path / 'launch')

  def worker(*words):
    return subprocess.run(
      ['bash', tmp_path / 'launch/tpu_worker.sh', *words],
      capture_output=True,
      text=True,
      check=True,
      env={**os.environ, 'PATH': f'{tmp_path}/bin:{os.environ["PATH"]}'},
    ).stdout

  # The number in the file belongs to a process that is no supervisor.
  (tmp_path / 'logs').mkdir()
  (tmp_path / 'logs/pid').write_text(str(os.getpid()))
  command = ['start', '1', '2', '10.0.0.1:8476', 'python', '-m', 'launch.train']
  assert worker(*command) == ''
  assert worker('code') == 'running\n'
  assert 'a command already runs here' in worker(*command)
  assert worker('stop') == ''
  while worker('code') == 'running\n':
    time.sleep(0.02)
  assert worker('code') == '75\n'
  assert worker('stop') == ''
  # Of 4 processes, number 3 is the second worker of the second slice, since
  # numbers begin with 0.
  assert (tmp_path / 'attempts').read_text() == (
    '4 3 10.0.0.1:8476 -m launch.supervise --log=logs/attempts.jsonl --'
    ' python -m launch.train\n'
  )


def test_a_dry_run_of_slurm_prints_the_command_of_each_node():
  done = subprocess.run(
    ['bash', ROOT / 'launch' / 'slurm.sbatch', '--dry-run', '--workdir=w'],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout == (
    'srun --kill-on-bad-exit=0 --wait=300 .venv/bin/python -m launch.supervise'
    ' --log=/tmp/attempts.jsonl -- .venv/bin/python -m launch.train'
    ' --workdir=w\nafter code 75: scontrol requeue JOB\n'
  )


# A fake srun: SIGTERM kills its processes. `scancel` makes the run save.
SRUN = """#!/bin/bash
trap 'exit 137' TERM
touch "$FAKE/began"
until [ -e "$FAKE/saves" ]; do sleep 0.02; done
exit 75
"""


@pytest.mark.parametrize('state', ['RUNNING', 'COMPLETING'])
def test_slurm_saves_the_run_and_queues_it_again_unless_cancelled(
  tmp_path, state
):
  scancel = '#!/bin/bash\necho "$*" > "$FAKE/saves"\n'
  scontrol = '#!/bin/bash\necho "$*" > "$FAKE/queued"\n'
  fakes = {'srun': SRUN, 'scancel': scancel, 'scontrol': scontrol}
  fakes['squeue'] = f'#!/bin/bash\necho {state}\n'
  for name, text in fakes.items():
    (tmp_path / name).write_text(text)
    (tmp_path / name).chmod(0o755)
  job = subprocess.Popen(
    ['bash', ROOT / 'launch' / 'slurm.sbatch', '--workdir=w'],
    env={
      **os.environ,
      'PATH': f'{tmp_path}:{os.environ["PATH"]}',
      'FAKE': str(tmp_path),
      'SLURM_JOB_ID': '7',
    },
  )
  while not (tmp_path / 'began').exists():
    time.sleep(0.02)
  job.send_signal(signal.SIGTERM)
  assert job.wait(timeout=30) == 75
  assert (tmp_path / 'saves').read_text() == '--signal=TERM 7.0\n'
  is_queued = (tmp_path / 'queued').exists()
  assert is_queued == (state == 'RUNNING')
  if is_queued:
    assert (tmp_path / 'queued').read_text() == 'requeue 7\n'


def test_the_jobset_of_gke_is_filled_in():
  values = 'NAME=a IMAGE=i ACCELERATOR=tpu7x TOPOLOGY=2x2x2 WORKERS=2 SLICES=3'
  done = subprocess.run(
    ['bash', ROOT / 'launch' / 'gke.sh', '--dry-run', "--gin.TASK='ci'"],
    capture_output=True,
    text=True,
    check=True,
    env={**os.environ, **dict(v.split('=') for v in values.split())},
  )
  expected = (GOLDEN / 'jobset.yaml').read_text(encoding='utf-8')
  assert done.stdout == expected
