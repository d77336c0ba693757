import json
import os
import re
import signal
import time

import jax
import pytest

from launch import token_stores
from launch.configs import configuration
from moe.data.reader import Reader
from moe.parallel import processes, roll_call
from moe.runs import build, lock
from tests.parallel.cluster import started

NAMES = ('NUM_PROCESSES', 'PROCESS_ID', 'JAX_COORDINATOR_ADDRESS')
SLURM = {
  'SLURM_JOB_ID': '4096',
  'SLURM_STEP_NODELIST': 'node[03-04]',
  'SLURM_NTASKS': '2',
  'SLURM_PROCID': '1',
  'SLURM_LOCALID': '0',
  'SLURM_STEP_TASKS_PER_NODE': '1(x2)',
}


class Answered:
  """A roll call that all processes have joined."""

  def __init__(self, place):
    self.place = place

  def call(self, patience, report):
    assert (patience, report) == (300, {})
    return {}


@pytest.fixture
def calls(monkeypatch):
  """Replaces JAX's initialisation; returns [arguments of each call]."""
  for name in (*NAMES, *SLURM, 'TPU_WORKER_HOSTNAMES', 'JOIN_SECONDS'):
    monkeypatch.delenv(name, raising=False)
  found = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *args, **_: found.append(args)
  )
  for name in ('Hub', 'Member'):
    monkeypatch.setattr(roll_call, name, Answered)
  monkeypatch.setattr(processes, '_watch', None)
  return found


def test_a_single_process_joins_no_others(calls):
  processes.initialize()
  assert calls == []


def test_three_variables_say_which_process_this_is(calls, monkeypatch):
  values = ('4', '3', 'host:1234')
  for name, value in zip(NAMES, values, strict=True):
    monkeypatch.setenv(name, value)
  processes.initialize()
  assert calls == [('host:1234', 4, 3, None)]


@pytest.mark.parametrize('given', [NAMES[:1], NAMES[1:], NAMES[::2]])
def test_some_of_the_three_variables_are_not_enough(calls, monkeypatch, given):
  for name in given:
    monkeypatch.setenv(name, '1')
  with pytest.raises(ValueError, match=f'got {", ".join(given)} alone'):
    processes.initialize()
  assert calls == []


def test_a_process_number_outside_the_program_is_refused(calls, monkeypatch):
  for name, value in zip(NAMES, ('4', '4', 'host:1234'), strict=True):
    monkeypatch.setenv(name, value)
  with pytest.raises(ValueError, match='PROCESS_ID=4 must be from 0 to 3'):
    processes.initialize()


@pytest.mark.parametrize(
  ('per_node', 'devices'), [('1(x2)', None), ('2(x1)', [0])]
)
def test_slurm_says_which_process_this_is(
  calls, monkeypatch, per_node, devices
):
  for name, value in (SLURM | {'SLURM_STEP_TASKS_PER_NODE': per_node}).items():
    monkeypatch.setenv(name, value)
  processes.initialize()
  # JAX's port is 65535 - 2^12 + 1 plus the job's number modulo 2^12. A process
  # that is alone on its node uses all devices of the node.
  assert calls == [('node03:61440', 2, 1, devices)]


class GkeTpuCluster:
  """A pod of a slice of which the network does not know process 0 at first."""

  failures = 2

  @classmethod
  def get_coordinator_address(cls, timeout_secs, override_coordinator_port):
    assert (timeout_secs, override_coordinator_port) == (1, None)
    cls.failures -= 1
    if cls.failures >= 0:
      raise RuntimeError('Failed to recognize coordinator address slice-0-0')
    return 'slice-0-0:8482'

  get_process_count = staticmethod(lambda: 2)
  get_process_id = staticmethod(lambda: 1)
  get_local_process_id = staticmethod(lambda: None)


def test_a_pod_waits_until_the_name_of_process_0_is_known(calls, monkeypatch):
  monkeypatch.setattr(processes, '_cluster', lambda: GkeTpuCluster)
  monkeypatch.setattr(GkeTpuCluster, 'failures', 2)
  processes.initialize()
  assert calls == [('slice-0-0:8482', 2, 1, None)]


def test_a_process_0_without_a_name_is_missing(calls, monkeypatch):
  monkeypatch.setattr(processes, '_cluster', lambda: GkeTpuCluster)
  monkeypatch.setattr(GkeTpuCluster, 'failures', 9)
  with pytest.raises(roll_call.Missing, match='process 0 not st.*slice-0-0'):
    processes.initialize(patience=0)
  assert calls == []


def test_a_pod_that_belongs_to_no_job_is_alone(calls, monkeypatch, recwarn):
  monkeypatch.setenv('KUBERNETES_SERVICE_HOST', '10.0.0.1')
  processes.initialize()
  assert calls == [] and not recwarn  # JAX would warn of a missing package.


# A program that joins the other processes.
JOIN = """
import sys
from launch import runtime
from moe.parallel import processes
sys.exit(runtime.run(lambda: print(processes.initialize()) or 0))
"""


@pytest.mark.parametrize('missing', [0, 1])
def test_a_process_that_was_not_started_is_named_by_all(missing, monkeypatch):
  monkeypatch.setenv('JOIN_SECONDS', '1')
  running = started(['-c', JOIN], 3, 1, {0, 1, 2} - {missing})
  errors = [p.communicate(timeout=60)[1] for p in running]
  assert [p.returncode for p in running] == [69, 69], errors
  for text in errors:
    assert f'error: process {missing}' in text.splitlines()[-1]
    assert 'not started after' in text.splitlines()[-1]


# A command that gets SIGTERM after it has joined the others.
EARLY = """
import os, signal, sys, time
from launch import runtime
from moe.parallel import processes
def command():
  processes.initialize()
  os.kill(os.getpid(), signal.SIGTERM)
  time.sleep(60)
sys.exit(runtime.run(command))
"""


@pytest.mark.slow
def test_a_process_with_a_place_still_obeys_sigterm():
  (process,) = started(['-c', EARLY], 1, 1)
  _, errors = process.communicate(timeout=60)
  assert process.returncode == 75, errors


# A program in which process 0 gets SIGTERM at step 5. All processes must leave
# the loop at the same step.
PROGRAM = """
import os, signal, time
from moe.parallel import processes
processes.initialize()
import jax
from moe.train.trainer import _Stop
stop = _Stop()
with stop.listening():
  for step in range(200):
    if stop.reached():
      break
    if step == 5 and jax.process_index() == 0:
      os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)
print(len(jax.devices()), step, stop.is_set)
"""


def words(process):
  """Returns the words of a process's output, without the lines of Gloo."""
  lines = process.communicate(timeout=120)[0].splitlines()
  return ' '.join(x for x in lines if not x.startswith('[Gloo]')).split()


@pytest.mark.slow
def test_two_processes_stop_at_one_step_when_one_gets_sigterm():
  processes = started(['-c', PROGRAM], 2, 1)
  first, second = map(words, processes)
  assert first == second
  assert first[0] == '2'  # Each process has one device.
  assert 5 < int(first[1]) < 199


# A program that puts rows on a mesh. Neighbouring devices along the axis
# 'model' belong to different processes.
ROWS = """
from moe.parallel import multihost, processes
processes.initialize()
import jax
import numpy as np
devices = np.array(jax.devices()).reshape(2, 2).T
mesh = jax.sharding.Mesh(devices, ('data', 'model'))
places = jax.P('data', 'model'), jax.P(('data', 'model')), jax.P(None, 'data')
whole = np.arange(32).reshape(8, 4)
for place in places:
  sharding = jax.NamedSharding(mesh, place)
  rows = multihost.own_rows(sharding, 8)
  array = multihost.put_rows(whole[rows], sharding)
  equal = jax.jit(lambda a: (a == whole).all())(array)
  print(*rows, bool(equal), sep=',', end=' ')
  total = multihost.total(np.sum, whole[rows], sharding)
  print(int(total))
"""


@pytest.mark.slow
def test_each_process_puts_the_rows_of_its_devices():
  processes = started(['-c', ROWS], 2, 2)
  first, second = map(words, processes)
  everything, total = '0,1,2,3,4,5,6,7,True', str(sum(range(32)))
  # With the first sharding, a process needs some columns of all rows; with the
  # second, half of the rows; with the third, all rows.
  even, odd = '0,1,4,5,True', '2,3,6,7,True'
  assert first == [everything, total, even, total, everything, total]
  assert second == [everything, total, odd, total, everything, total]


STEPS = 20
FLAGS = [
  '--gin_file=gin_configs/runs/quickstart.gin',
  f'--gin.TRAIN_STEPS={STEPS}',
  '--gin.WARMUP_STEPS=2',
  '--gin.SAVE_PERIOD=2',
  '--gin.EVAL_PERIOD=7',
  '--gin.D_MODEL=16',
  '--gin.NUM_LAYERS=1',
  '--gin.BATCH_SIZE=16',
  '--gin.SEQUENCE_LENGTH=32',
  '--gin.GROUP_SIZE=32',
  '--gin.MESH_EXPERT=2',
  "--gin.EVAL_TASKS=('builtin_couplets',)",
  '--gin.PROMPTS=()',
]


def started_run(workdir, num_processes, more=()):
  arguments = ['-m', 'launch.train', *FLAGS, *more, f'--workdir={workdir}']
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
  for name in ('log.jsonl', 'eval.jsonl'):
    got, wanted = numbers(workdir, name), numbers(expected, name)
    assert got == pytest.approx(wanted, rel=1e-5)
    assert (STEPS, 'train', 'step') in got


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
  assert processes[1 - victim].returncode == roll_call.EXIT_LOST
  assert f'error: process {victim} (' in error.splitlines()[-1]


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
