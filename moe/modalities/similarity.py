"""Compares sequences of proteins: the best local alignment, and identity.

An alignment takes about a millisecond, so only pairs that share words are
aligned. A word is a part of 4 residues. A pair with 30% equal residues nearly
always shares several words, and an unrelated pair rarely shares two.
"""

import collections
import functools
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

# Two chains with at least this identity count as similar.
SIMILAR = 0.3
_WORD, _LEAST_WORDS = 4, 2


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

  Args:
    sequences: sequences.
    others: sequences to compare with; None compares `sequences` with each
      other.

  Yields:
    (number in `sequences`, number in `others`). If `others` is None, the second
    number is the smaller one.
  """
  having = collections.defaultdict(list)

  def add(number: int, words: Iterable[str]) -> None:
    for word in words:
      having[word].append(number)

  for number, sequence in enumerate(others or ()):
    add(number, _words(sequence))
  for number, sequence in enumerate(sequences):
    words = _words(sequence)
    shared = collections.Counter(n for word in words for n in having[word])
    # Most sequences with a single word repeat one residue.
    least = min(_LEAST_WORDS, len(words))
    yield from ((number, n) for n, count in shared.items() if count >= least)
    if others is None:
      add(number, words)


def _words(sequence: str) -> set[str]:
  count = len(sequence) - _WORD + 1
  return {sequence[i : i + _WORD] for i in range(count)}


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
