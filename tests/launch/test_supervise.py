"""Tests launch.supervise as a separate process."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

from launch import supervise
from moe.runs.supervise import LOG


def supervisor(tmp_path, script, *flags):
  """Starts a supervisor process, and waits until its command writes a file."""
  process = subprocess.Popen(
    [sys.executable, '-m', 'launch.supervise', *flags]
    + [f'--workdir={tmp_path}', '--', 'sh', '-c', script],
    cwd=pathlib.Path(__file__).parents[2],
    stderr=subprocess.PIPE,
    text=True,
  )
  deadline = time.monotonic() + 60
  while not (tmp_path / 'began').exists():
    assert time.monotonic() < deadline and process.poll() is None
    time.sleep(0.02)
  return process


def test_sigterm_is_passed_on_and_ends_the_supervisor_too(tmp_path):
  script = (
    f'sleep 60 & trap "kill $!; exit 75" TERM; touch {tmp_path}/began; wait'
  )
  process = supervisor(tmp_path, script)
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate(timeout=30)
  assert process.returncode == 75, errors
  found = json.loads((tmp_path / LOG).read_text())
  assert found['reason'] == 'SIGTERM to the supervisor'


def test_sigterm_ends_the_wait_for_the_next_attempt(tmp_path):
  process = supervisor(tmp_path, f'touch {tmp_path}/began; exit 1')
  while not os.path.exists(tmp_path / LOG):
    time.sleep(0.02)
  process.send_signal(signal.SIGTERM)
  _, errors = process.communicate(timeout=30)
  assert process.returncode == 75, errors


def test_a_command_without_a_work_directory_is_refused(capsys):
  assert supervise.main(['--', 'true']) == 2
  assert '--workdir=DIR' in capsys.readouterr().err
