import re
import signal
import time

import jax
import pytest

from moe.parallel import processes, roll_call
from tests.parallel.cluster import started, words

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
  monkeypatch.setattr(processes, '_wait_for_coordinator', lambda place: None)
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
  """A pod of a slice; at first the network does not know process 0."""

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


# The roll call is answered, but the coordinator of JAX is never started.
CLOSED = """
import sys, time
import jax
from launch import doctor
from moe.parallel import processes
processes._COORDINATOR_SECONDS = 0.5
jax.distributed.initialize = lambda *place, **options: time.sleep(60)
sys.exit(doctor.main())
"""


@pytest.mark.slow
def test_a_closed_port_of_jax_is_named_by_all_processes():
  running = started(['-c', CLOSED, '--hosts'], 2, 1)
  texts = [p.communicate(timeout=60) for p in running]
  assert [p.returncode for p in running] == [2, 2], texts
  port = r'port \d+ of process 0 \(localhost:\d+\) is closed to this host'
  assert re.match(rf'BAD    hosts      {port}', texts[1][0])
  assert re.search(rf'process 1 .* ended with code 2: .*{port}', texts[0][1])


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


# A command that waits in C code, where Python cannot handle a signal.
BLOCKED = """
import ctypes, sys
from launch import runtime
from moe import stop_signals
from moe.parallel import processes
def command():
  stop_signals.listen()
  processes.initialize()
  print('ready', flush=True)
  mutex = ctypes.create_string_buffer(64)
  ctypes.CDLL(None).pthread_mutex_lock(mutex)
  ctypes.CDLL(None).pthread_mutex_lock(mutex)
stop_signals._PATIENCE_SECONDS = 0.3
sys.exit(runtime.run(command))
"""


@pytest.mark.slow
def test_a_signal_before_the_loop_ends_all_processes_with_75():
  running = started(['-c', BLOCKED], 2, 1)
  for process in running:
    while process.stdout.readline() != 'ready\n':
      assert process.poll() is None
  time.sleep(0.3)  # The processes print 'ready' shortly before they block.
  for process in running:
    process.send_signal(signal.SIGTERM)
  errors = [p.communicate(timeout=60)[1] for p in running]
  assert [p.returncode for p in running] == [75, 75], errors


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
