"""Starts processes that form a cluster on this machine."""

import os
import pathlib
import socket
import subprocess
import sys


def started(arguments, num_processes, num_devices, numbers=None):
  """Starts Python processes that form one cluster, with CPU devices.

  If `numbers` are given, only these processes are started.
  """
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  processes = []
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
  """Returns the words of a process's output, without the lines of Gloo."""
  lines = process.communicate(timeout=120)[0].splitlines()
  return ' '.join(x for x in lines if not x.startswith('[Gloo]')).split()
