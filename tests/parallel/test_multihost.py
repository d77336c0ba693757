import os
import pathlib
import socket
import subprocess
import sys

import jax
import pytest

from moe.parallel import multihost

NAMES = ('NUM_PROCESSES', 'PROCESS_ID', 'JAX_COORDINATOR_ADDRESS')
CLUSTER = ('TPU_WORKER_HOSTNAMES', 'SLURM_JOB_ID')


@pytest.fixture
def calls(monkeypatch):
  """Arguments of each call of JAX's own initialisation."""
  for name in NAMES + CLUSTER:
    monkeypatch.delenv(name, raising=False)
  found = []
  monkeypatch.setattr(
    jax.distributed, 'initialize', lambda *args: found.append(args)
  )
  return found


def test_a_process_alone_joins_nobody(calls):
  multihost.initialize()
  assert calls == []


def test_three_variables_say_which_process_this_is(calls, monkeypatch):
  values = ('4', '3', 'host:1234')
  for name, value in zip(NAMES, values, strict=True):
    monkeypatch.setenv(name, value)
  multihost.initialize()
  assert calls == [('host:1234', 4, 3)]


@pytest.mark.parametrize('given', [NAMES[:1], NAMES[1:], NAMES[::2]])
def test_some_of_the_three_are_not_enough(calls, monkeypatch, given):
  for name in given:
    monkeypatch.setenv(name, '1')
  with pytest.raises(ValueError, match=f'got {", ".join(given)} alone'):
    multihost.initialize()
  assert calls == []


@pytest.mark.parametrize('name', CLUSTER)
def test_a_cluster_is_left_to_jax(calls, monkeypatch, name):
  monkeypatch.setenv(name, 'x')
  multihost.initialize()
  assert calls == [()]


# Process 0 gets SIGTERM at step 5; both leave the loop, at the same step.
PROGRAM = """
import os, signal, time
from moe.parallel import multihost
multihost.initialize()
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


@pytest.mark.slow
def test_two_processes_stop_at_one_step_when_one_gets_sigterm():
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  processes = []
  for i in range(2):
    own = {
      'NUM_PROCESSES': '2',
      'PROCESS_ID': str(i),
      'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
      'JAX_PLATFORMS': 'cpu',
      'JAX_NUM_CPU_DEVICES': '1',
    }
    process = subprocess.Popen(
      [sys.executable, '-c', PROGRAM],
      env={**os.environ, **own},
      cwd=pathlib.Path(__file__).parents[2],
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
      text=True,
    )
    processes.append(process)
  first, second = (p.communicate(timeout=120)[0].split() for p in processes)
  assert first == second
  assert first[0] == '2'  # devices, one of each process
  assert 5 < int(first[1]) < 199
