"""Reads batches of protein chains, by step number, from stores of chains."""

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
  """Endless training batches from stores of protein chains.

  A batch depends only on the seed and the step, as with
  `moe.data.reader.Reader`. If a chain is longer than a row, each epoch reads a
  random part of it. A share of the residues can be hidden: the token of such a
  residue is the mask, while its code and its atoms stay. The part and the
  hidden residues depend only on the seed, the epoch and the chain. If a record
  cannot be read, its row stays empty and has the weight 0, and `quarantine`
  lists the record.

  Attributes:
    manifest_hash: SHA-256 of the stores' content, their rates and the id space.
    quarantine: {'file', 'record', 'error'} of each record that could not be
      read.
    skips: batches that are left out; by default none.
    facts: facts for the score of an objective; empty, since the score of chains
      needs none.
  """

  def __init__(
    self,
    stores: Sequence[Store],
    rates: Sequence[float],
    shape: tuple[int, int],
    seed: int,
    ids: IdSpace,
    rows: np.ndarray | None = None,
    hidden: float = 0.0,
  ):
    """Opens the stores.

    Args:
      stores: stores of chains.
      rates: how many rows come from each store, relative to the others.
      shape: (B, T), rows of the whole batch over all hosts, and residues of a
        row.
      seed: seed of the shuffles, and of the choice of parts and of hidden
        residues.
      ids: the id space, which maps residues to ids.
      rows: numbers of the rows that this host reads; None for all.
      hidden: share of the residues that are hidden.
    """
    self._mixture = Mixture(rates)
    self._stores, self._seed, self._ids = list(stores), seed, ids
    self._hidden = hidden
    self._batch_size, self._length = shape
    self._rows = np.arange(shape[0]) if rows is None else rows
    self.quarantine, self.facts, self.skips = [], {}, Skips()
    contents = [store.manifest['content_sha256'] for store in self._stores]
    identity = [contents, self._mixture.shares.tolist(), ids.sha256]
    encoded = json.dumps(identity).encode()
    self.manifest_hash = hashlib.sha256(encoded).hexdigest()

  @property
  def bytes_read(self) -> int:
    """Bytes of the records that this host has read."""
    return sum(store.bytes_read for store in self._stores)

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
          self._hide(batch['tokens'][row], batch['valid'][row], one)
    return batch

  def _hide(
    self, tokens_T: np.ndarray, valid_T: np.ndarray, key: np.uint64
  ) -> None:
    """Puts the mask in the place of a share of the residues of a row."""
    if self._hidden:
      drawn = scramble(scramble(np.arange(valid_T.size)) ^ key)
      is_hidden = valid_T & (drawn < self._hidden * 2.0**64)
      tokens_T[is_hidden] = self._ids.mask

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
  """A batch of empty rows, which `fill_row` fills."""
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
  """Writes a chain into a row; a long chain is cut to the length of the row.

  Args:
    batch: a batch of `empty_batch`; the function changes it.
    row: number of the row.
    chain: the chain.
    ids: the id space, which maps residues to ids.
    begin: index of the first residue to write.
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
  """Yields batches in which each chain that fits in a row occurs once.

  Longer chains are left out. The last batch may have empty rows.

  Args:
    store: store of chains.
    shape: (B, T), rows of the whole batch over all hosts, and residues of a
      row.
    ids: the id space, which maps residues to ids.
    rows: numbers of the rows that this host reads; None for all.

  Raises:
    ValueError: if a chain cannot be read, since a score must not miss one.
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
  """All chains of a store, in the order of their numbers."""
  records = store.read(np.arange(store.lengths.size))
  return [protein.of_record(record) for record in records]
