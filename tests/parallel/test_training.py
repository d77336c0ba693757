"""Runs of several processes are like runs of one process."""

import hashlib
import json
import os
import pathlib
import re
import signal
import sys
import time

import numpy as np
import pytest

from launch import token_stores
from launch.configs import configuration
from moe.checkpoint import restore
from moe.data.reader import Reader
from moe.parallel import farewell
from moe.runs import build, lock
from moe.train import record_log, watchdog
from tests.parallel.cluster import started, words
from tests.protein_data import has_data

STEPS = 50
FLAGS = [
  '--gin_file=gin_configs/runs/quickstart.gin',
  f'--gin.TRAIN_STEPS={STEPS}',
  '--gin.WARMUP_STEPS=2',
  '--gin.SAVE_PERIOD=2',
  '--gin.EVAL_PERIOD=17',
  '--gin.D_MODEL=16',
  '--gin.NUM_LAYERS=1',
  '--gin.BATCH_SIZE=16',
  '--gin.SEQUENCE_LENGTH=32',
  '--gin.GROUP_SIZE=32',
  '--gin.MESH_EXPERT=2',
  "--gin.EVAL_TASKS=('builtin_couplets',)",
  '--gin.PROMPTS=()',
]


# A run that learns 3Di letters, all of which are hidden in a block. Its data
# have no text, so the vocabulary has the bytes alone.
BLOCKS = [
  '--gin_file=gin_configs/runs/chains_cpu.gin',
  f'--gin.TRAIN_STEPS={STEPS}',
  '--gin.WARMUP_STEPS=2',
  '--gin.EVAL_PERIOD=0',
  '--gin.VOCAB_SIZE=768',
  '--gin.D_MODEL=16',
  '--gin.HEAD_DIM=8',
  '--gin.NUM_LAYERS=1',
  '--gin.UNROLL=1',
  '--gin.D_FF=16',
  '--gin.EXPERT_D_FF=8',
  '--gin.SHARED_D_FF=8',
  '--gin.DROPOUT_RATE=0.0',
  '--gin.BATCH_SIZE=8',
  '--gin.GROUP_SIZE=512',
  "--gin.TASK='proteins_3di_at_once'",
  "--gin.EVAL_TASKS=('proteins_3di_at_once',)",
  '--gin.PROMPTS=()',
]


def started_run(workdir, num_processes, more=(), flags=FLAGS):
  arguments = ['-m', 'launch.train', *flags, *more, f'--workdir={workdir}']
  return started(arguments, num_processes, 8 // num_processes)


def ended(processes):
  """Waits until all processes have succeeded; returns their texts on stderr."""
  try:
    errors = [p.communicate(timeout=300)[1] for p in processes]
  finally:  # If one process fails, others would wait for it for ever.
    for process in processes:
      process.kill()
  assert {p.returncode for p in processes} == {0}, errors
  return errors


def numbers(workdir, name):
  """Returns (step, task, name) -> number in a log, for all scalars."""
  found = {}
  for line in (workdir / name).read_text().splitlines():
    record = json.loads(line)
    scores = {'train': record, **record.get('eval', {})}
    for task, values in scores.items():
      found |= {
        (record['step'], task, key): value
        for key, value in values.items()
        if isinstance(value, int | float)
      }
  return found


def check_equal(workdir, expected):
  """Compares all numbers of two runs; `pytest -rP` shows the losses."""
  for name in ('log.jsonl', 'eval.jsonl'):
    got, wanted = numbers(workdir, name), numbers(expected, name)
    assert got == pytest.approx(wanted, rel=1e-5)
    assert (STEPS, 'train', 'step') in got
  losses = numbers(workdir, 'log.jsonl')
  steps = [1, 10, 20, 30, 40, STEPS]
  print('losses', *(losses[step, 'train', 'loss'] for step in steps))


@pytest.fixture(scope='module')
def one(tmp_path_factory, cache_dir):
  """The work directory of a run that used one process."""
  pytest.importorskip('seqio')
  workdir = tmp_path_factory.mktemp('runs') / 'one'
  ended(started_run(workdir, 1))
  return workdir


@pytest.mark.nightly
def test_two_processes_train_like_one_and_each_reads_half(tmp_path, one):
  # Each process is a slice of four devices.
  shares = ended(started_run(tmp_path, 2, ['--gin.NUM_SLICES=2']))
  check_equal(tmp_path, one)
  run = configuration.load([str(one / 'config.gin')], [])
  _, found = build.find_data(run, token_stores.prepare)
  stores = found[run.data.train, 'train']
  reader = Reader(*stores, run.data.sequence_length, run.data.batch_size, 0)
  for step in range(STEPS + 1):  # The trainer reads one batch ahead.
    reader.batch(step)
  for text in shares:
    bytes_read = re.search(r'read ([\d,]+) bytes', text)[1].replace(',', '')
    assert 0.4 < int(bytes_read) / reader.bytes_read < 0.6


def wait_for_step(processes, workdir, step):
  log = workdir / 'log.jsonl'
  while not (log.exists() and f'"step": {step},' in log.read_text()):
    assert {p.poll() for p in processes} == {None}
    time.sleep(0.01)


@pytest.mark.nightly
def test_four_processes_train_like_one(tmp_path, one):
  ended(started_run(tmp_path, 4))
  check_equal(tmp_path, one)


@pytest.mark.nightly
@has_data
def test_two_processes_learn_blocks_like_one(tmp_path, cache_dir):
  pytest.importorskip('seqio')
  pytest.importorskip('mini3di')
  for number in (1, 2):
    workdir = tmp_path / str(number)
    ended(started_run(workdir, number, flags=BLOCKS))
  check_equal(tmp_path / '2', tmp_path / '1')


@pytest.mark.nightly
def test_a_run_moves_from_1_process_to_4_to_2_to_1(tmp_path, one):
  for number, last in ((1, 8), (4, 16), (2, 24), (1, STEPS)):
    processes = started_run(tmp_path, number)
    if last == STEPS:
      ended(processes)
    else:
      wait_for_step(processes, tmp_path, last)
      for process in processes:
        process.send_signal(signal.SIGTERM)
      for process in processes:
        process.communicate(timeout=60)
      assert {process.returncode for process in processes} == {75}
  check_equal(tmp_path, one)


# A program that saves an array of which each device has some rows, or reads it.
SAVED = """
import sys
from moe.parallel import processes
processes.initialize()
import jax
import numpy as np
from jax.experimental import multihost_utils
from moe.checkpoint import save
place = jax.NamedSharding(jax.make_mesh((4,), ('data',)), jax.P('data'))
whole = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
saver = save.Checkpointer(sys.argv[2])
if sys.argv[1] == 'save':
  array = jax.make_array_from_callback(whole.shape, place, lambda i: whole[i])
  saver.save(1, {'params': {'w': array}}, {})
else:
  wanted = jax.ShapeDtypeStruct(whole.shape, whole.dtype, sharding=place)
  state, _ = saver.restore(None, {'params': {'w': wanted}})
  found = multihost_utils.process_allgather(state['params']['w'], tiled=True)
  print(np.array_equal(found, whole), len(found))
saver.close()
"""


@pytest.mark.nightly
def test_parameters_of_n_processes_are_bit_equal_in_m_processes(tmp_path):
  for number in (1, 2, 4):
    directory = str(tmp_path / str(number))
    ended(started(['-c', SAVED, 'save', directory], number, 4 // number))
    for other in {1, 2, 4} - {number}:
      arguments = ['-c', SAVED, 'read', directory]
      for process in started(arguments, other, 4 // other):
        assert words(process) == ['True', '16']


@pytest.mark.nightly
def test_a_run_moves_from_8_devices_to_4_to_2_to_1(tmp_path, one):
  # The size of the expert axis changes, too.
  for devices, expert, last in (
    (8, 2, 4),
    (4, 4, 8),
    (2, 1, 12),
    (1, 1, STEPS),
  ):
    more = [f'--gin.MESH_EXPERT={expert}', f'--workdir={tmp_path}']
    processes = started(['-m', 'launch.train', *FLAGS, *more], 1, devices)
    if last == STEPS:
      ended(processes)
    else:
      wait_for_step(processes, tmp_path, last)
      processes[0].send_signal(signal.SIGTERM)
      processes[0].communicate(timeout=60)
      assert processes[0].returncode == 75
  check_equal(tmp_path, one)


@pytest.mark.nightly
def test_two_processes_that_are_killed_go_on_like_one(tmp_path, one):
  processes = started_run(tmp_path, 2)
  wait_for_step(processes, tmp_path, 5)
  for process in processes:
    process.kill()
    process.communicate()
  ended(started_run(tmp_path, 2))
  check_equal(tmp_path, one)


def child_of(process):
  """The number of the only process that a process has started."""
  pid = process.pid
  children = pathlib.Path(f'/proc/{pid}/task/{pid}/children').read_text()
  (child,) = map(int, children.split())
  return child


def fingerprint(workdir):
  """SHA-256 of each array of the model, and of both logs without times."""
  params, _ = restore.load_params(workdir)
  found = {
    n: np.asarray(a).tobytes() for n, a in restore.leaves(params).items()
  }
  for name in ('log.jsonl', 'eval.jsonl'):
    records = record_log.read(workdir / name)
    timeless = [{**record, 'time': None} for record in records]
    found[name] = json.dumps(timeless).encode()
  return {n: hashlib.sha256(data).hexdigest() for n, data in found.items()}


@pytest.mark.nightly
def test_supervisors_resume_bit_for_bit_when_one_process_is_killed(
  tmp_path, cache_dir
):
  pytest.importorskip('seqio')
  whole, killed, logs = (tmp_path / n for n in ('whole', 'killed', 'logs'))
  short = [*FLAGS, '--gin.TRAIN_STEPS=20']
  ended(started_run(whole, 2, flags=short))
  # On one machine each supervisor needs a log of its own.
  script = (
    'import os, sys; from launch import supervise;'
    f'log = "--log={logs}/" + os.environ["PROCESS_ID"];'
    'sys.exit(supervise.main([log, "--first_wait=0.5", *sys.argv[1:]]))'
  )
  flags = ['--', sys.executable, '-m', 'launch.train', *short]
  flags.append(f'--workdir={killed}')
  supervisors = started(['-c', script, *flags], 2, 4)
  for victim, step in ((1, 5), (0, 12)):
    wait_for_step(supervisors, killed, step)
    os.kill(child_of(supervisors[victim]), signal.SIGKILL)
  ended(supervisors)
  outcomes = [
    [attempt['outcome'] for attempt in map(json.loads, path.open())]
    for path in (logs / '0', logs / '1')
  ]
  assert outcomes == [['lost', 'killed', 'done'], ['killed', 'lost', 'done']]
  assert (killed / 'checkpoints/20').is_dir()
  assert fingerprint(killed) == fingerprint(whole)


@pytest.mark.nightly
@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_one_process_saves_one_step_of_both(tmp_path, one, number):
  processes = started_run(tmp_path, 2)
  wait_for_step(processes, tmp_path, 5)
  held = json.loads((tmp_path / 'running.json').read_text())
  assert held['process'] == processes[0].pid
  processes[1].send_signal(number)
  for process in processes:
    process.communicate(timeout=60)
  assert [p.returncode for p in processes] == [75, 75]
  last = max(step for step, *_ in numbers(tmp_path, 'log.jsonl'))
  assert 5 < last < STEPS and (tmp_path / f'checkpoints/{last}').is_dir()
  assert not (tmp_path / 'running.json').exists()
  ended(started_run(tmp_path, 2))
  check_equal(tmp_path, one)


@pytest.mark.nightly
def test_both_processes_of_a_second_run_are_refused(tmp_path):
  with lock.held(str(tmp_path)):
    processes = started_run(tmp_path, 2)
    errors = [p.communicate(timeout=120)[1] for p in processes]
  assert [p.returncode for p in processes] == [2, 2]
  first, second = (text.splitlines()[-1] for text in errors)
  assert f'is used by process {os.getpid()} on host' in first
  assert 'see the message of process 0' in second


@pytest.mark.nightly
@pytest.mark.parametrize('victim', [0, 1])
def test_a_killed_process_is_named_within_15_seconds(tmp_path, victim):
  processes = started_run(tmp_path, 2)
  wait_for_step(processes, tmp_path, 5)
  processes[victim].kill()
  begin = time.monotonic()
  error = processes[1 - victim].communicate(timeout=60)[1]
  assert time.monotonic() - begin < 15
  assert processes[1 - victim].returncode == farewell.EXIT_LOST
  assert f'error: process {victim} (' in error.splitlines()[-1]


@pytest.mark.nightly
@pytest.mark.parametrize(
  ('seconds', 'code', 'fragment'),
  [
    (0, farewell.EXIT_LOST, r'process 1 \(\S+\) has given no sign of life'),
    (20, watchdog.EXIT_HUNG, 'look for a device that is broken'),
  ],
)
def test_a_stopped_process_ends_the_other(tmp_path, seconds, code, fragment):
  # Without saves the others wait in a collective of the next step.
  flags = [f'--gin.HANG_SECONDS={seconds}.0', '--gin.SAVE_PERIOD=1000']
  processes = started_run(tmp_path, 2, flags)
  wait_for_step(processes, tmp_path, 5)
  processes[1].send_signal(signal.SIGSTOP)
  error = processes[0].communicate(timeout=180)[1]
  processes[1].kill()
  processes[1].communicate()
  assert processes[0].returncode == code
  assert re.search(fragment, error)
  assert (tmp_path / watchdog.STACKS).exists() == (seconds > 0)


# A program in which process 1 reads batches slowly.
SLOW = """
import os, sys, time
from launch import train
from moe.data import reader
quick = reader.Reader.batch
def batch(self, step):
  time.sleep(1.0)
  return quick(self, step)
if os.environ['PROCESS_ID'] == '1':
  reader.Reader.batch = batch
sys.exit(train.main(sys.argv[1:]))
"""


@pytest.mark.nightly
def test_a_slow_process_is_named_by_process_0(tmp_path):
  arguments = ['-c', SLOW, *FLAGS, f'--workdir={tmp_path}']
  first, _ = ended(started(arguments, 2, 4))
  assert re.search(
    r'warning: process 1 \(\S+\) is slow: its devices wait', first
  )
  assert not re.search(r'warning: process 0 .* is slow', first)
