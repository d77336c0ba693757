"""Batches that a run leaves out, for example because they made its loss jump.

A run reads batch 0, 1, 2, ... of an endless stream. With skips it reads the
same stream without some of the batches. So the number of a step still
determines its batch. PaLM skipped batches in this way after spikes of the loss
(arXiv:2204.02311, section 5.1).
"""

import dataclasses
import itertools
import os
from collections.abc import Iterable, Sequence

from moe import atomic_files, json_text

# The file in a run's work directory that lists the ranges of left-out batches.
# Checkpoints record the same ranges.
NAME = 'skipped_batches.json'
# This file lists the ranges that the steps in the run's log have left out. A
# rewind changes only the file above, so the two differ until the run goes on.
LOGGED = 'skipped_batches_of_log.json'


@dataclasses.dataclass(frozen=True)
class Skips:
  """Ranges of batches that are left out.

  Attributes:
    ranges: (first, end) of each range; `end` itself is not left out. The ranges
      ascend and do not touch each other.
  """

  ranges: tuple[tuple[int, int], ...] = ()

  def __post_init__(self):
    ends = [end for pair in self.ranges for end in pair]
    rising = all(a < b for a, b in itertools.pairwise(ends))
    if not rising or any(end < 0 for end in ends):
      raise ValueError(
        f'Skipped batches must be ascending ranges [first, end), got'
        f' {list(self.ranges)}: correct or remove {NAME}.'
      )

  def number(self, step: int) -> int:
    """Number of the batch that a step reads; steps and batches count from 0."""
    for first, end in self.ranges:
      if step < first:
        break
      step += end - first
    return step

  def before(self, step: int) -> tuple[tuple[int, int], ...]:
    """The ranges of batches that the steps before `step` have skipped."""
    number = self.number(step - 1) if step else -1
    return tuple(pair for pair in self.ranges if pair[0] < number)

  def also(self, first: int, end: int) -> 'Skips':
    """These skips, and also the batches [first, end)."""
    left_out = set(range(first, end))
    for pair in self.ranges:
      left_out.update(range(*pair))
    return of_batches(left_out)


def of_batches(batches: Iterable[int]) -> Skips:
  """The skips that leave out the batches with these numbers."""
  ranges = []
  for number in sorted(batches):
    if ranges and ranges[-1][1] == number:
      ranges[-1][1] = number + 1
    else:
      ranges.append([number, number + 1])
  return of_json(ranges)


def of_json(ranges: Sequence[Sequence[int]]) -> Skips:
  """The skips that a file or a checkpoint records.

  Raises:
    ValueError: if the record does not consist of ranges.
  """
  try:
    return Skips(tuple((int(first), int(end)) for first, end in ranges))
  except (TypeError, OverflowError) as error:
    raise ValueError(f'{NAME} must hold pairs of numbers: {error}.') from error


def read(workdir: str | os.PathLike, name: str = NAME) -> Skips:
  """Reads the skips of a run; there are none if the file is missing.

  Args:
    workdir: directory of the run.
    name: `NAME` or `LOGGED`.

  Raises:
    ValueError: if the file is damaged.
  """
  path = os.path.join(workdir, name)
  if not os.path.exists(path):
    return Skips()
  with open(path, encoding='utf-8') as f:
    return of_json(json_text.parse(f.read()))


def write(workdir: str | os.PathLike, skips: Skips) -> None:
  """Writes the skips into the work directory of a run."""
  atomic_files.write_json(os.path.join(workdir, NAME), skips.ranges)


def record_use(workdir: str | os.PathLike, skips: Skips) -> None:
  """Records which batches the log's steps left out, if there ever were any."""
  path = os.path.join(workdir, LOGGED)
  if skips.ranges or os.path.exists(path):
    atomic_files.write_json(path, skips.ranges)


def check_resumed(
  skips: Skips, recorded: Sequence[Sequence[int]], step: int, workdir: str
) -> None:
  """Raises ValueError if the skips before `step` differ from the recorded ones.

  Args:
    skips: the present skips of the run.
    recorded: ranges that the restored checkpoint records.
    step: the restored step.
    workdir: directory of the run.
  """
  before = of_json(recorded).before(step)
  if skips.before(step) != before:
    raise ValueError(
      f'{os.path.join(workdir, NAME)} must hold {list(before)} for the'
      f' {step:,} steps so far, got {list(skips.before(step))}: restore the'
      ' file, or rewind to an earlier step with launch.checkpoint.'
    )
