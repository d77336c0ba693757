"""Batches of protein chains by number, from stores of chains."""

import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np

from moe.data.order import Mixture, Source, scramble
from moe.data.skips import Skips
from moe.data.store import Store
from moe.modalities import protein, residues
from moe.modalities.ids import IdSpace
from moe.modalities.protein import Chain
from moe.types import Batch


class ChainReader:
  """Endless training batches of a mixture of stores of chains.

  What a step reads depends on the seed and the step alone, as with
  `moe.data.reader.Reader`. A chain that is longer than a row is cut anew each
  time, at a place that depends on the seed, its epoch and its number. A record
  that cannot be read leaves its row empty with the weight 0, and is noted in
  `quarantine`.

  Attributes:
    manifest_hash: SHA-256 of the stores' content, their rates and the id space.
    quarantine: {'file', 'record', 'error'} of each record that could not be
      read.
    skips: batches that are left out; by default none.
    facts: what the score of an objective needs to know: nothing.
  """

  def __init__(
    self,
    stores: Sequence[Store],
    rates: Sequence[float],
    shape: tuple[int, int],
    seed: int,
    ids: IdSpace,
    rows: np.ndarray | None = None,
  ):
    """Opens the stores.

    Args:
      stores: of chains.
      rates: how many rows come from each store, relative to the others.
      shape: (B, T), rows of the whole batch over all hosts, and residues of a
        row.
      seed: of the shuffles and the cuts.
      ids: where the range of residues begins.
      rows: numbers of the rows that this host reads; None for all.
    """
    self._mixture = Mixture(rates)
    self._stores, self._seed, self._ids = list(stores), seed, ids
    self._batch_size, self._length = shape
    self._rows = np.arange(shape[0]) if rows is None else rows
    self.quarantine, self.facts, self.skips = [], {}, Skips()
    contents = [store.manifest['content_sha256'] for store in self._stores]
    identity = [contents, self._mixture.shares.tolist(), ids.sha256]
    encoded = json.dumps(identity).encode()
    self.manifest_hash = hashlib.sha256(encoded).hexdigest()

  def batch(self, step: int) -> Batch:
    """The rows of a step's batch that this host reads."""
    number = self.skips.number(step) * self._batch_size + self._rows
    batch = empty_batch(number.size, self._length)
    sizes = [store.lengths.size for store in self._stores]
    shuffled = self._mixture.shuffled(number, sizes, self._seed)
    for index, places, indices, key in shuffled:
      store = self._stores[index]
      records = store.read(indices, self._note(store))
      for row, record, one in zip(
        places, records, scramble(key ^ indices.astype(np.uint64)), strict=True
      ):
        if record is not None:
          chain = protein.of_record(record)
          spare = max(0, chain.codes.size - self._length)
          fill_row(
            batch, row, chain, self._ids, int(one % np.uint64(spare + 1))
          )
    return batch

  def sources(self, step: int) -> list[Source]:
    """The chains that each store gives to the batch of a step."""
    stores = [(s.directory, s.lengths.size) for s in self._stores]
    batch = self.skips.number(step), self._batch_size
    return self._mixture.sources(batch, self._rows, stores, self._seed)

  def _note(self, store: Store):
    def note(index: int, error: Exception) -> None:
      self.quarantine.append(
        {'file': store.directory, 'record': index, 'error': str(error)}
      )

    return note


def empty_batch(num_rows: int, length: int) -> Batch:
  """A batch without chains."""
  shape = (num_rows, length)
  return {
    'tokens': np.zeros(shape, np.int32),
    'codes': np.full(shape, residues.UNKNOWN, np.int32),
    'numbers': np.zeros(shape, np.int32),
    'valid': np.zeros(shape, bool),
    'atoms': np.zeros((*shape, residues.ATOM14, 3), np.float32),
    'mask': np.zeros((*shape, residues.ATOM14), bool),
    'weights': np.zeros(num_rows, np.float32),
  }


def fill_row(
  batch: Batch, row: int, chain: Chain, ids: IdSpace, begin: int = 0
) -> None:
  """Puts a chain into a row, or the part of it that fits.

  Args:
    batch: of `empty_batch`, which is changed.
    row: number of the row.
    chain: the chain.
    ids: where the range of residues begins.
    begin: the first residue that is put there.
  """
  length = batch['valid'].shape[1]
  cut = slice(begin, begin + length)
  part = protein.centred(
    Chain(chain.name, *(array[cut] for array in chain[1:]))
  )
  size = part.codes.size
  batch['tokens'][row, :size] = ids.ids('residue', part.codes)
  batch['codes'][row, :size] = part.codes
  batch['numbers'][row, :size] = part.numbers - part.numbers[0]
  batch['valid'][row, :size] = True
  batch['atoms'][row, :size] = part.atoms
  batch['mask'][row, :size] = part.mask
  batch['weights'][row] = 1


def chain_batches(
  store: Store,
  shape: tuple[int, int],
  ids: IdSpace,
  rows: np.ndarray | None = None,
) -> Iterator[Batch]:
  """Every chain of a store once that fits a row; the last rows are empty.

  Args:
    store: of chains.
    shape: (B, T), rows of the whole batch over all hosts, and residues of a
      row.
    ids: where the range of residues begins.
    rows: numbers of the rows that this host reads; None for all.

  Raises:
    ValueError: if a chain cannot be read: a score must cover all of them.
  """
  batch_size, length = shape
  chains = [chain for chain in all_chains(store) if chain.codes.size <= length]
  for first in range(0, len(chains), batch_size):
    number = first + (np.arange(batch_size) if rows is None else rows)
    batch = empty_batch(number.size, length)
    for row, index in enumerate(number):
      if index < len(chains):
        fill_row(batch, row, chains[index], ids)
    yield batch


def all_chains(store: Store) -> list[Chain]:
  """The chains of a store, in its order."""
  records = store.read(np.arange(store.lengths.size))
  return [protein.of_record(record) for record in records]
