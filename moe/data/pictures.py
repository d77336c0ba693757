"""Reads batches of pictures, by step number, from stores of pictures."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from moe.data.order import Mixture, Source
from moe.data.skips import Skips
from moe.data.store import Store
from moe.types import Batch

# Name of the split that only the judge of drawn pictures learns from. It is no
# training split and no held-out split.
JUDGE = 'judge'


def held_out(name: str, by_split: Mapping[str, str]) -> dict[str, str]:
  """Label -> directory of each held-out split of a source of pictures.

  The label of the validation split is the name of the source. The labels of
  other splits also have the split's name.
  """
  return {
    name if split == 'validation' else f'{name} {split}': directory
    for split, directory in by_split.items()
    if split not in ('train', JUDGE)
  }


class PictureReader:
  """Endless training batches of a mixture of picture stores.

  A batch depends only on the seed and the step, as with
  `moe.data.reader.Reader`. If a record cannot be read, its row stays black and
  has the weight 0, and `quarantine` lists the record.

  Attributes:
    shape: (Y, X) of the pictures.
    manifest_hash: SHA-256 of the stores' content and their rates.
    quarantine: {'file', 'record', 'error'} of each record that could not be
      read.
    skips: batches that are left out; by default none.
    facts: facts for the score of an objective; empty, since the score of
      pictures needs none.
  """

  def __init__(
    self,
    stores: Sequence[Store],
    rates: Sequence[float],
    batch_size: int,
    seed: int,
    shape: tuple[int, int],
    rows: np.ndarray | None = None,
  ):
    """Opens the stores.

    Args:
      stores: stores of pictures.
      rates: how many rows come from each store, relative to the others.
      batch_size: B, rows of the whole batch over all hosts.
      seed: seed of the shuffles.
      shape: (Y, X); all pictures must have this shape.
      rows: numbers of the rows that this host reads; None for all.
    """
    self._mixture = Mixture(rates)
    self._stores, self.shape, self._seed = list(stores), shape, seed
    self._batch_size = batch_size
    self._rows = np.arange(batch_size) if rows is None else rows
    self.quarantine, self.facts, self.skips = [], {}, Skips()
    contents = [store.manifest['content_sha256'] for store in self._stores]
    identity = json.dumps([contents, self._mixture.shares.tolist()])
    self.manifest_hash = hashlib.sha256(identity.encode()).hexdigest()

  @property
  def bytes_read(self) -> int:
    """Bytes of the records that this host has read."""
    return sum(store.bytes_read for store in self._stores)

  def batch(self, step: int) -> Batch:
    """The rows of a step's batch that this host reads."""
    number = self.skips.number(step) * self._batch_size + self._rows
    batch = _empty(number.size, self.shape)
    sizes = [store.lengths.size for store in self._stores]
    shuffled = self._mixture.shuffled(number, sizes, self._seed)
    for index, places, indices, _ in shuffled:
      _fill(batch, places, self._stores[index], indices, self.quarantine)
    return batch

  def sources(self, step: int) -> list[Source]:
    """The pictures that each store gives to the batch of a step."""
    stores = [(s.directory, s.lengths.size) for s in self._stores]
    batch = self.skips.number(step), self._batch_size
    return self._mixture.sources(batch, self._rows, stores, self._seed)


def picture_batches(
  store: Store,
  batch_size: int,
  shape: tuple[int, int],
  rows: np.ndarray | None = None,
) -> Iterator[Batch]:
  """Yields batches in which each picture of a store occurs once.

  The last batch may have black rows with the weight 0.

  Args:
    store: store of pictures.
    batch_size: B, rows of the whole batch over all hosts.
    shape: (Y, X) of the pictures.
    rows: numbers of the rows that this host reads; None for all.

  Raises:
    ValueError: if a picture has another shape, or cannot be read. A score must
      cover all pictures.
  """
  for first in range(0, store.lengths.size, batch_size):
    number = first + (np.arange(batch_size) if rows is None else rows)
    batch = _empty(number.size, shape)
    places = np.flatnonzero(number < store.lengths.size)
    _fill(batch, places, store, number[places], None)
    yield batch


def _empty(num_rows: int, shape: tuple[int, int]) -> Batch:
  return {
    'pictures': np.zeros((num_rows, *shape, 3), np.uint8),
    'weights': np.zeros(num_rows, np.float32),
  }


def _fill(
  batch: Batch,
  places: np.ndarray,
  store: Store,
  indices: np.ndarray,
  quarantine: list | None,
) -> None:
  """Writes pictures into rows.

  An unreadable picture is added to `quarantine`. If `quarantine` is None, the
  first unreadable picture raises an error.
  """

  def note(index: int, error: Exception) -> None:
    quarantine.append(
      {'file': store.directory, 'record': index, 'error': str(error)}
    )

  on_error = None if quarantine is None else note
  records = store.read(indices, on_error)
  for place, record in zip(places, records, strict=True):
    if record is None:
      continue
    pixels = record['pixels']
    if pixels.shape[:2] != batch['pictures'].shape[1:3]:
      raise ValueError(
        f'Pictures of {store.directory} must be of the shape'
        f' {batch["pictures"].shape[1:]}, got {pixels.shape}: change PIXELS.'
      )
    batch['pictures'][place] = pixels
    batch['weights'][place] = 1
