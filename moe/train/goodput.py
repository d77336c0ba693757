"""Measures where the time of a run goes: each second belongs to one part.

A run may need several attempts, because it is killed or preempted. The file
goodput.json in the work directory holds the seconds of each attempt by part. A
thread keeps the file up to date, so a kill loses at most half a percent of the
attempt's time, or 0.1 s if this is more. The next attempt finds out how many
steps were lost, and moves their time to `lost`.
"""

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from typing import Any

from moe import atomic_files, json_text

NAME = 'goodput.json'
# Name of a part -> what its seconds are spent on.
PARTS = {
  'productive': 'steps that are in the result',
  'lost': 'steps that a later attempt did again',
  'loading': 'start of the process, data, restoring, waits for batches',
  'compiling': 'the program of the step',
  'evaluating': 'evaluations between steps',
  'checkpointing': 'what the steps wait for while a checkpoint is saved',
  'reporting': 'results and the report after the last step',
}
# The time between two writes of the file is this share of the attempt's age, at
# least `_SOONEST` and at most `_LATEST` seconds.
_SHARE, _SOONEST, _LATEST = 0.005, 0.1, 10.0


class Goodput:
  """The times of this attempt and of all earlier attempts.

  Attributes:
    attempts: for each attempt, part -> seconds; this attempt is the last.
  """

  def __init__(
    self, workdir: str | os.PathLike | None = None, begin: float | None = None
  ):
    """Starts an attempt; its first part is loading.

    Args:
      workdir: directory of the run; None writes no file.
      begin: start of the process by `time.monotonic`; by default now.
    """
    self._path = workdir and os.path.join(workdir, NAME)
    self._begin = time.monotonic() if begin is None else begin
    self._since, self._part = self._begin, 'loading'
    earlier = read(workdir) if workdir else []
    self.attempts = [*earlier, dict.fromkeys(PARTS, 0.0)]
    self._mutex = threading.Lock()
    self._is_closed = threading.Event()
    if self._path:
      threading.Thread(target=self._keep, name='goodput', daemon=True).start()

  @contextlib.contextmanager
  def spent(self, part: str) -> Iterator[None]:
    """Adds the time of the block to a part; blocks may be nested."""
    before = self._switch(part)
    try:
      yield
    finally:
      self._switch(before)

  def lose(self, seconds: float) -> None:
    """Moves the time of lost steps from 'productive' to 'lost'.

    The newest of the earlier attempts comes first, since it made the last
    steps.
    """
    with self._mutex:
      for attempt in reversed(self.attempts[:-1]):
        moved = min(seconds, attempt['productive'])
        attempt['productive'] -= moved
        attempt['lost'] += moved
        seconds -= moved

  def write(self) -> None:
    """Writes the seconds up to now to the file."""
    self._switch(self._part)
    with self._mutex:
      content = {'attempts': self._rounded()}
      if self._path:
        atomic_files.write_json(self._path, content)

  def close(self) -> None:
    """Ends the attempt and writes the file."""
    self._is_closed.set()
    self.write()

  def summary(self) -> dict[str, Any]:
    """Total seconds and seconds by part, of the run and of each attempt."""
    self._switch(self._part)
    with self._mutex:
      return summary(self._rounded())

  def _rounded(self) -> list[dict[str, float]]:
    return [{k: round(s, 3) for k, s in a.items()} for a in self.attempts]

  def _switch(self, part: str) -> str:
    """Books the time since the last switch, and begins `part`.

    Returns:
      The part that ends, to which the time belongs.
    """
    assert part in PARTS, part
    with self._mutex:
      now = time.monotonic()
      self.attempts[-1][self._part] += now - self._since
      before, self._part, self._since = self._part, part, now
      return before

  def _keep(self) -> None:
    """Writes the file again and again, until the attempt ends."""

    def wait() -> float:
      age = time.monotonic() - self._begin
      return min(max(_SHARE * age, _SOONEST), _LATEST)

    while not self._is_closed.wait(wait()):
      # If the disk is full, the write of the log reports it.
      with contextlib.suppress(OSError):
        self.write()


def read(workdir: str | os.PathLike) -> list[dict[str, float]]:
  """For each attempt, part -> seconds; [] if the file is missing or damaged."""
  try:
    with open(os.path.join(workdir, NAME), encoding='utf-8') as f:
      attempts = json_text.parse(f.read())['attempts']
    return [{part: float(a.get(part, 0.0)) for part in PARTS} for a in attempts]
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    return []


def summary(attempts: list[dict[str, float]]) -> dict[str, Any]:
  """Total seconds and seconds by part, of the run and of each attempt.

  Args:
    attempts: from `read`.

  Returns:
    'seconds' is the sum of all parts. 'goodput' is the part 'productive' as a
    share of this sum; None if the sum is 0. 'parts' has the seconds by part.
    'attempts' is the argument.
  """
  parts = {part: sum(a[part] for a in attempts) for part in PARTS}
  seconds = sum(parts.values())
  return {
    'seconds': round(seconds, 3),
    'goodput': round(parts['productive'] / seconds, 4) if seconds else None,
    'parts': {part: round(value, 3) for part, value in parts.items()},
    'attempts': attempts,
  }


def process_begin() -> float:
  """The start of this process by `time.monotonic`.

  Linux knows the start. Elsewhere the CPU time of the process is taken for its
  age, since a process that has just started has only computed.
  """
  try:
    with open('/proc/self/stat', encoding='utf-8', errors='replace') as f:
      # The second field is a name in parentheses, with any characters in it.
      ticks = int(f.read().rpartition(')')[2].split()[19])
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
    age = since_boot - ticks / os.sysconf('SC_CLK_TCK')
  except (OSError, AttributeError, ValueError, IndexError):
    age = time.process_time()
  return time.monotonic() - age
