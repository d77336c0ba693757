"""Batches by number: what a step reads depends only on seed and step."""

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence

import numpy as np

from moe.data.order import Mixture, permuted, scramble
from moe.data.packing import load_plan
from moe.data.store import RECORDS, Record, Store
from moe.types import TokenBatch


class Reader:
  """Endless training batches of a mixture of token stores.

  Each epoch shuffles the rows of every store's pack plan in another way; the
  pattern of the mixture says which store gives the next row. Batch s is rows
  [s * batch_size, (s + 1) * batch_size) of that sequence. There is no iterator
  and no state, so any host can read any batch at any time, again and again.

  A record that cannot be read makes its row empty (weight 0, segment 0) and is
  noted in `quarantine`; no other row changes.

  Attributes:
    vocab_size: pieces of the vocabulary that all stores share.
    vocab_sha256: of the vocabulary's file.
    manifest_hash: SHA-256 of the stores' content, their vocabulary and rates.
    chars_per_token: characters of the text for each scored token; end marks are
      tokens but no characters. Bits per character are bits per scored token
      divided by this.
    bytes_per_token: the same for bytes of UTF-8.
    fill: share of the places of a batch that hold a token.
    quarantine: {'file', 'record', 'error'} of each record that could not be
      read.
  """

  def __init__(
    self,
    dirs: Sequence[str | os.PathLike | Store],
    rates: Sequence[float],
    sequence_length: int,
    batch_size: int,
    seed: int,
    max_bad_fraction: float = 1e-4,
    rows: np.ndarray | None = None,
  ):
    """Opens the stores and their pack plans.

    Args:
      dirs: of the stores, or the stores themselves.
      rates: how many rows come from each store, relative to the others.
      sequence_length: T.
      batch_size: B, rows of the whole batch over all hosts.
      seed: of the shuffles.
      max_bad_fraction: share of a store's records that may be unreadable.
      rows: numbers of the rows of a batch that this host reads, as
        `multihost.own_rows` gives them; None for all.

    Raises:
      ValueError: if a store is missing or broken, if the stores differ in their
        vocabulary, or if a number is out of range.
    """
    if len(dirs) != len(rates):
      raise ValueError(
        f'Every store needs a rate, got {len(dirs)} stores and {len(rates)}'
        ' rates: give one of each.'
      )
    if batch_size < 1:
      raise ValueError(f'batch_size={batch_size} must be at least 1.')
    self._mixture = Mixture(rates)
    self.quarantine = []
    self._sources = [
      _Source(directory, sequence_length, max_bad_fraction, self.quarantine)
      for directory in dirs
    ]
    self._batch_size = batch_size
    self._rows = np.arange(batch_size) if rows is None else rows
    self._sequence_length = sequence_length
    self._seed = seed
    manifests = [source.store.manifest for source in self._sources]
    for manifest, source in zip(manifests, self._sources, strict=True):
      directory = source.store.directory
      if manifest['vocabulary_sha256'] != manifests[0]['vocabulary_sha256']:
        raise ValueError(
          'All stores of a mixture must share one vocabulary, got another one'
          f' in {directory} than in {self._sources[0].store.directory}: cache'
          ' them with the same --vocabulary.'
        )
    self.vocab_size = manifests[0]['vocab_size']
    self.vocab_sha256 = manifests[0]['vocabulary_sha256']
    shares = self._mixture.shares
    identity = [manifest['content_sha256'] for manifest in manifests]
    self.manifest_hash = hashlib.sha256(
      json.dumps([self.vocab_sha256, identity, shares.tolist()]).encode()
    ).hexdigest()

    def per_row(name: str) -> float:
      return sum(
        share * manifest['counts'][name] / source.plan.num_rows
        for share, manifest, source in zip(
          shares, manifests, self._sources, strict=True
        )
      )

    self.chars_per_token = per_row('chars') / per_row('scored_tokens')
    self.bytes_per_token = per_row('bytes') / per_row('scored_tokens')
    fills = [source.plan.fill for source in self._sources]
    self.fill = float(np.dot(shares, fills))

  @property
  def facts(self) -> dict[str, float]:
    """What the score of an objective is told of the data."""
    return {'chars_per_token': self.chars_per_token}

  @property
  def bytes_read(self) -> int:
    """Bytes of the records that this host has read."""
    return sum(source.store.bytes_read for source in self._sources)

  def batch(self, step: int) -> TokenBatch:
    """The rows of a step's batch that this host reads.

    Args:
      step: from 0.

    Returns:
      A batch of numpy arrays [rows, T].

    Raises:
      ValueError: if more records than `max_bad_fraction` are unreadable.
    """
    number = step * self._batch_size + self._rows
    source_B, number_B = self._mixture.locate(number)
    batch = _empty_batch(number.size, self._sequence_length)
    for index, source in enumerate(self._sources):
      places = np.flatnonzero(source_B == index)
      epoch, place = np.divmod(number_B[places], source.plan.num_rows)
      # A hash of a hash, so that no two shuffles share a key.
      key = scramble(scramble(self._seed) ^ np.uint64(index))
      key = scramble(key ^ epoch.astype(np.uint64))
      row = permuted(place, source.plan.num_rows, key)
      source.fill(batch, places, row)
    return batch


def eval_batches(
  directory: str | os.PathLike | Store,
  sequence_length: int,
  batch_size: int,
  rows: np.ndarray | None = None,
) -> Iterator[TokenBatch]:
  """Every document of a store once, in the order of its packed rows.

  Args:
    directory: of the store, or the store itself.
    sequence_length: T.
    batch_size: B, rows of the whole batch over all hosts.
    rows: see `Reader`.

  Yields:
    A batch of numpy arrays [rows, T]; the last one is filled up with empty
    rows.

  Raises:
    ValueError: if the store is missing, or if a record cannot be read: a score
      must cover all documents.
  """
  source = _Source(directory, sequence_length)
  for first in range(0, source.plan.num_rows, batch_size):
    number = first + (np.arange(batch_size) if rows is None else rows)
    batch = _empty_batch(number.size, sequence_length)
    places = np.flatnonzero(number < source.plan.num_rows)
    source.fill(batch, places, number[places])
    yield batch


class _Source:
  """One store and its plan, from which rows are filled."""

  def __init__(
    self,
    directory: str | os.PathLike | Store,
    sequence_length: int,
    max_bad_fraction: float = 0.0,
    bad: list[dict] | None = None,
  ):
    """Opens the store and its plan.

    Args:
      directory: of the store, or the store itself.
      sequence_length: T.
      max_bad_fraction: share of the records that may be unreadable.
      bad: where unreadable records are noted; None makes them an error.
    """
    is_open = isinstance(directory, Store)
    self.store = directory if is_open else Store(directory)
    self.plan = load_plan(self.store, sequence_length)
    self._max_bad = max_bad_fraction * self.store.lengths.size
    self._quarantine = bad
    self._bad_records = set()
    self._lock = threading.Lock()

  def fill(self, batch: TokenBatch, places: np.ndarray, rows: np.ndarray):
    """Writes rows of the plan into places of a batch of zeros."""
    if not rows.size:
      return
    plan = self.plan
    first = plan.row_start[rows]
    num_pieces = plan.row_start[rows + 1] - first
    segment = _counted(num_pieces)
    piece = np.repeat(first, num_pieces) + segment
    length = plan.length[piece].astype(np.int64)
    # Where each piece starts, if the batch is seen as one line of tokens.
    before = np.cumsum(length) - length
    row_begin = np.cumsum(num_pieces) - num_pieces
    column = before - np.repeat(before[row_begin], num_pieces)
    width = batch.tokens.shape[1]
    begin = np.repeat(places, num_pieces) * width + column
    position = _counted(length)
    target = np.repeat(begin, length) + position
    records, which = np.unique(plan.record[piece], return_inverse=True)
    documents = self._read(records)
    tokens, previous, weights = [], [], []
    for document, start, size in zip(
      which, plan.start[piece].tolist(), length.tolist(), strict=True
    ):
      document = documents[document] or _unreadable(start + size)
      ids = document['tokens']
      tokens.append(ids[start : start + size])
      previous.append(ids[start - 1] if start else 0)
      if 'loss_weights' in document:
        weights.append(document['loss_weights'][start : start + size])
      else:
        weights.append(np.ones(size, np.float32))
    ids = np.concatenate(tokens)
    flat = TokenBatch(*(field.reshape(-1) for field in batch))
    flat.targets[target] = ids
    # A piece reads the token before it, so that its first token is scored too.
    flat.tokens[target[1:]] = ids[:-1]
    flat.tokens[begin] = previous
    flat.loss_weights[target] = np.concatenate(weights)
    flat.segment_ids[target] = np.repeat(segment + 1, length)
    flat.positions[target] = position
    is_bad = np.array([document is None for document in documents])[which]
    for field in batch:
      field[np.repeat(places, num_pieces)[is_bad]] = 0

  def _read(self, records: np.ndarray) -> list[Record | None]:
    """Documents by number; None for one that cannot be used."""
    on_error = None if self._quarantine is None else self._on_error
    documents = self.store.read(records, on_error)
    size = self.store.manifest['vocab_size']
    for place, document in enumerate(documents):
      # The embedding would clamp an id past its end without a word.
      top = -1 if document is None else document['tokens'].max(initial=0)
      if top >= size:
        error = f'its tokens must be below {size}, got {top}'
        path = os.path.join(self.store.directory, RECORDS)
        if on_error is None:
          raise ValueError(
            f'Record {records[place]} of {path} must be readable, got {error}:'
            ' delete the store and make it again.'
          )
        on_error(int(records[place]), ValueError(error))
        documents[place] = None
    return documents

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
          f' one record {record}: {error}; delete the store and make it again.'
        )


def _counted(sizes: np.ndarray) -> np.ndarray:
  """The numbers 0 to n - 1 for each n of sizes, one after the other."""
  ends = np.cumsum(sizes)
  return np.arange(ends[-1]) - np.repeat(ends - sizes, sizes)


def _unreadable(size: int) -> Record:
  """Stands for a record that could not be read, until its row is emptied."""
  return {'tokens': np.zeros(size, np.int32)}


def _empty_batch(num_rows: int, sequence_length: int) -> TokenBatch:
  shape = (num_rows, sequence_length)
  fields = {name: np.zeros(shape, np.int32) for name in TokenBatch._fields}
  return TokenBatch(**{**fields, 'loss_weights': np.zeros(shape, np.float32)})
