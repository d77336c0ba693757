"""Reads ahead in a thread that cannot keep the process from ending.

A read from a disk or a network can hang forever, and no signal interrupts it.
So a separate thread reads, and the main thread receives signals. The reading
thread is a daemon, so a process that has saved its state can end while a read
hangs.
"""

import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

# A thread that waits for a read looks for a signal this often.
_POLL_SECONDS = 0.2
# A process that ends in the middle of a read may crash. So before a run ends,
# it waits for its last read, but at most this long, since the read may hang.
_SETTLE_SECONDS = 2.0


class Ahead:
  """Does one read at a time in a thread, while the caller does other work."""

  def __init__(self):
    self._upcoming: Future | None = None

  def __enter__(self) -> 'Ahead':
    return self

  def __exit__(self, *error: object) -> None:
    if self._upcoming is not None:
      concurrent.futures.wait([self._upcoming], _SETTLE_SECONDS)

  def start(self, read: Callable[[], Any]) -> None:
    """Begins a read; the read before it must have ended."""
    future = self._upcoming = Future()

    def work() -> None:
      try:
        found = read()
      except BaseException as error:  # `result` raises it in the main thread.
        future.set_exception(error)
      else:
        future.set_result(found)

    threading.Thread(target=work, name='reader', daemon=True).start()

  def result(self, is_stopped: Callable[[], bool]) -> Any | None:
    """Waits for the read and returns its result; None if a signal comes first.

    Args:
      is_stopped: () -> whether a signal has come.

    Raises:
      Exception: the error of the read.
    """
    while not concurrent.futures.wait([self._upcoming], _POLL_SECONDS).done:
      if is_stopped():
        return None
    return self._upcoming.result()


def each(items: Iterator[Any], is_stopped: Callable[[], bool]) -> Iterator[Any]:
  """Reads an iterator ahead, up to its end or a signal; no item may be None."""
  with Ahead() as ahead:
    ahead.start(lambda: next(items, None))
    while (item := ahead.result(is_stopped)) is not None and not is_stopped():
      ahead.start(lambda: next(items, None))
      yield item
