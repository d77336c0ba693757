"""One form for every score that is shown, in JSON and in tables alike."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from moe.evaluate import comparison

BITS_PER_CHAR = 'bits per character'
BITS_PER_BYTE = 'bits per byte'
# More do not move an end of the interval by more than a few of its percent.
_NUM_RESAMPLES = 1000
_COLUMNS = ('score', 'value', 'low', 'high', 'n', 'unit', 'better')


@dataclasses.dataclass(frozen=True)
class Score:
  """A number that says how good something is, and how it came about.

  Attributes:
    name: of the score.
    value: the number.
    low: lower end of its 95% interval; None where there is no interval.
    high: upper end.
    n: of how many documents, pictures or chains it is; None where unknown.
    command: what gives the same number again.
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
  """A score that `as_json` has written; other entries are left out."""
  names = {field.name for field in dataclasses.fields(Score)}
  return Score(**{k: v for k, v in entries.items() if k in names})


def as_table(scores: Sequence[Score]) -> str:
  """Scores for people: a row each, then the commands."""
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
    command: what gives the same number again.
    unit: of the value.

  Returns:
    A score with a bootstrap interval over documents, see `comparison.compare`;
    a single document has none.
  """
  found = comparison.compare(
    nats, np.zeros(len(nats)), sizes, num_resamples=_NUM_RESAMPLES
  )
  value = math.fsum(nats) / math.log(2) / float(np.sum(sizes))
  return Score(name, value, found.low, found.high, len(nats), command, unit)
