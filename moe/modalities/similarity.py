"""Compares sequences of proteins: alignments, and identity.

The time of an alignment grows with the product of the lengths: a millisecond
for 100 residues, and 40 for 1,000. So only pairs that share two words are
aligned; for a chain with a single word, one is enough. A word is a part of 4
residues. Unrelated chains of 100 residues seldom share two, but those of 1,000
residues share 12 on average. So long chains must have two shared words near
each other. Altschul et al. (1997) search sequences in this way,
https://doi.org/10.1093/nar/25.17.3389.
"""

import collections
import functools
import logging
import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

# Two chains with at least this identity count as similar.
SIMILAR = 0.3
_WORD = 4
# Chains are long if the product of their lengths is larger than this. Unrelated
# ones then share more than one word on average.
_LONG = 100_000
# Two shared words are near each other if they are at most `_REACH` residues
# apart in one sequence, and if their distance in the other sequence differs
# from this by at most `_GAPS`.
_REACH, _GAPS = 100, 8
# Seconds between two messages.
_PERIOD = 10.0

_logger = logging.getLogger(__name__)


def align(one: str, two: str, is_local: bool = True):
  """The best alignment; BLOSUM62, 10 to open a gap, 1 to extend it.

  Args:
    one: a sequence.
    two: another sequence.
    is_local: whether parts of the sequences are aligned. Otherwise the whole
      sequences are, and gaps at the ends are free.
  """
  from biotite.sequence import align  # The import takes a second.

  pair = _as_biotite(one), _as_biotite(two)
  ends = {'local': True} if is_local else {'terminal_penalty': False}
  options = {'gap_penalty': (-10, -1), 'max_number': 1, **ends}
  return align.align_optimal(*pair, _matrix(), **options)[0]


@functools.cache
def _matrix():
  from biotite.sequence import align  # The import takes a second.

  return align.SubstitutionMatrix.std_protein_matrix()


@functools.lru_cache(maxsize=10_000)
def _as_biotite(sequence: str):
  from biotite.sequence import ProteinSequence  # The import takes a second.

  return ProteinSequence(sequence)


def identity(one: str, two: str) -> float:
  """Equal residues of the best alignment / residues of the shorter sequence."""
  trace = align(one, two).trace
  rows, columns = trace[(trace >= 0).all(axis=1)].T
  letters = [np.frombuffer(s.encode(), np.uint8) for s in (one, two)]
  same = letters[0][rows] == letters[1][columns]
  return float(same.sum() / min(len(one), len(two)))


def likely(
  sequences: Sequence[str], others: Sequence[str] | None = None
) -> Iterator[tuple[int, int]]:
  """Yields the pairs that may be similar, since they share words.

  It logs its progress, since many long sequences take hours.

  Args:
    sequences: sequences.
    others: sequences to compare with; None compares `sequences` with each
      other.

  Yields:
    (number in `sequences`, number in `others`). If `others` is None, the second
    number is the smaller one.
  """
  known = sequences if others is None else others
  # Word -> (number of a sequence, place of the word in it).
  having = collections.defaultdict(list)

  def add(number: int, places: Mapping[str, int]) -> None:
    for word, place in places.items():
      having[word].append((number, place))

  for number, sequence in enumerate(others or ()):
    add(number, _places(sequence))
  last = time.monotonic()
  for number, sequence in enumerate(sequences):
    places = _places(sequence)
    for other, pairs in _shared(places, having).items():
      is_long = len(sequence) * len(known[other]) > _LONG
      has_two = _has_two_near(pairs) if is_long else len(pairs) > 1
      # Most sequences with a single word repeat one residue.
      if has_two or len(places) == 1:
        yield number, other
    if others is None:
      add(number, places)
    if time.monotonic() - last > _PERIOD:
      last = time.monotonic()
      _logger.info(f'{number + 1:,} of {len(sequences):,} chains compared')


def _places(sequence: str) -> dict[str, int]:
  """The first place of each word, in ascending order."""
  found = {}
  for place in range(len(sequence) - _WORD + 1):
    found.setdefault(sequence[place : place + _WORD], place)
  return found


def _shared(
  places: Mapping[str, int], having: Mapping[str, list[tuple[int, int]]]
) -> dict[int, list[tuple[int, int]]]:
  """Number of each other sequence -> both places of each word in common.

  Args:
    places: the place of each word of a sequence.
    having: word -> (number, place) in each of the other sequences.
  """
  found = collections.defaultdict(list)
  for word, place in places.items():
    for other, its_place in having.get(word, ()):
      found[other].append((place, its_place))
  return found


def _has_two_near(pairs: Sequence[tuple[int, int]]) -> bool:
  """Whether two shared words are near each other in both sequences.

  Args:
    pairs: the places of each shared word in the two sequences; those in the
      first sequence are in ascending order.
  """
  for i, (place, its_place) in enumerate(pairs):
    for next_place, its_next in pairs[i + 1 :]:
      apart = next_place - place
      if apart > _REACH:
        break
      # Words that overlap are more likely shared by chance.
      if apart >= _WORD and abs(its_next - its_place - apart) <= _GAPS:
        return True
  return False


def highest_identity(sequences: Sequence[str], others: Sequence[str]) -> float:
  """The highest identity of a sequence with one of the others.

  Args:
    sequences: sequences.
    others: sequences to compare with.

  Returns:
    The identity; 0 if no pair shares words.
  """
  return max(
    (identity(sequences[i], others[j]) for i, j in likely(sequences, others)),
    default=0.0,
  )
