"""Scores of captions against the captions that people wrote: BLEU, CIDEr-D.

Both compare the n-grams of characters, since Chinese has no spaces between
words.
"""

import collections
import math
from collections.abc import Sequence

import numpy as np

_ORDERS = (1, 2, 3, 4)
# The width of the Gaussian of CIDEr-D, in characters.
_SIGMA = 6.0

Counts = collections.Counter


def _grams(text: str, order: int) -> Counts:
  """The n-grams of a text and how often each occurs; spaces do not count."""
  text = ''.join(text.split())
  return Counts(text[i : i + order] for i in range(len(text) - order + 1))


def _check(captions: Sequence[str], references: Sequence[Sequence[str]]):
  if len(captions) != len(references) or not captions or not all(references):
    raise ValueError(
      'Each caption needs at least one reference, got'
      f' {len(captions)} captions and references for {len(references)}: give'
      ' the captions that people wrote.'
    )


def bleu(captions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """BLEU-4 over characters of a whole set of captions, in [0, 1].

  Papineni et al. (2002), https://aclanthology.org/P02-1040: the geometric mean
  of the clipped precisions of 1- to 4-grams, times exp(1 - r / c) if the
  captions' length c is below the length r of the closest references. Counts are
  added over the set before they are divided. If no 4-gram occurs in the
  references, the score is 0.

  Args:
    captions: one for each picture.
    references: the captions that people wrote for each picture.

  Raises:
    ValueError: if a picture has no reference.
  """
  _check(captions, references)
  ours = theirs = 0
  matched, total = np.zeros(len(_ORDERS)), np.zeros(len(_ORDERS))
  for caption, written in zip(captions, references, strict=True):
    length = len(''.join(caption.split()))
    lengths = [len(''.join(text.split())) for text in written]
    ours += length
    # Of two lengths that are equally close, the shorter one counts.
    theirs += min(lengths, key=lambda n: (abs(n - length), n))
    for i, order in enumerate(_ORDERS):
      found = _grams(caption, order)
      most = Counts()
      for text in written:
        most |= _grams(text, order)
      matched[i] += (found & most).total()
      total[i] += found.total()
  if not matched.all():
    return 0.0
  brevity = min(0.0, 1 - theirs / ours)
  return math.exp(brevity + np.mean(np.log(matched / total)))


def cider_d(
  captions: Sequence[str], references: Sequence[Sequence[str]]
) -> np.ndarray:
  """CIDEr-D of each caption, in [0, 10]: float64 [N].

  Vedantam et al. (2015), https://arxiv.org/abs/1411.5726, section 5: the cosine
  of n-gram counts weighted by log(N / number of pictures whose references have
  the n-gram). A count is clipped to that of the reference, and exp(-(l - r)^2 /
  (2 * 6^2)) punishes a difference of length. The score is 10 times the mean
  over references and over 1- to 4-grams. Departs from the released code, which
  ends each text with a mark: a text of fewer than n characters has no n-grams,
  and its cosine of this order is 0.

  Args:
    captions: one for each picture.
    references: the captions that people wrote for each picture. They also give
      the weights, so a set of one picture has the score 0.

  Raises:
    ValueError: if a picture has no reference.
  """
  _check(captions, references)
  found = np.zeros((len(captions), len(_ORDERS)))
  for column, order in enumerate(_ORDERS):
    grams = [[_grams(text, order) for text in texts] for texts in references]
    frequency = Counts()
    for texts in grams:
      frequency.update(set().union(*texts))
    weight = _weights(frequency, len(captions))
    for row, caption in enumerate(captions):
      ours = _grams(caption, order)
      found[row, column] = np.mean(
        [_similarity(ours, theirs, weight, order) for theirs in grams[row]]
      )
  return 10 * found.mean(axis=1)


def _weights(frequency: Counts, num_pictures: int):
  """The function from an n-gram to its inverse document frequency."""
  log_n = math.log(num_pictures)
  return lambda gram: log_n - math.log(max(1, frequency[gram]))


def _similarity(ours: Counts, theirs: Counts, weight, order: int) -> float:
  """The clipped cosine of two texts, with the penalty of their lengths."""
  norm = lambda counts: math.sqrt(
    sum((n * weight(gram)) ** 2 for gram, n in counts.items())
  )
  product = norm(ours) * norm(theirs)
  if not product:
    return 0.0
  shared = sum(
    min(n, theirs[gram]) * theirs[gram] * weight(gram) ** 2
    for gram, n in ours.items()
  )
  # Texts that are both as long as an n-gram differ as much as their n-grams do.
  apart = ours.total() - theirs.total()
  return shared / product * math.exp(-(apart**2) / (2 * _SIGMA**2))
