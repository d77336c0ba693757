"""Finds a process that makes all other processes wait."""

import statistics
import threading
from collections.abc import Callable

# A process is slow if its devices wait more than `_TIMES` times as long as the
# median of the other processes, and if the difference is more than the share
# `_SHARE` of a step.
_TIMES = 2.0
_SHARE = 0.1
# Number of steps that are compared together, since single steps vary.
WINDOW = 20


class Pace:
  """Compares the time that each process needs between two steps.

  All processes end a step together, because their devices exchange data. So the
  time of a step does not show which process is slow. Between two steps, the
  devices of a process wait for their host, which reads a batch and starts the
  next step. These waits are compared. They do not show a slow device.
  """

  def __init__(self, num_processes: int, say: Callable[[int, str], None]):
    """Initialises without any times.

    Args:
      num_processes: number of processes that report.
      say: called with (number of a slow process, sentence about it).
    """
    self._size = num_processes
    self._say = say
    # The main thread and the thread that watches other processes add times.
    self._lock = threading.Lock()
    self._windows: dict[int, dict[int, tuple[float, float]]] = {}

  def add(self, process: int, window: int, host: float, step: float) -> None:
    """Adds the median times of one process in a window of steps.

    Args:
      process: number of the process.
      window: number of the window.
      host: seconds per step in which the devices waited for the host.
      step: seconds per step.
    """
    with self._lock:
      times = self._windows.setdefault(window, {})
      times[process] = host, step
      if len(times) < self._size:
        return
      self._windows = {w: t for w, t in self._windows.items() if w > window}
    for slow, (own, whole) in times.items():
      others = [h for p, (h, _) in times.items() if p != slow]
      usual = statistics.median(others) if others else own
      if own > _TIMES * usual and own - usual > _SHARE * whole:
        self._say(
          slow,
          f'is slow: its devices wait {own:.2g} s of each step of {whole:.2g} s'
          f' for it, those of the others {usual:.2g} s (steps'
          f' {window * WINDOW + 1:,} to {(window + 1) * WINDOW:,})',
        )


class Clock:
  """Collects the times of this process until a window is full."""

  def __init__(self):
    self._window, self._times = -1, []

  def add(
    self, step: int, host: float, whole: float
  ) -> tuple[int, float, float] | None:
    """Adds a step; when a window is full, returns (window, host, step).

    These are arguments of `Pace.add`.
    """
    window = (step - 1) // WINDOW
    if window != self._window:
      self._window, self._times = window, []
    self._times.append((host, whole))
    if len(self._times) < WINDOW:
      return None
    hosts, wholes = zip(*self._times, strict=True)
    # The median hardly depends on the few steps with compilation or evaluation.
    return window, statistics.median(hosts), statistics.median(wholes)
