"""The order of rows: shuffles and mixtures depend only on seed and index.

Nothing here has a state. So the rows of step 1,000,000 are found as fast as
those of step 0, and they do not depend on the machine or on numpy's version.
"""

import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

_ROUNDS = 6
# The pattern of a mixture repeats after this many rows, so the share of a store
# in it is exact to about 1 / _PERIOD.
_PERIOD = 1 << 16


def scramble(x: np.ndarray | int) -> np.ndarray:
  """A 64-bit hash that gives different integers different values.

  It is the finaliser of SplitMix64 (Steele, Lea and Flood, 2014,
  https://doi.org/10.1145/2714064.2660195).

  Args:
    x: integers; they are reduced modulo 2^64.

  Returns:
    uint64 of the same shape.
  """
  x = np.asarray(x).astype(np.uint64)
  with np.errstate(over='ignore'):  # Overflow gives the wanted result mod 2^64.
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


def permuted(index: np.ndarray, size: int, key: np.ndarray) -> np.ndarray:
  """Applies a permutation of range(size), which the key chooses, to indices.

  A Feistel network permutes the numbers below the next power of four. It is
  applied again until the result is in range (Black and Rogaway, 2002,
  https://doi.org/10.1007/3-540-45760-7_9). So any part of a permutation can be
  computed without the rest.

  Args:
    index: int64 in [0, size).
    size: number of values, at least 1.
    key: uint64, chooses the permutation; it is broadcast to the shape of index.

  Returns:
    int64 in [0, size). With the same key, different indices give different
    results.
  """
  half = np.uint64(max(1, (int(size - 1).bit_length() + 1) // 2))
  mask = np.uint64((1 << int(half)) - 1)
  value = np.array(index, np.uint64, ndmin=1)
  key = np.broadcast_to(np.asarray(key, np.uint64), value.shape)
  todo = np.arange(value.size)
  while todo.size:
    left, right = value[todo] >> half, value[todo] & mask
    for round_number in range(_ROUNDS):
      # We hash before we mask, so that even a small half of the network depends
      # on all bits of the key.
      mixed = scramble(key[todo] ^ np.uint64(round_number))
      left, right = right, left ^ (scramble(mixed ^ right) & mask)
    value[todo] = (left << half) | right
    todo = todo[value[todo] >= np.uint64(size)]
  return value.astype(np.int64)


class Source(NamedTuple):
  """What a store gives to a batch.

  Attributes:
    name: name of the store.
    records: numbers of its records in the batch, on all hosts.
    places: indices of its rows among the rows that this host reads.
  """

  name: str
  records: np.ndarray
  places: np.ndarray


class Mixture:
  """Which store each row of an endless mixture comes from.

  The rows of each store are spread evenly: among the first n rows of the
  mixture, the number of rows of a store differs from n times its share by at
  most half the number of stores. The pattern repeats.

  Attributes:
    shares: float64 [stores], share of each store in the pattern; the sum is 1.
  """

  def __init__(self, rates: Sequence[float]):
    """Makes the pattern of one period.

    Args:
      rates: how many rows come from each store, relative to the others.

    Raises:
      ValueError: if there is no rate, or if one is not positive and finite.
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
    # Rounding down leaves some rows without a store. They go to the stores with
    # the largest remainders. A store with less than one row gets one row, which
    # the largest store gives up.
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
    """The store of each row, and the number of the row within this store.

    Args:
      row: int64, numbers of rows in the mixture, from 0.

    Returns:
      (store, number of rows of this store before this row), int64.
    """
    period, place = np.divmod(np.asarray(row, np.int64), self._store.size)
    store = self._store[place]
    return store, period * self._counts[store] + self._rank[place]

  def shuffled(
    self, row: np.ndarray, sizes: Sequence[int], seed: int
  ) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """For each store, the rows that it fills; each epoch has another shuffle.

    Args:
      row: int64, numbers of rows in the mixture, from 0.
      sizes: number of rows of each store.
      seed: seed of the shuffles.

    Yields:
      (index of a store, the indices into `row` that it fills, the number of the
      store's row for each of them, the random key of each row's epoch).
    """
    store, number = self.locate(row)
    for index, size in enumerate(sizes):
      places = np.flatnonzero(store == index)
      epoch, place = np.divmod(number[places], size)
      # A hash of a hash, so that no two shuffles share a key.
      key = scramble(scramble(seed) ^ np.uint64(index))
      key = scramble(key ^ epoch.astype(np.uint64))
      yield index, places, permuted(place, size, key), key

  def sources(
    self,
    batch: tuple[int, int],
    own: np.ndarray,
    stores: Sequence[tuple[str, int]],
    seed: int,
  ) -> list[Source]:
    """What each store gives to a batch, if each row of a store is one record.

    Args:
      batch: (number of the batch, rows of a batch over all hosts).
      own: numbers of the rows of a batch that this host reads.
      stores: (directory, number of rows) of each store.
      seed: seed of the shuffles.
    """
    number, size = batch
    rows = number * size + np.arange(size)
    shuffled = self.shuffled(rows, [count for _, count in stores], seed)
    return [
      Source(
        _name(stores[index][0]), found, np.flatnonzero(np.isin(own, places))
      )
      for index, places, found, _ in shuffled
    ]


def _name(directory: str) -> str:
  """The name of a store: that of its task, the folder above its split."""
  return os.path.basename(os.path.dirname(os.path.abspath(directory)))
