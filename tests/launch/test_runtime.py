"""What every verb does around its work."""

import ctypes
import logging
import subprocess
import sys

import pytest

from launch import runtime


def test_the_log_of_the_library_is_printed_once_while_a_verb_runs(
  capsys, caplog
):
  # The handler of caplog stands for one that a library gives the root logger.
  for name in ('moe.train.trainer', 'tasks.stores'):
    code = runtime.run(lambda n=name: logging.getLogger(n).info('saved') or 0)
    assert code == 0
    assert capsys.readouterr().err == 'saved\n'
    assert not caplog.messages


def test_the_log_is_restored_after_a_verb(capsys, caplog):
  runtime.run(lambda: 0)
  logging.getLogger('moe').warning('another one')
  assert caplog.messages == ['another one']
  assert not capsys.readouterr().err


@pytest.mark.parametrize('error', [ValueError, OSError])
def test_an_error_that_a_user_can_fix_is_one_line_and_code_2(capsys, error):
  def verb():
    raise error('SEED=x must be\n  a number.')

  assert runtime.run(verb) == 2
  assert capsys.readouterr().err == 'error: SEED=x must be a number.\n'


# Prints the page faults of a block of 64 MiB that is allocated a second time.
PROGRAM = """
import resource, sys
import numpy as np
from launch import runtime

if sys.argv[1] == 'kept':
  runtime.keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(2**23)
before = faults()
np.ones(2**23)
print(faults() - before)
"""


def faults(how):
  done = subprocess.run(
    [sys.executable, '-c', PROGRAM, how],
    capture_output=True,
    text=True,
    check=True,
  )
  return int(done.stdout)


@pytest.mark.skipif(
  not hasattr(ctypes.CDLL(None), 'mallopt'), reason='no mallopt in this libc'
)
def test_memory_that_was_freed_is_used_again_without_page_faults():
  # A fresh block has a fault for each page: many of 4 KiB, or 32 huge ones.
  assert faults('kept') < 16 < 32 <= faults('given back')


@pytest.mark.parametrize(
  'platforms, devices, alone',
  [
    ('cpu', ['/dev/accel0'], True),
    ('tpu,cpu', [], False),
    ('', ['/dev/accel0'], False),
    ('', [], True),
  ],
)
def test_cpus_are_recognised_by_jax_platforms_or_by_device_files(
  monkeypatch, platforms, devices, alone
):
  monkeypatch.setenv('JAX_PLATFORMS', platforms)
  monkeypatch.setattr(runtime.glob, 'glob', lambda pattern: devices)
  assert runtime._is_cpu_alone() == alone
