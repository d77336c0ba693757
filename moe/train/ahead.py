"""What a run reads ahead, in a thread that never keeps the run from ending.

A disk or a network can hold up a read for good, and no signal gets a thread out
of that. So a thread of its own does the reading, and another one receives
signals. The reading thread is a daemon, so a process that has saved its state
can end while a read hangs.
"""

import concurrent.futures
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

# How soon a signal is seen while a read is waited for.
_POLL_SECONDS = 0.2
# A process that ends in the middle of a read may crash. So the last read has
# this time, which only one that hangs does not keep to.
_SETTLE_SECONDS = 2.0


class Ahead:
  """One read at a time, while this thread does other work."""

  def __init__(self):
    self._upcoming: Future | None = None

  def __enter__(self) -> 'Ahead':
    return self

  def __exit__(self, *error: object) -> None:
    if self._upcoming is not None:
      concurrent.futures.wait([self._upcoming], _SETTLE_SECONDS)

  def start(self, read: Callable[[], Any]) -> None:
    """Begins a read; the one before it has ended."""
    future = self._upcoming = Future()

    def work() -> None:
      try:
        found = read()
      except BaseException as error:  # It is raised where it is waited for.
        future.set_exception(error)
      else:
        future.set_result(found)

    threading.Thread(target=work, name='reader', daemon=True).start()

  def result(self, is_stopped: Callable[[], bool]) -> Any | None:
    """What was read; None if the run is to stop and the read has not ended.

    Args:
      is_stopped: whether a signal has come.

    Raises:
      Exception: what the read has raised.
    """
    while not concurrent.futures.wait([self._upcoming], _POLL_SECONDS).done:
      if is_stopped():
        return None
    return self._upcoming.result()


def each(items: Iterator[Any], is_stopped: Callable[[], bool]) -> Iterator[Any]:
  """The items of an iterator, none of them None; ends if the run is to stop."""
  with Ahead() as ahead:
    ahead.start(lambda: next(items, None))
    while (item := ahead.result(is_stopped)) is not None and not is_stopped():
      ahead.start(lambda: next(items, None))
      yield item
