"""The one form of every score that is shown, in JSON and in tables."""

import dataclasses
from collections.abc import Sequence
from typing import Any

BITS_PER_CHAR = 'bits per character'
BITS_PER_BYTE = 'bits per byte'
_COLUMNS = ('score', 'value', 'low', 'high', 'n', 'unit', 'better')


@dataclasses.dataclass(frozen=True)
class Score:
  """A number that says how good something is, and how it was measured.

  Attributes:
    name: of the score.
    value: the number.
    low: lower end of its 95% interval; None if there is no interval.
    high: upper end.
    n: number of documents, pictures, runs or samples; None if unknown.
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


def as_cells(scores: Sequence[Score]) -> list[tuple[str, ...]]:
  """Scores as rows of cells, the first one with the names of the columns."""
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
  """Four decimals, as bits per character need; four digits of small numbers."""
  if value is None:
    return '–'
  if value and abs(value) < 0.01:
    return f'{value:.4g}'
  return f'{value:,.4f}' if abs(value) < 10_000 else f'{value:,.0f}'


def as_table(scores: Sequence[Score]) -> str:
  """Scores for people: a row each, then the commands."""
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
