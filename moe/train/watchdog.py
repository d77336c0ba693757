"""Ends a run that hangs, and says what it waits for.

A disk, a network or a device may never answer, and a process that waits for
another process may wait for ever. Nothing can interrupt such a wait. So a
thread checks the time of the last sign of life. If it is too long ago, the
thread writes the stacks of all threads and ends the process. Every committed
checkpoint stays, and `launch.supervise` runs the command again.

The idea is that of the watchdog of AXLearn, https://github.com/apple/axlearn.
"""

import contextlib
import faulthandler
import os
import threading
import time
from collections.abc import Callable
from typing import Any

# This is EX_SOFTWARE. `launch.supervise` counts it as a crash.
EXIT_HUNG = 70
STACKS = 'hang.txt'
_LOOKS = 10  # Number of looks at the clock within the allowed time.
# What the run waits for -> what a person should check.
_CAUSES = {
  'restoring': 'the state has not been made or restored: look at the disk or'
  ' network of the checkpoints, or for a stopped process of this run',
  'compiling': 'the step has not been compiled: look at the memory of this'
  ' machine, or for a stopped process of this run',
  'the data': 'no batch has come: look at the disk or network of the data',
  'the devices': 'the devices have not finished a step: look for a device that'
  ' is broken, or for a stopped process of this run, for which a collective'
  ' waits',
  'an evaluation': 'an evaluation has not finished a batch: look at the disk or'
  ' network of the held-out data, and at the devices',
  'a checkpoint': 'a checkpoint has not been saved: look at the disk or network'
  ' of the checkpoints, or for a stopped process of this run, for which the'
  ' others wait',
}


class Watchdog:
  """Ends the process if the code in a `with` block shows no sign of life."""

  def __init__(
    self,
    seconds: float,
    workdir: str | os.PathLike,
    end: Callable[[int], Any] = os._exit,
  ):
    """Makes a watchdog that has not started yet.

    Args:
      seconds: allowed time without a sign of life; 0 for no limit.
      workdir: directory in which the stacks of all threads are written.
      end: ends the process with an exit code.
    """
    self._seconds = seconds
    self._path = os.path.join(workdir, STACKS)
    self._end = end
    self._doing, self._since = 'the data', 0.0
    self._is_over = threading.Event()
    self._thread = threading.Thread(
      target=self._look, name='watchdog', daemon=True
    )

  def __enter__(self) -> 'Watchdog':
    self._since = time.monotonic()
    if self._seconds:
      self._thread.start()
    return self

  def __exit__(self, *error: object) -> None:
    self._is_over.set()

  def sees(self, doing: str) -> None:
    """Records a sign of life.

    Args:
      doing: what the run waits for from now on, one of `_CAUSES`.
    """
    assert doing in _CAUSES, doing
    self._doing, self._since = doing, time.monotonic()

  def watched(self, doing: str, function: Callable) -> Callable:
    """Wraps a function so that each call of it is a sign of life."""

    def call(*args: Any) -> Any:
      self.sees(doing)
      return function(*args)

    return call

  def _look(self) -> None:
    tick = self._seconds / _LOOKS
    before = time.monotonic()
    while not self._is_over.wait(tick):
      now = time.monotonic()
      if now - before > self._seconds / 2:
        # The whole process was suspended, so there could be no sign of life.
        self._since = now
      before = now
      if now - self._since > self._seconds:
        self._report()
        self._end(EXIT_HUNG)
        return

  def _report(self) -> None:
    """Writes the cause to standard error, and the cause and stacks to a file.

    It avoids the buffer of `sys.stderr`, which another thread may have locked.
    """
    text = (
      f'\nerror: no sign of life for {self._seconds:g} s: '
      f'{_CAUSES[self._doing]}. The stacks of all threads are in {self._path}.'
      ' Run the command again to go on from the newest checkpoint, or raise'
      ' HANG_SECONDS.\n'
    )
    with contextlib.suppress(OSError):
      os.write(2, text.encode())
      with open(self._path, 'w', encoding='utf-8') as f:
        f.write(text)
        f.flush()
        faulthandler.dump_traceback(f, all_threads=True)
