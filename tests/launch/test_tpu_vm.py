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
    timeout=60,
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


# A fake gcloud: `describe` prints the next line of the file `states`, or fails
# with it if it is an error. A worker prints the next line of the file `codes`.
# The last line of a file stays.
GCLOUD = """#!/bin/bash
next() {
  head -n 1 "$FAKE/$1"
  [ "$(wc -l < "$FAKE/$1")" = 1 ] || sed -i 1d "$FAKE/$1"
}
echo "$*" >> "$FAKE/calls"
case "$*" in
  *queued-resources*describe*)
    state="$(next states)"
    [[ "$state" != *:* ]] || { echo "ERROR: $state" >&2; exit 1; }
    echo 'WARNING: a new version of gcloud is there' >&2
    echo "$state" ;;
  *networkEndpoints*) echo 10.0.0.1 ;;
  *tpu_worker.sh' 'code) next codes ;;
esac
"""
# Errors of `describe`.
UNAVAILABLE, NOT_FOUND = 'UNAVAILABLE: try again', 'NOT_FOUND: no such request'
DELETE, CREATE = 'queued-resources delete', 'queued-resources create'
START, STOP = ' start 0 1', 'worker.sh stop'


def run_with_fake_gcloud(folder, states, codes):
  """Runs a command; returns (what has ended, its calls of gcloud by kind)."""
  (folder / 'gcloud').write_text(GCLOUD)
  (folder / 'gcloud').chmod(0o755)
  for name, lines in (('states', states), ('codes', codes)):
    (folder / name).write_text('\n'.join(lines) + '\n')
  environment = {
    'PATH': f'{folder}:{os.environ["PATH"]}',
    'FAKE': str(folder),
    'TMPDIR': str(folder),
    'POLL_SECONDS': '0',
    'LOGS': str(folder / 'logs'),
  }
  flags = ['--type=v4-8', '--spot']
  done = tpu_vm('run', *flags, command=COMMAND, environment=environment)
  calls = (folder / 'calls').read_text().splitlines()
  kinds = (DELETE, CREATE, START, STOP)
  return done, [kind for call in calls for kind in kinds if kind in call]


@pytest.mark.parametrize('code', [0, 69])
def test_a_preempted_tpu_is_created_again_and_the_command_started_again(
  tmp_path, code
):
  # With code 69, the command ends with it twice: first just before the TPU is
  # lost, and then while the TPU stays. With code 0, the TPU is lost while the
  # command runs.
  before, lost = (3, 3) if code else (1, 2)
  states = ['ACTIVE'] * before + ['SUSPENDED'] * lost + ['ACTIVE']
  done, order = run_with_fake_gcloud(tmp_path, states, [str(code)])
  assert done.returncode == code, done.stdout + done.stderr
  # At the end the command has ended on worker 0. Supervisors of other workers
  # may still run, so `stop` follows.
  assert order == [START, DELETE, CREATE, START, STOP]


@pytest.mark.parametrize(
  ('states', 'codes', 'expected'),
  [
    # A failure at the start, while the command runs, and after its end.
    ([UNAVAILABLE, 'ACTIVE'], ['0'], [START, STOP]),
    (['ACTIVE', UNAVAILABLE, 'ACTIVE'], ['running'] * 2 + ['0'], [START, STOP]),
    (['ACTIVE', 'ACTIVE', UNAVAILABLE, 'ACTIVE'], ['0'], [START, STOP]),
    # Only this error says that there is no TPU.
    ([NOT_FOUND, 'ACTIVE'], ['0'], [CREATE, START, STOP]),
    # A state that is not ACTIVE for a moment must not stop the command.
    (['ACTIVE', 'CREATING', 'ACTIVE'], ['running', '0'], [START, START, STOP]),
    # A worker that does not answer tells nothing about its command.
    (['ACTIVE'], ['', 'ssh: timed out', 'running', '0'], [START, STOP]),
  ],
)
def test_a_question_without_an_answer_leaves_the_command_alone(
  tmp_path, states, codes, expected
):
  done, order = run_with_fake_gcloud(tmp_path, states, codes)
  assert done.returncode == 0, done.stdout + done.stderr
  assert order == expected


def test_a_gcloud_that_never_answers_ends_with_its_message(tmp_path):
  done, order = run_with_fake_gcloud(tmp_path, ['DENIED: log in'], ['0'])
  assert done.returncode == 2 and 'DENIED: log in' in done.stderr
  assert order == []


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
    ' --log=/tmp/attempts.JOB.jsonl -- .venv/bin/python -m launch.train'
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
