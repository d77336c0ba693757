"""The one form of every score that is shown, in JSON and in tables."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moe.evaluate import comparison

BITS_PER_CHAR = 'bits per character'
BITS_PER_BYTE = 'bits per byte'
# With more resamples an end of the interval would move by a few percent of the
# width at most.
_NUM_RESAMPLES = 1000
_COLUMNS = ('score', 'value', 'low', 'high', 'n', 'unit', 'better')


@dataclasses.dataclass(frozen=True)
class Score:
  """A number that says how good something is, and how it was measured.

  Attributes:
    name: of the score.
    value: the number.
    low: lower end of its 95% interval; None if there is no interval.
    high: upper end.
    n: number of documents, pictures or chains; None if unknown.
    command: the command that gives the same number again.
    unit: of the value.
    is_higher_better: the direction.
  """

  name: str
  value: float
  low: float | None = None
  high: float | None = None
  n: int | None = None
  command: str = ''
  unit: str = BITS_PER_CHAR
  is_higher_better: bool = False

  def __post_init__(self):
    if (self.low is None) != (self.high is None):
      raise ValueError(
        f'{self.name} must have both ends of an interval or none, got low='
        f'{self.low} and high={self.high}.'
      )

  def as_json(self) -> dict[str, Any]:
    """The score as a JSON object, which `from_json` reads."""
    return dataclasses.asdict(self)


def from_json(entries: dict[str, Any]) -> Score:
  """The score that `as_json` has written; other entries are ignored."""
  names = {field.name for field in dataclasses.fields(Score)}
  return Score(**{k: v for k, v in entries.items() if k in names})


def as_table(scores: Sequence[Score]) -> str:
  """Scores for people: one row per score, then the commands."""
  number = lambda x: '–' if x is None else f'{x:,.4f}'
  rows = [
    (
      score.name,
      number(score.value),
      number(score.low),
      number(score.high),
      '–' if score.n is None else f'{score.n:,}',
      score.unit,
      'higher' if score.is_higher_better else 'lower',
    )
    for score in scores
  ]
  widths = [
    max(map(len, column)) for column in zip(_COLUMNS, *rows, strict=True)
  ]
  lines = []
  for row in (_COLUMNS, *rows):
    cells = [
      cell.rjust(width) if 0 < i < 5 else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    lines.append('  '.join(cells).rstrip())
  lines += dict.fromkeys(score.command for score in scores if score.command)
  return '\n'.join(lines)


def of_documents(
  name: str,
  nats: np.ndarray,
  sizes: np.ndarray,
  command: str,
  unit: str = BITS_PER_CHAR,
) -> Score:
  """All nats of documents over all their characters or bytes, in bits.

  Args:
    name: of the score.
    nats: of each document.
    sizes: characters or bytes of each document.
    command: the command that gives the same number again.
    unit: of the value.

  Returns:
    A score with a bootstrap interval over documents, see `comparison.compare`;
    a single document has none.
  """
  low = high = None
  if len(nats) > 1:
    found = comparison.compare(
      nats, np.zeros(len(nats)), sizes, num_resamples=_NUM_RESAMPLES
    )
    low, high = found.low, found.high
  value = math.fsum(nats) / math.log(2) / float(np.sum(sizes))
  return Score(name, value, low, high, len(nats), command, unit)


def of_mean(
  name: str,
  values: np.ndarray,
  command: str,
  unit: str,
  is_higher_better: bool = True,
) -> Score:
  """The mean of one value for each picture or document.

  Args:
    name: of the score.
    values: [n].
    command: the command that gives the same number again.
    unit: of the value.
    is_higher_better: the direction.

  Returns:
    A score with a bootstrap interval; a single value has none.
  """
  values = np.asarray(values, np.float64)
  low = high = None
  if values.size > 1:
    rng = np.random.default_rng(0)
    means = [
      values[rng.integers(values.size, size=values.size)].mean()
      for _ in range(_NUM_RESAMPLES)
    ]
    low, high = (float(end) for end in np.quantile(means, [0.025, 0.975]))
  return Score(
    name,
    float(values.mean()),
    low,
    high,
    values.size,
    command,
    unit,
    is_higher_better,
  )
