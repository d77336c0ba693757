"""Tests tpu_vm.sh, which creates TPUs and runs commands, with a fake gcloud."""

import os
import pathlib
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


# A fake gcloud: `describe` prints the next line of the file `states`. The exit
# code that a worker reports is always 0.
GCLOUD = """#!/bin/bash
echo "$*" >> "$FAKE/calls"
case "$*" in
  *queued-resources*describe*)
    head -n 1 "$FAKE/states"
    sed -i 1d "$FAKE/states" ;;
  *networkEndpoints*) echo 10.0.0.1 ;;
  *tpu_worker.sh' 'code) echo 0 ;;
esac
"""


def test_a_preempted_tpu_is_created_again_and_the_command_started_again(
  tmp_path,
):
  (tmp_path / 'gcloud').write_text(GCLOUD)
  (tmp_path / 'gcloud').chmod(0o755)
  # States that the fake gcloud reports: the TPU is active at first, and is lost
  # while the command runs. Then it is deleted and created again.
  states = 'ACTIVE SUSPENDED SUSPENDED ' + 'SUSPENDED ACTIVE' + ' ACTIVE' * 9
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
  assert done.returncode == 0, done.stdout + done.stderr
  calls = (tmp_path / 'calls').read_text().splitlines()
  kinds = (
    'queued-resources delete',
    'queued-resources create',
    ' start 0 1',
    'worker.sh stop',
  )
  order = [kind for call in calls for kind in kinds if kind in call]
  # Worker 0 has ended. Supervisors of other workers may still run, so `stop`
  # comes at the end, too.
  assert order == [kinds[2], kinds[0], kinds[1], kinds[2], kinds[3]]


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


def test_a_time_limit_of_slurm_saves_the_run_and_queues_it_again(tmp_path):
  scancel = '#!/bin/bash\necho "$*" > "$FAKE/saves"\n'
  scontrol = '#!/bin/bash\necho "$*" > "$FAKE/queued"\n'
  fakes = {'srun': SRUN, 'scancel': scancel, 'scontrol': scontrol}
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
