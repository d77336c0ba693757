"""Compares captions with captions that people wrote: BLEU-4 and CIDEr-D.

Both scores compare n-grams of characters, not of words, since Chinese has no
spaces between words.
"""

import collections
import math
from collections.abc import Sequence

import numpy as np

_ORDERS = (1, 2, 3, 4)
# Standard deviation of CIDEr-D's Gaussian over differences of length.
_SIGMA = 6.0

Counts = collections.Counter


def _grams(text: str, order: int) -> Counts:
  """The n-grams of a text without its spaces, and how often each occurs."""
  text = ''.join(text.split())
  return Counts(text[i : i + order] for i in range(len(text) - order + 1))


def _check(captions: Sequence[str], references: Sequence[Sequence[str]]):
  if len(captions) != len(references) or not captions or not all(references):
    raise ValueError(
      'Each caption needs at least one reference, got'
      f' {len(captions)} captions and references for {len(references)}: give'
      ' the captions that people wrote.'
    )


def bleu_counts(
  captions: Sequence[str], references: Sequence[Sequence[str]]
) -> np.ndarray:
  """What BLEU-4 over characters counts in each caption, for `bleu`.

  Args:
    captions: one for each picture.
    references: the captions that people wrote for each picture.

  Returns:
    int [N, 10]. The columns are the length of the caption, the length of the
    closest reference, for n = 1 to 4 the number of n-grams of the caption that
    occur in a reference, and for n = 1 to 4 the number of all its n-grams.

  Raises:
    ValueError: if there is no caption, a picture has no reference, or both
      arguments differ in length.
  """
  _check(captions, references)
  rows = []
  for caption, written in zip(captions, references, strict=True):
    length = len(''.join(caption.split()))
    lengths = [len(''.join(text.split())) for text in written]
    # Of two lengths that are equally close, the shorter one counts.
    closest = min(lengths, key=lambda n: (abs(n - length), n))
    matched, total = [], []
    for order in _ORDERS:
      found = _grams(caption, order)
      most = Counts()
      for text in written:
        most |= _grams(text, order)
      matched.append((found & most).total())
      total.append(found.total())
    rows.append([length, closest, *matched, *total])
  return np.array(rows)


def bleu(counts: np.ndarray) -> float:
  """BLEU-4 over characters of a whole set of captions, in [0, 1].

  Papineni et al. (2002), https://aclanthology.org/P02-1040: the geometric mean
  of the clipped precisions of 1- to 4-grams, times exp(1 - r / c) if c < r.
  Here, c is the length of all captions, and r is the length of the references
  that are closest in length. Counts are added over the set before they are
  divided. If no 4-gram occurs in the references, the score is 0.

  Args:
    counts: the rows of `bleu_counts` for these captions.
  """
  ours, theirs, *grams = counts.sum(axis=0)
  matched, total = np.split(np.array(grams, float), 2)
  if not matched.all():
    return 0.0
  brevity = min(0.0, 1 - theirs / ours)
  return math.exp(brevity + np.mean(np.log(matched / total)))


def cider_d(
  captions: Sequence[str], references: Sequence[Sequence[str]]
) -> np.ndarray:
  """CIDEr-D of each caption, in [0, 10]: float64 [N].

  Vedantam et al. (2015), https://arxiv.org/abs/1411.5726, section 5: the cosine
  of n-gram counts, weighted by log(N / number of pictures whose references have
  the n-gram). A count is clipped to the count in the reference. The factor
  exp(-(l - r)^2 / (2 * 6^2)) punishes a caption of length l if its reference
  has another length r. The score is 10 times the mean over references and over
  1- to 4-grams. A text of fewer than n characters has no n-grams, so its cosine
  for this n is 0.

  Args:
    captions: one for each picture.
    references: the captions that people wrote for each picture. They also give
      the weights, so a set of one picture has the score 0.

  Raises:
    ValueError: if there is no caption, a picture has no reference, or both
      arguments differ in length.
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
  """Makes a function that gives the weight of an n-gram, see `cider_d`."""
  log_n = math.log(num_pictures)
  return lambda gram: log_n - math.log(max(1, frequency[gram]))


def _similarity(ours: Counts, theirs: Counts, weight, order: int) -> float:
  """The clipped cosine of two texts, times the factor for their lengths."""
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
  # Each text has an n-gram, so a text of L characters has L - n + 1 of them. So
  # the difference of these numbers is the difference of the lengths.
  apart = ours.total() - theirs.total()
  return shared / product * math.exp(-(apart**2) / (2 * _SIGMA**2))
