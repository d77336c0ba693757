"""Fills rows of batches from one store of a mixture, by its pack plan."""

import os
import threading
from collections.abc import Mapping

import jax
import numpy as np

from moe.data import examples
from moe.data.order import scramble
from moe.data.packing import load_pack_plan
from moe.data.store import RECORDS, Record, Store
from moe.data.transforms import Transform, shape_of
from moe.modalities.ids import of_manifest
from moe.types import TokenBatch

# Further arrays of a batch: name -> shape and dtype of the value of one token.
Extras = Mapping[str, jax.ShapeDtypeStruct]


class PackedStore:
  """Fills rows of batches with the documents of a store, by its pack plan."""

  def __init__(
    self,
    directory: str | os.PathLike | Store,
    sequence_length: int,
    transform: Transform | None,
    extras: Extras,
    max_bad_fraction: float = 0.0,
    quarantine: list[dict] | None = None,
  ):
    """Opens the store and its pack plan.

    Args:
      directory: directory of the store, or the store itself.
      sequence_length: T.
      transform: transform of the documents; None for none.
      extras: further arrays of a batch.
      max_bad_fraction: share of the records that may be unreadable.
      quarantine: list to which unreadable records are added; None makes an
        unreadable record an error.
    """
    is_open = isinstance(directory, Store)
    self.store = directory if is_open else Store(directory)
    self.ids = of_manifest(self.store.manifest)
    self.shape = shape_of(self.store, transform)
    self.plan = load_pack_plan(self.store, sequence_length, self.shape)
    self._transform = transform
    self._extras = extras
    self._max_bad = max_bad_fraction * self.store.lengths.size
    self._quarantine = quarantine
    self._bad_records = set()
    self._lock = threading.Lock()

  def fill(
    self,
    batch: TokenBatch,
    places: np.ndarray,
    rows: np.ndarray,
    keys: np.ndarray,
  ):
    """Writes rows of the plan into rows of a batch.

    Args:
      batch: the batch to fill, with zeros in it.
      places: for each row to write, its index in the batch.
      rows: for each row to write, its number in the plan.
      keys: for each row to write, the random key of its epoch.
    """
    if not rows.size:
      return
    plan = self.plan
    first = plan.row_start[rows]
    num_segments = plan.row_start[rows + 1] - first
    rank = _ranges(num_segments)
    segment = np.repeat(first, num_segments) + rank
    length = plan.length[segment].astype(np.int64)
    # Index of the first token of each segment, if all segments to write are
    # concatenated.
    before = np.cumsum(length) - length
    row_begin = np.cumsum(num_segments) - num_segments
    column = before - np.repeat(before[row_begin], num_segments)
    width = batch.tokens.shape[1]
    begin = np.repeat(places, num_segments) * width + column
    position = _ranges(length)
    target = np.repeat(begin, length) + position
    records, which = np.unique(plan.record[segment], return_inverse=True)
    read = self._read(records)
    documents = [read[index] for index in which]
    is_bad = np.array([document is None for document in documents])
    documents = self._transformed(
      documents, plan.record[segment], np.repeat(keys, num_segments)
    )
    self._write(batch, target, documents, plan.start[segment], length)
    batch.segment_ids.reshape(-1)[target] = np.repeat(rank + 1, length)
    batch.positions.reshape(-1)[target] = position
    for field in jax.tree.leaves(batch):
      field[np.repeat(places, num_segments)[is_bad]] = 0

  def _transformed(
    self,
    documents: list[Record | None],
    records: np.ndarray,
    keys: np.ndarray,
  ) -> list[Record]:
    """The example of each document; zeros for an unreadable document."""
    lengths, found = self.shape.lengths[records].tolist(), []
    # A hash of a hash, so that no two pairs of document and epoch share a key.
    keys = scramble(scramble(keys) ^ records.astype(np.uint64))
    for document, key, length in zip(documents, keys, lengths, strict=True):
      if document is None:
        document = {'tokens': np.zeros(length, np.int32)}
      elif self._transform is not None:
        document = self._transform(document, key, self.ids)
        if document['tokens'].size != length:
          raise ValueError(
            f'{self._transform} must give as many tokens as it declares,'
            f' {length}, got {document["tokens"].size}: correct its `declare`.'
          )
      found.append(document)
    return found

  def _write(
    self,
    batch: TokenBatch,
    target: np.ndarray,
    documents: list[Record],
    start: np.ndarray,
    length: np.ndarray,
  ):
    """Writes segments of documents into a batch.

    Args:
      batch: the batch to fill.
      target: for each token of the segments in order, the index of its place in
        the flattened batch.
      documents: the document of each segment.
      start: first token of each segment.
      length: tokens of each segment.
    """
    cut = start.tolist(), length.tolist()
    tokens = [document['tokens'] for document in documents]
    inputs = [
      document.get('inputs', document['tokens']) for document in documents
    ]
    ids, read = examples.predicted(tokens, *cut), examples.read(inputs, *cut)
    weights = examples.predicted(
      [
        document.get(
          'loss_weights', np.ones(document['tokens'].size, np.float32)
        )
        for document in documents
      ],
      *cut,
    )
    if any('block_ids' in document for document in documents):
      blocks = [examples.block_ids(document) for document in documents]
      own = examples.predicted(blocks, *cut)
      batch.block_ids.reshape(-1)[target] = examples.place_blocks(
        examples.read(blocks, *cut), own
      )
      # A place sees all tokens of its block. So in a block, only tokens that
      # are replaced by a mask are scored.
      is_shown = examples.predicted(inputs, *cut) == ids
      weights = np.where((own > 0) & is_shown, 0, weights)
    if not self.ids.is_text:
      # A mask has the modality of the token that it hides.
      hidden = examples.read(tokens, *cut)
      batch.modality.reshape(-1)[target] = self.ids.modality(hidden)
    batch.targets.reshape(-1)[target] = ids
    batch.tokens.reshape(-1)[target] = read
    batch.loss_weights.reshape(-1)[target] = weights
    for name, extra in self._extras.items():
      whole = [
        document.get(name, np.zeros((len(document['tokens']), *extra.shape)))
        for document in documents
      ]
      flat = batch.extras[name].reshape(-1, *extra.shape)
      flat[target] = examples.read(whole, *cut)

  def _read(self, records: np.ndarray) -> list[Record | None]:
    """Reads documents by number; None for a document that cannot be used."""
    on_error = None if self._quarantine is None else self._on_error
    documents = self.store.read(records, on_error)
    for place, document in enumerate(documents):
      error = document and self._problem(document)
      if error:
        path = os.path.join(self.store.directory, RECORDS)
        if on_error is None:
          raise ValueError(
            f'Record {records[place]} of {path} must be readable, got {error}:'
            ' delete the store and make it again.'
          )
        on_error(int(records[place]), ValueError(error))
        documents[place] = None
    return documents

  def _problem(self, record: Record) -> str | None:
    """The reason why a record cannot be used, or None."""
    # The embedding would silently clamp an id that is too large.
    unknown = self.ids.unknown(record['tokens'])
    if unknown.size:
      wanted = 'below' if self.ids.is_text else 'in'
      return f'its tokens must be {wanted} {self.ids}, got {unknown.max()}'
    for name, extra in self._extras.items():
      shape = (record['tokens'].size, *extra.shape)
      if name in record and record[name].shape != shape:
        return f'{name} must have shape {shape}, got {record[name].shape}'
    return None

  def _on_error(self, record: int, error: Exception):
    with self._lock:
      if record in self._bad_records:
        return
      self._bad_records.add(record)
      path = os.path.join(self.store.directory, RECORDS)
      self._quarantine.append(
        {'file': path, 'record': record, 'error': str(error)}
      )
      if len(self._bad_records) > self._max_bad:
        raise ValueError(
          f'{path}: at most {self._max_bad:g} of {self.store.lengths.size}'
          f' records may be unreadable, got {len(self._bad_records)}, the last'
          f' one record {record}: {error}; delete the store and make it again,'
          ' or raise run.Data.max_bad_fraction.'
        )


def _ranges(sizes: np.ndarray) -> np.ndarray:
  """The numbers 0 to n - 1 for each n of `sizes`, concatenated."""
  ends = np.cumsum(sizes)
  return np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)
