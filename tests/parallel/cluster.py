"""Starts processes that form a cluster on this machine."""

import contextlib
import os
import pathlib
import random
import socket
import subprocess
import sys


def free_port():
  """A port that is free together with the next one, for JAX and the roll call.

  It lies below the ports that Linux gives to clients, since a client may take
  a port that was free a moment ago.
  """
  for port in random.sample(range(20_000, 32_000), 100):
    with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
      for number in (port, port + 1):
        stack.enter_context(socket.create_server(('localhost', number)))
      return port
  raise AssertionError('no free port')


def started(arguments, num_processes, num_devices, numbers=None):
  """Starts Python processes that form one cluster, with CPU devices.

  If `numbers` are given, only these processes are started.
  """
  port, processes = free_port(), []
  for i in numbers or range(num_processes):
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
  """Returns the words that a process prints."""
  return process.communicate(timeout=120)[0].split()
