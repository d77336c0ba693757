"""Held-out pictures, and the settings and means of scores on them."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moe import bounds
from moe.data import pictures as pictures_lib
from moe.data.store import Store
from moe.evaluate import comparison
from moe.evaluate.score import Score
from moe.runs.drawing import Drawing

# A picture's own sentence must be found among this many sentences, itself
# included.
RIVALS = 16

# (sentence, facts of a picture) -> attribute -> whether the sentence is right.
Agreement = Callable[[str, Mapping], Mapping[str, bool]]


@dataclasses.dataclass(frozen=True)
class Request:
  """What is scored, and how.

  Attributes:
    agreement: says which attributes a sentence gets right.
    drawing: how pictures are drawn.
    guidances: numbers of which the best one replaces `drawing.guidance`. It is
      chosen by the judge, on other sentences than those that are scored.
    num_drawn: number of sentences to draw, a random choice of each source.
    limit: number of held-out pictures to read, the first ones of each source.
    judge_epochs: least number of passes over the training pictures of the
      judge, a network that is trained apart from the models.
    command: the command that gives the same numbers again.
  """

  agreement: Agreement
  drawing: Drawing = Drawing()
  guidances: Sequence[float] = ()
  num_drawn: int = 200
  limit: int = 1500
  judge_epochs: int = 12
  command: str = ''

  def __post_init__(self):
    bounds.at_least(2, '--num', self.num_drawn, 'sentences to draw')
    bounds.at_least(RIVALS, '--limit', self.limit, 'held-out pictures')
    meaning = 'passes of the judge over its pictures'
    bounds.at_least(1, '--judge_epochs', self.judge_epochs, meaning)


@dataclasses.dataclass(frozen=True)
class HeldOut:
  """Held-out pictures with their sentences and facts.

  Attributes:
    name: name of the pictures; the name of each score begins with it.
    pixels: uint8 [N, Y, X, 3].
    captions: the sentence of each picture.
    facts: what each picture shows, by attribute.
  """

  name: str
  pixels: np.ndarray
  captions: list[str]
  facts: list[dict]

  def part(self, first: int, end: int) -> 'HeldOut':
    """Some of the pictures."""
    return self.of_rows(range(len(self.captions))[first:end])

  def of_rows(self, rows: Sequence[int]) -> 'HeldOut':
    """The pictures with these indices."""
    return HeldOut(
      self.name,
      self.pixels[list(rows)],
      [self.captions[i] for i in rows],
      [self.facts[i] for i in rows],
    )


def check_held_out(pictures: Mapping[str, Mapping[str, str]]) -> None:
  """Raises ValueError if a source has no held-out picture.

  Args:
    pictures: name of the source -> split -> directory of a store.
  """
  for name, by_split in pictures.items():
    if not pictures_lib.held_out(name, by_split):
      raise ValueError(
        f'--pictures={name} must have a held-out picture, got none: add'
        ' pictures, of which about one in 20 is held out.'
      )


def held_out(name: str, store: Store, pixels: int, limit: int) -> HeldOut:
  """Reads the first `limit` pictures of a store, with sentences and facts."""
  made = first_pictures(store, pixels, limit)
  records = store.read(np.arange(len(made)))
  facts = [json.loads(record['facts'].tobytes()) for record in records]
  return HeldOut(name, made, [one.pop('caption') for one in facts], facts)


def first_pictures(store: Store, pixels: int, limit: int) -> np.ndarray:
  """Reads the first pictures of a store, uint8 [N, pixels, pixels, 3]."""
  parts, count = [], 0
  for batch in pictures_lib.picture_batches(store, 256, (pixels, pixels)):
    parts.append(batch['pictures'][batch['weights'] > 0])
    count += len(parts[-1])
    if count >= limit:
      break
  return np.concatenate(parts)[:limit]


class Mean:
  """Makes scores that are means over pictures."""

  def __init__(self, name: str, command: str):
    self._name, self.command = name, command

  def __call__(
    self, what: str, values: np.ndarray, unit: str = 'share', higher=True
  ) -> Score:
    """The mean over pictures with its interval; NaN values are left out."""
    known = np.asarray(values, np.float64)
    known = known[~np.isnan(known)]
    return comparison.of_mean(
      f'{self._name}: {what}', known, self.command, unit, higher
    )

  def by_kind(
    self, what: str, values: np.ndarray, facts: Sequence[Mapping]
  ) -> list[Score]:
    """The mean over the pictures of each kind that has known values."""
    kinds = np.array([one.get('kind') or '' for one in facts])
    kinds[np.isnan(values)] = ''
    return [
      self(f'{what} of kind {kind}', values[kinds == kind])
      for kind in sorted({*kinds.tolist()} - {''})
    ]

  def of_rows(
    self,
    what: str,
    value_of: Callable[..., float],
    sizes: Sequence[int],
    unit: str,
    higher: bool,
  ) -> Score:
    """A value of whole sets; see `comparison.of_sets`."""
    name = f'{self._name}: {what}'
    return comparison.of_sets(name, value_of, sizes, self.command, unit, higher)

  def single(
    self, what: str, value: float, n: int, unit: str, higher: bool
  ) -> Score:
    """Makes a score without an interval, for a value that is not a mean."""
    name = f'{self._name}: {what}'
    return Score(name, float(value), None, None, n, self.command, unit, higher)
