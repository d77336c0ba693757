"""Shows people a run: one live line on a terminal, else lines of text."""

import os
import sys
import time
from typing import Any, TextIO

from moe.objectives.objective import Objective

# Seconds between lines of text if the stream is not a terminal.
_SECONDS_PER_LINE = 10.0
_SECONDS_PER_REFRESH = 0.2


def make_display(stream: TextIO | None = None) -> 'Lines':
  """The display that suits a stream, by default sys.stderr."""
  stream = stream or sys.stderr
  # On a terminal that cannot move its cursor, rich would draw only at the end.
  is_dumb = os.environ.get('TERM') in ('dumb', 'unknown')
  return LiveLine(stream) if stream.isatty() and not is_dumb else Lines(stream)


class Lines:
  """Prints a line every few seconds, for a file or a pipe."""

  seconds_apart = _SECONDS_PER_LINE

  def __init__(self, stream: TextIO):
    self._stream = stream
    self._shown_at = float('-inf')
    self._waiting = None

  def show(self, text: str) -> None:
    """Keeps a status text, and prints it if the last line is old enough."""
    self._waiting = text
    if time.monotonic() - self._shown_at >= self.seconds_apart:
      self._draw()

  def note(self, text: str) -> None:
    """Prints a line at once."""
    print(text, file=self._stream, flush=True)

  def close(self) -> None:
    """Shows the last status and ends the display."""
    if self._waiting is not None:
      self._draw()

  def _draw(self) -> None:
    self._shown_at = time.monotonic()
    self._print(self._waiting)
    self._waiting = None

  def _print(self, text: str) -> None:
    self.note(text)


class LiveLine(Lines):
  """One line that is drawn again and again, with notes above it."""

  seconds_apart = _SECONDS_PER_REFRESH

  def __init__(self, stream: TextIO):
    super().__init__(stream)
    # rich is slow to import, and only a terminal needs it.
    import rich.console
    import rich.live

    console = rich.console.Console(file=stream, highlight=False)
    self._live = rich.live.Live(console=console, auto_refresh=False)
    self._live.start()

  def note(self, text: str) -> None:
    """Prints a line above the live one."""
    self._live.console.print(text, markup=False, soft_wrap=True)

  def close(self) -> None:
    """Leaves the last status on the screen."""
    super().close()
    self._live.stop()

  def _print(self, text: str) -> None:
    import rich.text

    line = rich.text.Text(text, no_wrap=True, overflow='ellipsis')
    self._live.update(line, refresh=True)


def status(
  record: dict[str, Any], total_steps: int, objective: Objective
) -> str:
  """A line about a step, the important numbers first; it omits missing numbers.

  Args:
    record: record of the step, as in log.jsonl.
    total_steps: number of steps of the run.
    objective: what is trained; its score and its unit are shown.
  """
  score, speed = objective.score, f'{objective.unit}_per_second'
  timing = record.get('time', {})
  step, percent = record['step'], 100 * record['step'] // max(total_steps, 1)
  left = timing.get('eta')
  left = '' if left is None else f', {duration(left)} left'
  parts = [f'step {step:,}/{total_steps:,} ({percent}%{left})']
  if record.get('loss') is not None:
    # The total has auxiliary terms, too; the score has none of them.
    parts.append(f'total loss {record["loss"]:.3f}')
  if record.get(score.name) is not None:
    parts.append(f'{record[score.name]:.3f} {score.unit}')
  if timing.get(speed):
    parts.append(f'{_short(timing[speed])} {objective.unit}/s')
  if record.get('dropped_fraction') is not None:
    parts.append(f'dropped {record["dropped_fraction"]:.1%}')
  if record.get('load_imbalance') is not None:
    parts.append(f'imbalance {record["load_imbalance"]:.2f}')
  if record.get('dead_experts'):
    parts.append(f'dead experts {record["dead_experts"]}')
  if timing.get('mfu') is not None:
    parts.append(f'MFU {timing["mfu"]:.1%}')
  return '  '.join(parts)


def duration(seconds: float) -> str:
  """A time span for people: 0:09, 12:30, 3:04:05."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours}:{minutes:02}:{rest:02}'
  return f'{minutes}:{rest:02}'


def _short(number: float) -> str:
  """Three digits and a letter: 950, 12.3k, 4.56M."""
  for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if number >= size:
      return f'{number / size:.3g}{letter}'
  return f'{number:.0f}'
