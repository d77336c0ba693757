"""The order of rows: shuffles and mixtures are functions of the index alone.

Nothing here has a state. So the rows of step 1,000,000 are found as fast as
those of step 0, and they are the same on any machine with any numpy.
"""

from collections.abc import Sequence

import numpy as np

_ROUNDS = 6
# The pattern of a mixture repeats after this many rows, so rates are exact to
# 1 / _PERIOD.
_PERIOD = 1 << 16


def scramble(x: np.ndarray | int) -> np.ndarray:
  """A 64-bit hash that gives different integers different values.

  It is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014,
  https://doi.org/10.1145/2714064.2660195).

  Args:
    x: integers, which are taken modulo 2^64.

  Returns:
    uint64 of the same shape.
  """
  x = np.asarray(x).astype(np.uint64)
  with np.errstate(over='ignore'):  # Arithmetic modulo 2^64 is meant.
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def permuted(index: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
  """Where a keyed permutation of range(size) sends each index.

  A Feistel network on the next power of four is applied until the value is in
  range (Black and Rogaway, 2002, https://doi.org/10.1007/3-540-45760-7_9). So
  any part of a permutation can be computed without the rest.

  Args:
    index: int64 in [0, size).
    size: number of values, at least 1.
    key: uint64, chooses the permutation; broadcast against index.

  Returns:
    int64 in [0, size), different for different indices of one key.
  """
  half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
  mask = np.uint64((1 << int(half)) - 1)
  value = np.array(index, np.uint64, ndmin=1)
  key = np.broadcast_to(np.asarray(key, np.uint64), value.shape)
  todo = np.arange(value.size)
  while todo.size:
    left, right = value[todo] >> half, value[todo] & mask
    for round_number in range(_ROUNDS):
      # The hash comes before the mask, so that even a small half depends on all
      # bits of the key.
      mixed = scramble(key[todo] ^ np.uint64(round_number))
      left, right = right, left ^ (scramble(mixed ^ right) & mask)
    value[todo] = (left << half) | right
    todo = todo[value[todo] >= np.uint64(size)]
  return value.astype(np.int64)


class Mixture:
  """Which store each row of an endless mixture comes from.

  The rows of each store are spread evenly: for any n, its share of the first n
  rows is exact to within a few rows. The pattern repeats.

  Attributes:
    shares: float64 [stores], the rates of the pattern; they sum to 1.
  """

  def __init__(self, rates: Sequence[float]):
    """Makes the pattern of one period.

    Args:
      rates: how many rows come from each store, relative to the others.

    Raises:
      ValueError: if a rate is not positive and finite.
    """
    rates = np.asarray(rates, np.float64)
    if not rates.size or not np.all((rates > 0) & np.isfinite(rates)):
      raise ValueError(
        f'Rates must be positive numbers, got {rates.tolist()}: leave out the'
        ' stores that are not to be read.'
      )
    period = _PERIOD if rates.size > 1 else 1
    exact = rates / rates.sum() * period
    counts = np.maximum(1, np.floor(exact)).astype(np.int64)
    # Rounding down leaves rows over, which go to the largest remainders. A
    # store that was raised to one row takes that row from the largest store.
    for store in np.argsort(counts - exact, kind='stable'):
      if counts.sum() < period:
        counts[store] += 1
    counts[np.argmax(counts)] -= counts.sum() - period
    store = np.repeat(np.arange(rates.size), counts)
    rank = np.concatenate([np.arange(count) for count in counts])
    due = (rank + 0.5) / counts[store]
    order = np.argsort(due, kind='stable')
    self.shares = counts / period
    self._counts, self._store, self._rank = counts, store[order], rank[order]

  def locate(self, row: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The store of each row, and how many rows that store gave before it.

    Args:
      row: int64, numbers of rows in the mixture, from 0.

    Returns:
      (store, number of the row within the store), int64.
    """
    period, place = np.divmod(np.asarray(row, np.int64), self._store.size)
    store = self._store[place]
    return store, period * self._counts[store] + self._rank[place]
