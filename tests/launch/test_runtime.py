"""Tests the code that all commands share."""

import ctypes
import errno
import logging
import os
import pathlib
import subprocess
import sys

import pytest
from etils.epath import gpath

from launch import runtime
from moe import outages
from moe.parallel import processes


def test_the_log_of_the_library_is_printed_once_while_a_verb_runs(
  capsys, caplog
):
  # The handler of caplog is on the root logger, as a library's would be.
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


def test_a_disk_that_fails_is_no_mistake_of_the_user(capsys):
  def verb():
    try:
      raise OSError(errno.EIO, 'Input/output error')
    except OSError as error:
      raise ValueError('checkpoint 3 could not be written') from error

  assert runtime.run(verb) == outages.EXIT_OUTAGE == 74
  assert capsys.readouterr().err.startswith('error: checkpoint 3')


def test_buckets_are_used_without_tensorflow(monkeypatch):
  monkeypatch.delenv('EPATH_USE_TF', raising=False)
  runtime.run(lambda: 0)
  assert not gpath._is_tf_installed.__wrapped__()


@pytest.mark.parametrize(('code', 'told'), [(3, 3), (None, 0), ('text', 1)])
def test_other_processes_are_told_of_a_verb_that_exits(monkeypatch, code, told):
  found = []
  monkeypatch.setattr(processes, 'leave', lambda code: found.append(code))
  with pytest.raises(SystemExit):
    runtime.run(lambda: sys.exit(code))
  assert found == [told]


# This program prints a character as many times as its argument says. With a
# second argument it does what a process of several does.
PRINTING = """
import os, sys
from launch import runtime
from moe.parallel import processes

def verb():
  runtime.log('begun')
  if sys.argv[2:]:
    processes.keep_stdout()
    os.write(1, b'begun\\n')
  print('\\u6625' * int(sys.argv[1]))
  runtime.log('done')
  return 0

sys.exit(runtime.run(verb))
"""


def printed(num_chars, closed='', stdout=subprocess.PIPE, **others):
  """Runs `PRINTING`; the shell first closes the streams in `closed`."""
  environment = os.environ | {
    'PYTHONPATH': str(pathlib.Path(__file__).parents[2]),
    'PYTHONUNBUFFERED': '',
    'PYTHONIOENCODING': others.pop('encoding', 'utf-8'),
  }
  return subprocess.run(
    [
      *('bash', '-c', f'exec "$@" {closed}', 'bash'),
      *(
        sys.executable,
        '-c',
        PRINTING,
        str(num_chars),
        *others.get('more', ()),
      ),
    ],
    env=environment,
    stdout=stdout,
    stderr=others.get('stderr', subprocess.PIPE),
    encoding='utf-8',
    check=False,
  )


def test_what_libraries_print_in_one_of_several_processes_is_no_result():
  done = printed(1, more=['several'])
  assert done.stdout == '\u6625\n'
  assert done.stderr.split() == ['begun', 'begun', 'done']


@pytest.fixture
def unread_pipe():
  """The writing end of a pipe whose reading end is closed."""
  reads, writes = os.pipe()
  os.close(reads)
  yield writes
  os.close(writes)


def test_a_character_that_the_terminal_lacks_is_printed_as_its_escape():
  done = printed(1, encoding='ascii')
  assert (done.returncode, done.stdout) == (0, '\\u6625\n')


# A single character stays in Python's buffer until the process ends. Many
# characters are written at once.
@pytest.mark.parametrize('more', [[], ['several']])
@pytest.mark.parametrize('num_chars', [1, 100_000])
def test_a_pipe_that_nobody_reads_ends_a_verb_without_a_word(
  unread_pipe, num_chars, more
):
  done = printed(num_chars, stdout=unread_pipe, more=more)
  assert done.returncode == 141
  assert not set(done.stderr.split()) - {'begun', 'done'}


def test_a_verb_goes_on_where_nobody_reads_standard_error(unread_pipe):
  done = printed(1, stderr=unread_pipe)
  assert (done.returncode, done.stdout) == (0, '春\n')


def test_what_is_said_on_a_closed_standard_error_does_not_go_elsewhere():
  done = printed(1, '2>&-')
  assert (done.returncode, done.stdout) == (0, '春\n')


def test_a_verb_goes_on_where_standard_output_is_closed():
  done = printed(1, '>&-')
  assert (done.returncode, done.stderr) == (0, 'begun\ndone\n')


@pytest.mark.skipif(not os.path.exists('/dev/full'), reason='no /dev/full')
def test_a_full_disk_is_one_sentence():
  done = printed(1, '>/dev/full')
  assert done.returncode == 2
  assert done.stderr.splitlines()[2:] == [
    'error: standard output must take what is printed, got [Errno 28] No space'
    ' left on device.'
  ]


# This program allocates 64 MiB twice, and prints the number of page faults that
# the second allocation causes.
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
  # New memory causes a fault per page: 16,384 pages of 4 KiB, or 32 huge pages.
  # Memory that was kept causes few faults.
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
