import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest

from launch import token_stores
from launch.configs import configuration
from moe.data.reader import Reader
from moe.parallel import processes
from moe.runs import build, lock

NAMES = ('NUM_PROCESSES', 'PROCESS_ID', 'JAX_COORDINATOR_ADDRESS')
CLUSTER = ('TPU_WORKER_HOSTNAMES', 'SLURM_JOB_ID')


@pytest.fixture
def calls(monkeypatch):
  """The arguments of each call of JAX's own initialisation."""
  for name in NAMES + CLUSTER:
    monkeypatch.delenv(name, raising=False)
  found = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *args: found.append(args)
  )
  return found


def test_a_single_process_joins_no_others(calls):
  processes.initialize()
  assert calls == []


def test_three_variables_say_which_process_this_is(calls, monkeypatch):
  values = ('4', '3', 'host:1234')
  for name, value in zip(NAMES, values, strict=True):
    monkeypatch.setenv(name, value)
  processes.initialize()
  assert calls == [('host:1234', 4, 3)]


@pytest.mark.parametrize('given', [NAMES[:1], NAMES[1:], NAMES[::2]])
def test_some_of_the_three_variables_are_not_enough(calls, monkeypatch, given):
  for name in given:
    monkeypatch.setenv(name, '1')
  with pytest.raises(ValueError, match=f'got {", ".join(given)} alone'):
    processes.initialize()
  assert calls == []


@pytest.mark.parametrize('name', CLUSTER)
def test_a_cluster_is_left_to_jax(calls, monkeypatch, name):
  monkeypatch.setenv(name, 'x')
  processes.initialize()
  assert calls == [()]


# Process 0 gets SIGTERM at step 5. Both processes must leave the loop at the
# same step.
PROGRAM = """
import os, signal, time
from moe.parallel import processes
processes.initialize()
import jax
from moe.train.trainer import _Stop
stop = _Stop()
with stop.listening():
  for step in range(200):
    if stop.reached(step):
      break
    if step == 5 and jax.process_index() == 0:
      os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.05)
print(len(jax.devices()), step, stop.is_set)
"""


def started(arguments, num_processes, num_devices):
  """Starts Python processes that form one cluster; each has CPU devices."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  processes = []
  for i in range(num_processes):
    own = {
      'NUM_PROCESSES': str(num_processes),
      'PROCESS_ID': str(i),
      'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': str(num_devices),
    }
    process = subprocess.Popen(
      [sys.executable, *arguments],
      env={**os.environ, **own},
      cwd=pathlib.Path(__file__).parents[2],
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    processes.append(process)
  return processes


def words(process):
  """Words of the output of a process, without the lines of Gloo."""
  lines = process.communicate(timeout=120)[0].splitlines()
  return ' '.join(x for x in lines if not x.startswith('[Gloo]')).split()


@pytest.mark.slow
def test_two_processes_stop_at_one_step_when_one_gets_sigterm():
  processes = started(['-c', PROGRAM], 2, 1)
  first, second = map(words, processes)
  assert first == second
  assert first[0] == '2'  # Each process has one device.
  assert 5 < int(first[1]) < 199


# Neighbouring devices of the mesh belong to different processes.
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
  # In the three placements a process has all rows, half of the rows, or some
  # columns of all rows.
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


def started_run(workdir, num_processes):
  arguments = ['-m', 'launch.train', *FLAGS, f'--workdir={workdir}']
  return started(arguments, num_processes, 8 // num_processes)


def ended(processes):
  """Waits until all processes have succeeded; returns their standard errors."""
  try:
    errors = [p.communicate(timeout=300)[1] for p in processes]
  finally:  # If one process fails, the other one would wait for it forever.
    for process in processes:
      process.kill()
  assert {p.returncode for p in processes} == {0}, errors
  return errors


def numbers(workdir, name):
  """(step, task, name) -> number in a log, without times and layers."""
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
  shares = ended(started_run(tmp_path, 2))
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
  assert f'got that of process {os.getpid()} on host' in first
  assert 'as process 0 has found' in second
