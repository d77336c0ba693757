"""Figures of a group of poems, couplets or ci, for the scorecard.

Each figure is a ratio of two sums over the texts. So a bootstrap over texts
gives its interval.
"""

import collections
from collections.abc import Callable, Container, Sequence
from typing import NamedTuple

from moe.evaluate import contamination, verse
from moe.evaluate.verse import Readings


class Figure(NamedTuple):
  """A figure: the sum of all numerators divided by that of all denominators.

  Attributes:
    name: what the figure counts.
    numerators: one number for each text.
    denominators: one number for each text.
    unit: unit of the figure.
    is_higher_better: whether a higher value is better.
  """

  name: str
  numerators: list[float]
  denominators: list[float]
  unit: str = 'share'
  is_higher_better: bool = True


def _shares(name: str, values: Sequence[Sequence[float]]) -> Figure:
  """The mean of all values; `values` has a list for each text."""
  return Figure(name, [float(sum(v)) for v in values], [len(v) for v in values])


def distinct_parts(
  texts: Sequence[Sequence[str]], size: int = 2
) -> list[float]:
  """One number for each text; their mean is the share of distinct n-grams.

  They are the influence values of the jackknife. Each is the share in all n
  texts plus (n - 1) (m - s). Here s is the share in all texts but this one, and
  m is the mean of s over the texts. A bootstrap over the texts themselves would
  draw some of them twice, and so find fewer distinct n-grams.

  Args:
    texts: the lines of each text.
    size: characters of an n-gram.
  """
  counts = [
    collections.Counter(
      line[i : i + size] for line in text for i in range(len(line) - size + 1)
    )
    for text in texts
  ]
  total = sum(counts, collections.Counter())
  if not total:
    return [0.0] * len(texts)
  num_all, num_kinds = total.total(), len(total)
  without = []
  for count in counts:
    lost = sum(total[gram] == number for gram, number in count.items())
    without.append((num_kinds - lost) / max(num_all - count.total(), 1))
  mean = sum(without) / len(without)
  share = num_kinds / num_all
  return [share + (len(texts) - 1) * (mean - other) for other in without]


def _originality(texts: Sequence[str], train_text: str) -> list[Figure]:
  """What is copied, and how varied the lines are."""
  lines = [verse.lines_of(text) for text in texts]
  ones = [1.0] * len(texts)
  copied = [[line in train_text for line in of_text] for of_text in lines]
  runs = contamination.longest_shared_runs(texts, train_text)
  return [
    _shares('lines that stand in the training text', copied)._replace(
      is_higher_better=False
    ),
    Figure(
      'longest copied run, mean characters', runs, ones, 'characters', False
    ),
    Figure('distinct pairs of characters', distinct_parts(lines), ones),
  ]


def of_poems(
  poems: Sequence[str],
  forms: Sequence[tuple[int, int]],
  train_text: str,
  readings: Readings,
  entering: frozenset[str],
) -> list[Figure]:
  """Figures of quatrains and octaves.

  Args:
    poems: poems without titles.
    forms: (lines, characters in a line) that each poem should have.
    train_text: all training text.
    readings: gives the readings of a character.
    entering: characters of the entering tone.
  """
  split = [verse.lines_of(poem) for poem in poems]
  pairs = [list(zip(x[::2], x[1::2], strict=False)) for x in split]
  is_tonal = lambda line: verse.is_tone_pattern_kept(line, readings, entering)
  is_opposed = lambda pair: verse.are_tones_opposed(*pair, readings, entering)
  return [
    _shares(
      'form kept, share of poems',
      [
        [verse.is_form_kept(poem, *form)]
        for poem, form in zip(poems, forms, strict=True)
      ],
    ),
    _shares(
      'level and oblique alternate, share of lines',
      _of_each(is_tonal, split),
    ),
    _shares(
      'rhyme by 中華新韻, share of poems',
      [[verse.is_rhymed(lines, readings)] for lines in split],
    ),
    _shares(
      'tones of a couplet opposed, share of couplets',
      _of_each(is_opposed, pairs),
    ),
    *_originality(poems, train_text),
  ]


def _of_each(
  measure: Callable[..., float], texts: Sequence[Sequence]
) -> list[list[float]]:
  return [[measure(part) for part in text] for text in texts]


def of_couplets(
  firsts: Sequence[str],
  seconds: Sequence[str],
  train_text: str,
  readings: Readings,
  entering: frozenset[str],
) -> list[Figure]:
  """Figures of second lines of couplets; the writer got the first lines."""
  pairs = list(zip(firsts, seconds, strict=True))
  classes = verse.load_classes()
  agreeing = [verse.class_agreement(*pair, classes) for pair in pairs]
  return [
    _shares(
      'as long as the first line, share of couplets',
      [[verse.is_form_kept(down, 1, len(up))] for up, down in pairs],
    ),
    _shares(
      'tones opposed, share of couplets',
      [[verse.are_tones_opposed(*pair, readings, entering)] for pair in pairs],
    ),
    Figure(
      'word classes agree, share of places',
      [float(agree) for agree, _ in agreeing],
      [float(known) for _, known in agreeing],
    ),
    _shares(
      'characters of the first line in the second',
      [[char in up for char in down] for up, down in pairs],
    )._replace(is_higher_better=False),
    *_originality(seconds, train_text),
  ]


def of_lyrics(
  lyrics: Sequence[str],
  shapes: Sequence[Container[tuple[int, ...]]],
  train_text: str,
  readings: Readings,
) -> list[Figure]:
  """Figures of ci, which are lyrics for known tunes.

  Args:
    lyrics: lyrics without the names of their tunes.
    shapes: for each lyric, the lengths of lines that its tune may have.
    train_text: all training text.
    readings: gives the readings of a character.
  """
  found = [verse.shape_of(lyric) for lyric in lyrics]
  both = list(zip(found, shapes, strict=True))
  starts = [{shape[:1] for shape in known} for known in shapes]
  return [
    _shares(
      'a form of its tune, share of lyrics',
      [[shape in known] for shape, known in both],
    ),
    _shares(
      'first line as long as its tune has it, share of lyrics',
      [[x[:1] in start] for x, start in zip(found, starts, strict=True)],
    ),
    _shares(
      'sentence ends in one class of 中華新韻, mean share',
      [[verse.shared_rhyme(lyric, readings)] for lyric in lyrics],
    ),
    *_originality(lyrics, train_text),
  ]
