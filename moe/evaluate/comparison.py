"""Compares two models on the same documents, and gives intervals of scores."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from moe.evaluate import score

# At most this many numbers are drawn at once, to bound the memory.
DRAWS_PER_CHUNK = 1 << 22
# With more resamples than this, the ends of an interval would move by at most a
# few percent of its width.
_RESAMPLES_OF_SCORES = 1000
# A standard error needs fewer resamples than the ends of an interval.
_RESAMPLES_OF_SETS = 100


class Comparison(NamedTuple):
  """Difference in bits per character, first model minus second.

  Attributes:
    difference: below 0 if the first model is better.
    low: lower end of the confidence interval. It is None for a single document,
      since one document shows no variation.
    high: upper end of the interval, or None.
    confidence: probability of the interval, such as 0.95.
    num_resamples: number of resamples of the bootstrap; 0 without an interval.
    share_better: share of documents for which the first model needs fewer nats;
      ties count half.
  """

  difference: float
  low: float | None
  high: float | None
  confidence: float
  num_resamples: int
  share_better: float


def compare(
  nats: np.ndarray,
  other_nats: np.ndarray,
  chars: np.ndarray,
  num_resamples: int = 10_000,
  confidence: float = 0.95,
  seed: int = 0,
) -> Comparison:
  """Difference of two models in bits per character, with a bootstrap interval.

  Each resample draws documents with replacement, as many as there are. Both
  models get the same documents (paired bootstrap). A resample's value is
  computed like the score itself: all nats over all characters. The interval is
  the percentile interval of Efron (1979),
  https://doi.org/10.1214/aos/1176344552.

  Args:
    nats: nats of the first model, one number per document.
    other_nats: nats of the second model, for the same documents in the same
      order.
    chars: number of code points of each document.
    num_resamples: number of resamples.
    confidence: probability of the interval, such as 0.95.
    seed: seed of the draws, so that the interval is the same every time.

  Raises:
    ValueError: if the arrays differ in their number of documents, or if no
      document has text.
  """
  nats, other_nats, chars = (
    np.asarray(x, np.float64) for x in (nats, other_nats, chars)
  )
  if not nats.shape == other_nats.shape == chars.shape:
    raise ValueError(
      'both models must have scored the same documents, got '
      f'{len(nats)} and {len(other_nats)} scores of {len(chars)} documents.'
    )
  if not chars.sum():
    raise ValueError('at least one document must hold text, got none.')
  bits = (nats - other_nats) / math.log(2)
  low = high = None
  if len(bits) > 1:
    low, high = _interval(bits, chars, num_resamples, confidence, seed)
  return Comparison(
    difference=float(bits.sum() / chars.sum()),
    low=low,
    high=high,
    confidence=confidence,
    num_resamples=0 if low is None else num_resamples,
    share_better=float(np.mean(bits < 0) + np.mean(bits == 0) / 2),
  )


def _interval(
  bits: np.ndarray,
  chars: np.ndarray,
  num_resamples: int,
  confidence: float,
  seed: int,
) -> tuple[float, float]:
  """The percentile interval of the ratio of sums, over resampled documents."""
  rng = np.random.default_rng(seed)
  rows = max(1, DRAWS_PER_CHUNK // len(bits))
  resampled = []
  for start in range(0, num_resamples, rows):
    size = (min(rows, num_resamples - start), len(bits))
    drawn = rng.integers(len(bits), size=size)
    # A resample that has only empty documents is left out, because its number
    # of characters is 0.
    with np.errstate(invalid='ignore', divide='ignore'):
      resampled.append(bits[drawn].sum(axis=1) / chars[drawn].sum(axis=1))
  resampled = np.concatenate(resampled)
  resampled = resampled[np.isfinite(resampled)]
  tail = (1 - confidence) / 2
  low, high = np.quantile(resampled, [tail, 1 - tail])
  return float(low), float(high)


def of_documents(
  name: str,
  nats: np.ndarray,
  sizes: np.ndarray,
  command: str,
  unit: str = score.BITS_PER_CHAR,
) -> score.Score:
  """The score of documents: all their bits over all their characters or bytes.

  Args:
    name: name of the score.
    nats: nats of each document.
    sizes: characters or bytes of each document.
    command: the command that gives the same number again.
    unit: unit of the value.

  Returns:
    A score with a bootstrap interval over documents, see `compare`. A single
    document has no interval.
  """
  found = compare(
    nats, np.zeros(len(nats)), sizes, num_resamples=_RESAMPLES_OF_SCORES
  )
  value = math.fsum(nats) / math.log(2) / float(np.sum(sizes))
  return score.Score(
    name, value, found.low, found.high, len(nats), command, unit
  )


def of_shares(
  name: str, right: np.ndarray, sizes: np.ndarray, command: str, unit: str
) -> score.Score:
  """The share of tokens that are right, over all documents.

  Args:
    name: name of the score.
    right: number of right tokens of each document.
    sizes: number of tokens of each document.
    command: the command that gives the same number again.
    unit: unit of the value.

  Returns:
    A score with a bootstrap interval over documents. A single document has no
    interval.
  """
  right, sizes = np.asarray(right, np.float64), np.asarray(sizes, np.float64)
  low = high = None
  if right.size > 1:
    low, high = _interval(right, sizes, _RESAMPLES_OF_SCORES, 0.95, 0)
  value = float(right.sum() / sizes.sum())
  return score.Score(name, value, low, high, right.size, command, unit, True)


def of_sets(
  name: str,
  value_of: Callable[..., float],
  sizes: Sequence[int],
  command: str,
  unit: str,
  is_higher_better: bool = False,
) -> score.Score:
  """A value of whole sets, such as a distance, with its interval.

  The interval is the value plus and minus 1.96 bootstrap standard errors. It is
  not the percentile interval: a resample repeats some members, which raises
  most distances, so all percentiles would be too high.

  Args:
    name: name of the score.
    value_of: (indices of each set's members) -> value.
    sizes: number of members of each set; the sets are resampled apart.
    command: the command that gives the same number again.
    unit: unit of the value.
    is_higher_better: whether a higher value is better.

  Returns:
    A score with its interval; without one if a set has a single member.
  """
  value = float(value_of(*(np.arange(size) for size in sizes)))
  low = high = None
  if min(sizes) > 1:
    rng = np.random.default_rng(0)
    resampled = [
      value_of(*(rng.integers(size, size=size) for size in sizes))
      for _ in range(_RESAMPLES_OF_SETS)
    ]
    error = 1.96 * float(np.std(resampled))
    low, high = value - error, value + error
  return score.Score(
    name,
    value,
    low,
    high,
    min(sizes),
    command,
    unit,
    is_higher_better,
  )


def of_runs(runs: Sequence[Sequence[score.Score]]) -> list[score.Score]:
  """The mean of each score over runs with other seeds, with its interval.

  The interval is Student's, for the 95% confidence of the mean. Unlike the
  interval of one run, it covers the randomness of training. A score that a run
  lacks is left out. Equal values have no interval: they show no variation, such
  as the scores of a tokenizer that all runs share.

  Args:
    runs: the scores of each run, at least two.

  Raises:
    ValueError: if there are fewer than two runs.
  """
  if len(runs) < 2:
    raise ValueError(f'Two runs at least must be joined, got {len(runs)}.')
  by_name = [{one.name: one for one in scores} for scores in runs]
  found, count = [], len(runs)
  for first in runs[0]:
    if not all(first.name in scores for scores in by_name):
      continue
    values = [scores[first.name].value for scores in by_name]
    value, low, high = float(np.mean(values)), None, None
    if min(values) < max(values):
      error = np.std(values, ddof=1) / math.sqrt(count)
      error = float(error * special.stdtrit(count - 1, 0.975))
      low, high = value - error, value + error
    found.append(
      dataclasses.replace(first, value=value, low=low, high=high, n=count)
    )
  return found


def of_mean(
  name: str,
  values: np.ndarray,
  command: str,
  unit: str,
  is_higher_better: bool = True,
) -> score.Score:
  """The mean of one value for each picture or document.

  Args:
    name: name of the score.
    values: one value for each picture or document, [n].
    command: the command that gives the same number again.
    unit: unit of the value.
    is_higher_better: whether a higher value is better.

  Returns:
    A score with a bootstrap interval. A single value has no interval.
  """
  values = np.asarray(values, np.float64)
  low = high = None
  if values.size > 1:
    low, high = _interval(
      values, np.ones(values.size), _RESAMPLES_OF_SCORES, 0.95, 0
    )
  return score.Score(
    name,
    float(values.mean()),
    low,
    high,
    values.size,
    command,
    unit,
    is_higher_better,
  )
