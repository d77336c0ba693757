"""Handles the signals that end a command: SIGTERM, SIGHUP and Ctrl-C.

Python calls a handler only between two operations of the main thread, which may
be inside a compilation for minutes. So a second thread reads each signal at
once. This thread ends the process at a second Ctrl-C. If nothing has to be
saved, the thread also ends the process some seconds after the first signal.
Ending the process at any moment is safe, since files are written whole or not
at all.
"""

import contextlib
import os
import select
import signal
import threading
import time
import types
from collections.abc import Callable, Iterator, Sequence

NAMES = {
  signal.SIGTERM: 'SIGTERM',
  signal.SIGINT: 'Ctrl-C',
  signal.SIGHUP: 'SIGHUP',
}
_NUMBERS = {name: number for number, name in NAMES.items()}
EXIT_STOPPED = 75  # EX_TEMPFAIL: the same command can be run again.
_EXIT_CTRL_C = 128 + signal.SIGINT
# Two Ctrl-C signals within this time count as one press: the terminal and a
# wrapper may both send a signal for the same press.
_ONE_PRESS_SECONDS = 0.2
# After a signal, a command with nothing to save must end within this time.
_PATIENCE_SECONDS = 5.0
# A function that `before_exit` has set may run for this many seconds.
_FAREWELL_SECONDS = 10.0


class Stopped(KeyboardInterrupt):
  """Raised at a signal if nothing has to be saved; has the signal's name."""


@contextlib.contextmanager
def raising() -> Iterator[None]:
  """Raises `Stopped` in the block at the first signal; ignores later signals.

  If the block still runs some seconds after the signal, the process ends with
  `EXIT_STOPPED`. A second Ctrl-C ends the process at once. So the process ends
  also if Python drops `Stopped`, as it does in a callback of the garbage
  collector. If the block calls `listen`, these rules hold in C code, too.
  """
  seen = []

  def stop(name: str) -> None:
    if not seen:
      seen.append(name)
      if _listener is None:
        listen()
        os.write(_listener.descriptor, bytes([_NUMBERS[name]]))
      raise Stopped(name)

  with handled(stop, patience=_PATIENCE_SECONDS, listens=False):
    yield


@contextlib.contextmanager
def handled(
  on_signal: Callable[[str], None],
  signals: Sequence[int] = tuple(NAMES),
  patience: float | None = None,
  listens: bool = True,
) -> Iterator[None]:
  """Calls a function with the name of each signal while the block runs.

  A signal that is already ignored stays ignored: nohup ignores SIGHUP, and a
  shell makes jobs in the background ignore Ctrl-C. Blocks may be nested; then
  the innermost block handles the signals.

  Args:
    on_signal: called in the main thread, between two operations of Python.
    signals: some of `NAMES`.
    patience: seconds within which the block must end after a signal; None for
      no limit.
    listens: whether to call `listen`.
  """
  if threading.current_thread() is not threading.main_thread():
    yield  # Python lets only the main thread set a handler.
    return

  def handler(number: int, frame: types.FrameType | None) -> None:
    del frame
    on_signal(NAMES[number])

  with _waiting(patience):
    if listens:
      listen()
    previous = {}
    for number in signals:
      if signal.getsignal(number) not in (signal.SIG_IGN, None):
        previous[number] = signal.signal(number, handler)
    try:
      yield
    finally:
      for number, before in previous.items():
        signal.signal(number, before)


class _Listener:
  """A thread that reads each signal at once from a pipe."""

  def __init__(self):
    self._read, self._write = os.pipe()
    os.set_blocking(self._write, False)
    self._thread = threading.Thread(
      target=self._listen, name='signals', daemon=True
    )
    self._thread.start()

  @property
  def descriptor(self) -> int:
    """File descriptor to which Python writes the number of each signal."""
    return self._write

  def close(self) -> None:
    """Ends the thread."""
    os.close(self._write)
    self._thread.join()
    os.close(self._read)

  def _listen(self) -> None:
    pressed = ends_at = None
    while True:
      left = None if ends_at is None else max(0.0, ends_at - time.monotonic())
      if not select.select([self._read], [], [], left)[0]:
        if _patience[-1] is not None:  # The present block may have no limit.
          _say('ended in the middle of its work; run it again to go on.')
          _call_before_exit()
          os._exit(EXIT_STOPPED)
        ends_at = None
        continue
      number = os.read(self._read, 1)
      if not number:
        return
      if number[0] not in NAMES:
        continue  # Another handler of Python handles this signal.
      now = time.monotonic()
      if _patience[-1] is not None and ends_at is None:
        ends_at = now + _patience[-1]
      if number[0] == signal.SIGINT:
        if pressed is None:
          pressed = now
          _say('Ctrl-C: ending; press it again to leave at once.')
        elif now - pressed > _ONE_PRESS_SECONDS:
          os._exit(_EXIT_CTRL_C)


_before_exit: Callable[[], None] = lambda: None


def before_exit(function: Callable[[], None]) -> None:
  """Sets a function that is called before this file ends the process.

  A second Ctrl-C ends the process without this call.
  """
  global _before_exit
  _before_exit = function


def _call_before_exit() -> None:
  # The function may hang, for example at a lock that the main thread holds.
  thread = threading.Thread(target=_before_exit, daemon=True)
  thread.start()
  thread.join(_FAREWELL_SECONDS)


_listener: _Listener | None = None
# The `patience` of each nested block, the innermost last.
_patience: list[float | None] = [None]


def listen() -> None:
  """Starts the thread that reads each signal at once.

  Outside of a block of `raising` or `handled`, this does nothing.

  A command calls this after it has configured the memory allocator, which must
  happen before a second thread starts.
  """
  global _listener
  is_main = threading.current_thread() is threading.main_thread()
  if _listener is None and is_main and len(_patience) > 1:
    _listener = _Listener()
    signal.set_wakeup_fd(_listener.descriptor, warn_on_full_buffer=False)


@contextlib.contextmanager
def _waiting(patience: float | None) -> Iterator[None]:
  """Sets `patience` in a block; the outermost block also ends `_listener`."""
  global _listener
  _patience.append(patience)
  try:
    yield
  finally:
    if len(_patience) == 2 and _listener is not None:
      signal.set_wakeup_fd(-1)
      _listener.close()
      _listener = None
    _patience.pop()


def _say(text: str) -> None:
  """Writes to stderr past its buffer, whose lock the main thread may hold."""
  with contextlib.suppress(OSError):
    os.write(2, f'\n{text}\n'.encode())
