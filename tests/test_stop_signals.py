"""A signal ends a command, but lets it save first."""

import os
import signal
import subprocess
import sys
import time

import pytest

from launch import runtime
from moe import stop_signals

ALL = sorted(stop_signals.NAMES)


@pytest.mark.parametrize('number', ALL)
def test_a_verb_that_a_signal_ends_says_so_in_one_sentence(number, capfd):
  def verb():
    os.kill(os.getpid(), number)
    time.sleep(60)

  assert runtime.run(verb) == 75
  name = stop_signals.NAMES[number]
  last = capfd.readouterr().err.splitlines()[-1]
  assert last == f'{name}: ended; run it again to go on.'


@pytest.mark.parametrize('number', ALL)
def test_a_signal_that_was_ignored_stays_so(number):
  before = signal.signal(number, signal.SIG_IGN)
  try:
    with stop_signals.raising():
      os.kill(os.getpid(), number)
    assert signal.getsignal(number) == signal.SIG_IGN
  finally:
    signal.signal(number, before)


def test_the_inner_block_takes_the_signals_and_gives_them_back():
  seen = []
  before = [signal.getsignal(number) for number in ALL]
  with pytest.raises(stop_signals.Stopped, match='SIGHUP'):  # noqa: PT012
    with stop_signals.raising():
      with stop_signals.handled(seen.append):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
      os.kill(os.getpid(), signal.SIGHUP)
  assert seen == ['SIGTERM', 'Ctrl-C']
  assert [signal.getsignal(number) for number in ALL] == before


# The main thread waits in C code for a lock that it already holds. As during a
# compilation, Python cannot handle a signal then.
BLOCKED = """
import ctypes, sys, time
from moe import stop_signals
stop_signals._PATIENCE_SECONDS = 0.3
stop_signals._FAREWELL_SECONDS = 0.3
def bid_farewell():
  print('told', flush=True)
  time.sleep(60)  # Even a function that hangs does not keep the process.
stop_signals.before_exit(bid_farewell)
arguments = [lambda name: None] * int(sys.argv[2])
with getattr(stop_signals, sys.argv[1])(*arguments):
  stop_signals.listen()
  mutex = ctypes.create_string_buffer(64)
  print('ready', flush=True)
  ctypes.CDLL(None).pthread_mutex_lock(mutex)
  ctypes.CDLL(None).pthread_mutex_lock(mutex)
"""


def blocked(block, num_arguments):
  process = subprocess.Popen(
    [sys.executable, '-c', BLOCKED, block, str(num_arguments)],
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )
  assert process.stdout.readline() == 'ready\n'
  time.sleep(0.3)  # The process prints 'ready' shortly before it blocks.
  return process


def test_a_second_ctrl_c_leaves_at_once_and_one_press_is_one():
  process = blocked('handled', 1)
  process.send_signal(signal.SIGINT)
  process.send_signal(signal.SIGINT)  # A wrapper may send the signal again.
  with pytest.raises(subprocess.TimeoutExpired):
    process.wait(0.5)
  process.send_signal(signal.SIGINT)
  assert process.wait(5) == 130
  assert 'again to leave at once' in process.stderr.read()


def test_what_has_nothing_to_save_ends_in_the_middle_of_a_long_call():
  process = blocked('raising', 0)
  process.send_signal(signal.SIGTERM)
  assert process.wait(5) == 75
  assert process.stdout.read() == 'told\n'


# Python drops an exception of a callback of the garbage collector. JAX has such
# a callback.
DROPPED = """
import gc, os, signal, time
from moe import stop_signals
stop_signals._PATIENCE_SECONDS = 0.3
def callback(phase, facts):
  if phase == 'start' and gc.callbacks:
    gc.callbacks.clear()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.01)
gc.callbacks.append(callback)
with stop_signals.raising():
  gc.collect()
  print('dropped', flush=True)
  time.sleep(30)
"""


def test_a_signal_in_a_callback_of_the_garbage_collector_ends_the_process():
  done = subprocess.run(
    [sys.executable, '-c', DROPPED],
    capture_output=True,
    text=True,
    check=False,
    timeout=20,
  )
  assert (done.returncode, done.stdout) == (75, 'dropped\n'), done.stderr


def test_other_signals_end_nothing():
  program = """
import os, signal, time
from moe import stop_signals
stop_signals._PATIENCE_SECONDS = 0.1
signal.signal(signal.SIGUSR1, lambda *_: None)
with stop_signals.raising():
  stop_signals.listen()
  os.kill(os.getpid(), signal.SIGUSR1)
  time.sleep(0.4)
"""
  done = subprocess.run([sys.executable, '-c', program], check=False)
  assert done.returncode == 0
