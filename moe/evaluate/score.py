"""The class of all scores that are shown, with their JSON and their tables."""

import dataclasses
from collections.abc import Sequence
from typing import Any

BITS_PER_CHAR = 'bits per character'
BITS_PER_BYTE = 'bits per byte'
# Name of the model among its baselines.
OURS = 'this model'
_COLUMNS = ('score', 'value', 'low', 'high', 'n', 'unit', 'better')


@dataclasses.dataclass(frozen=True)
class Score:
  """A score with its interval, its unit and the command that measures it.

  Attributes:
    name: name of the score.
    value: the measured value.
    low: lower end of the 95% interval; None if there is no interval.
    high: upper end of the interval, or None.
    n: number of documents, pictures, runs or samples; None if unknown.
    command: the command that gives the same number again.
    unit: unit of the value.
    is_higher_better: whether a higher value is better.
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
    """Makes a JSON object of the score, which `from_json` reads."""
    return dataclasses.asdict(self)


def from_json(entries: dict[str, Any]) -> Score:
  """Reads a score that `as_json` has written; ignores all other entries."""
  names = {field.name for field in dataclasses.fields(Score)}
  return Score(**{k: v for k, v in entries.items() if k in names})


def as_cells(scores: Sequence[Score]) -> list[tuple[str, ...]]:
  """Makes rows of cells from scores; the first row has the column names."""
  rows = [
    (
      score.name,
      _number(score.value),
      _number(score.low),
      _number(score.high),
      '–' if score.n is None else f'{score.n:,}',
      score.unit,
      'higher' if score.is_higher_better else 'lower',
    )
    for score in scores
  ]
  return [_COLUMNS, *rows]


def _number(value: float | None) -> str:
  """Formats a number with four decimals; '–' for None.

  A number between -0.01 and 0.01 that is not 0 has four significant digits
  instead. A number from 10,000 on has no decimals.
  """
  if value is None:
    return '–'
  if value and abs(value) < 0.01:
    return f'{value:.4g}'
  return f'{value:,.4f}' if abs(value) < 10_000 else f'{value:,.0f}'


def as_table(scores: Sequence[Score]) -> str:
  """A table for people: one row for each score, then the commands."""
  rows = as_cells(scores)
  widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
  lines = []
  for row in rows:
    cells = [
      cell.rjust(width) if 0 < i < 5 else cell.ljust(width)
      for i, (cell, width) in enumerate(zip(row, widths, strict=True))
    ]
    lines.append('  '.join(cells).rstrip())
  lines += dict.fromkeys(score.command for score in scores if score.command)
  return '\n'.join(lines)
