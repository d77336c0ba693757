"""Finds the items of a benchmark that share a run of text with training text.

An item is contaminated if a training document contains a run of it: 13
characters in a row, or 8 words in a row for a text in Latin letters. Case,
punctuation and spaces do not count. Brown et al. (2020,
https://arxiv.org/abs/2005.14165, appendix C) look for 8 to 13 words, more in
sets with longer items. We count characters in Chinese, because Chinese has no
spaces between words, and take 8 words, because our items are short. We do not
convert scripts, so an item in simplified Chinese is not found in a text in
traditional Chinese.
"""

import re
from collections.abc import Iterable, Sequence

import numpy as np

RUN_CHARS = 13
RUN_WORDS = 8
# Runs of a text are counted in words if at least this share of its letters is
# Latin, else in characters.
_LATIN_SHARE = 0.8
_WORD = re.compile(r"[^\W_]+(?:'[^\W_]+)?")
_BASE = np.uint64(0x9E3779B97F4A7C15)


def is_by_words(text: str) -> bool:
  """Whether we compare a text word by word rather than by characters."""
  letters = [c for c in text if c.isalpha()]
  latin = sum(c < '\u0250' for c in letters)
  return bool(letters) and latin >= _LATIN_SHARE * len(letters)


def characters(text: str) -> str:
  """The letters and digits of a text in lower case; all else is removed."""
  return ''.join(c for c in text.lower() if c.isalnum())


def run_hashes(symbols: np.ndarray, length: int) -> np.ndarray:
  """A 64-bit hash of every run of `length` symbols, computed as a polynomial.

  Among a billion different runs, the chance that any two have the same hash is
  a few percent. So an item is rarely called contaminated by mistake.
  """
  if len(symbols) < length:
    return np.zeros(0, np.uint64)
  spread = _spread(symbols)
  hashes = np.zeros(len(symbols) - length + 1, np.uint64)
  for start in range(length):
    part = spread[start : start + len(hashes)]
    hashes = hashes * _BASE + part
  return hashes


def _spread(symbols: np.ndarray) -> np.ndarray:
  """A 64-bit number for each symbol; close symbols get distant numbers."""
  spread = (symbols.astype(np.uint64) + np.uint64(1)) * _BASE
  return spread ^ (spread >> np.uint64(31))


def _code_points(text: str) -> np.ndarray:
  data = text.encode('utf-32-le', 'surrogatepass')
  return np.frombuffer(data, '<u4')


class _Words:
  """Gives a number to each word of the items; all other words have 0."""

  def __init__(self):
    self._numbers = {}

  def learn(self, text: str) -> np.ndarray:
    """The numbers of an item's words; new words get new numbers."""
    numbers = self._numbers
    found = [
      numbers.setdefault(word, len(numbers) + 1)
      for word in _WORD.findall(text.lower())
    ]
    return np.array(found, np.int64)

  def read(self, text: str) -> np.ndarray:
    """The numbers of a training text's words; 0 for unknown words."""
    found = [self._numbers.get(word, 0) for word in _WORD.findall(text.lower())]
    return np.array(found, np.int64)


def find(items: Sequence[str], train_texts: Iterable[str]) -> np.ndarray:
  """Whether each item shares a run with any training text, bool [items].

  A run has `RUN_WORDS` words or `RUN_CHARS` characters. The value is False for
  an item that is shorter than a run.
  """
  words, owners, hashes = _Words(), [], []
  by_words = np.array([is_by_words(item) for item in items], bool)
  for number, item in enumerate(items):
    if by_words[number]:
      found = run_hashes(words.learn(item), RUN_WORDS)
    else:
      found = run_hashes(_code_points(characters(item)), RUN_CHARS)
    hashes.append(found)
    owners.append(np.full(len(found), number))
  hashes, owners = np.concatenate(hashes), np.concatenate(owners)
  kinds = by_words[owners]
  sought = {kind: np.unique(hashes[kinds == kind]) for kind in (False, True)}
  seen = {False: [], True: []}
  for text in train_texts:
    if len(sought[False]):
      runs = run_hashes(_code_points(characters(text)), RUN_CHARS)
      seen[False].append(runs[_is_member(runs, sought[False])])
    if len(sought[True]):
      runs = run_hashes(words.read(text), RUN_WORDS)
      seen[True].append(runs[_is_member(runs, sought[True])])
  is_shared = np.zeros(len(items), bool)
  for kind, found in seen.items():
    if found:
      hit = np.isin(hashes, np.unique(np.concatenate(found)))
      is_shared[owners[hit & (kinds == kind)]] = True
  return is_shared


def _is_member(values: np.ndarray, ordered: np.ndarray) -> np.ndarray:
  """Whether each value occurs in the sorted array `ordered`."""
  place = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
  return ordered[place] == values


def longest_shared_runs(texts: Sequence[str], train_text: str) -> list[int]:
  """For each text, the length of its longest run that the training text has.

  Runs of one character are sought first. A run of n + 1 characters can occur
  only where a run of n has been found, so each round searches only the places
  that the round before has kept.
  """
  # A NUL keeps the texts apart. No training text has this character.
  own = _code_points(''.join(f'{text}\0' for text in texts))
  owner = np.repeat(np.arange(len(texts)), [len(text) + 1 for text in texts])
  own_places, own_hashes = np.flatnonzero(own), np.zeros((), np.uint64)
  codes = _code_points(train_text)
  places = np.flatnonzero(np.isin(codes, own))
  hashes = np.zeros((), np.uint64)
  longest, length = np.zeros(len(texts), int), 0
  while True:
    places, hashes = _one_more(codes, places, hashes, length)
    own_places, own_hashes = _one_more(own, own_places, own_hashes, length)
    if not len(places) or not len(own_places):
      return longest.tolist()
    is_kept = _is_member(hashes, np.unique(own_hashes))
    places, hashes = places[is_kept], hashes[is_kept]
    if not len(places):
      return longest.tolist()
    is_kept = _is_member(own_hashes, np.unique(hashes))
    own_places, own_hashes = own_places[is_kept], own_hashes[is_kept]
    length += 1
    longest[owner[own_places]] = length


def _one_more(
  codes: np.ndarray, places: np.ndarray, hashes: np.ndarray, length: int
) -> tuple[np.ndarray, np.ndarray]:
  """Extends runs of `length` characters by one; returns (places, hashes).

  A run at the end of the text cannot be extended, so it is left out.
  """
  is_inside = places + length < len(codes)
  places = places[is_inside]
  hashes = np.broadcast_to(hashes, is_inside.shape)[is_inside]
  return places, hashes * _BASE + _spread(codes[places + length])
