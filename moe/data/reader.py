"""Reads batches by step number; a batch depends only on seed and step."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence

import numpy as np

from moe.data.order import Mixture, Source
from moe.data.packed_store import Extras, PackedStore
from moe.data.skips import Skips
from moe.data.store import Store
from moe.data.transforms import Transform
from moe.modalities import ids
from moe.types import PLACE_FIELDS, TokenBatch


class Reader:
  """Endless training batches of a mixture of token stores.

  Each epoch shuffles the rows of every store's pack plan in another way. The
  pattern of the mixture says which store gives the next row. Batch s holds the
  rows [s * batch_size, (s + 1) * batch_size) of this endless mixture. There is
  no iterator and no state, so any host can read any batch at any time.

  If a record cannot be read, every row with a part of it stays empty (weight 0,
  segment 0), and `quarantine` lists the record; no other row changes.

  Attributes:
    ids: the id space of all stores.
    vocab_size: number of ids of the vocabulary that all stores share.
    vocab_sha256: SHA-256 of the vocabulary's file.
    manifest_hash: SHA-256 of what decides the data: content, vocabulary and
      rates of the stores, transforms, and the id space if it has more than
      text.
    chars_per_token: mean number of characters per scored token; an end mark is
      a token without characters. Bits per character are bits per scored token
      divided by this.
    fill: share of the places of a batch that hold a token.
    quarantine: {'file', 'record', 'error'} of each record that could not be
      read.
    skips: batches that are left out; by default none.
  """

  def __init__(  # noqa: PLR0913
    self,
    dirs: Sequence[str | os.PathLike | Store],
    rates: Sequence[float],
    sequence_length: int,
    batch_size: int,
    seed: int,
    max_bad_fraction: float = 1e-4,
    rows: np.ndarray | None = None,
    transforms: Sequence[Transform | None] = (),
    extras: Extras | None = None,
  ):
    """Opens the stores and their pack plans.

    Args:
      dirs: directories of the stores, or the stores themselves.
      rates: how many rows come from each store, relative to the others.
      sequence_length: T.
      batch_size: B, rows of the whole batch over all hosts.
      seed: seed of the shuffles.
      max_bad_fraction: share of a store's records that may be unreadable.
      rows: numbers of the rows of a batch that this host reads, from
        `multihost.own_rows`; None for all.
      transforms: a transform or None for each store; () for no transforms.
      extras: further arrays of a batch; zeros for a store without the array.

    Raises:
      ValueError: if a store is missing or broken, if it has scored blocks that
        no transform hides, if the stores differ in their vocabulary or id
        space, or if an argument has a wrong length or value.
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
    self.skips = Skips()
    transforms = list(transforms) or [None] * len(dirs)
    self._extras = dict(extras or {})
    self._stores = [
      PackedStore(
        directory,
        sequence_length,
        transform,
        self._extras,
        max_bad_fraction,
        self.quarantine,
      )
      for directory, transform in zip(dirs, transforms, strict=True)
    ]
    self._batch_size = batch_size
    self._rows = np.arange(batch_size) if rows is None else rows
    self._sequence_length = sequence_length
    self._seed = seed
    manifests = [packed.store.manifest for packed in self._stores]
    for manifest, packed in zip(manifests, self._stores, strict=True):
      directory = packed.store.directory
      if manifest['vocabulary_sha256'] != manifests[0]['vocabulary_sha256']:
        raise ValueError(
          'All stores of a mixture must share one vocabulary, got another one'
          f' in {directory} than in {self._stores[0].store.directory}: cache'
          ' them with the same --vocabulary.'
        )
    self.ids = ids.shared(packed.ids for packed in self._stores)
    for packed in self._stores:
      packed.ids = self.ids
    self.vocab_size = manifests[0]['vocab_size']
    self.vocab_sha256 = manifests[0]['vocabulary_sha256']
    shares = self._mixture.shares
    contents = [manifest['content_sha256'] for manifest in manifests]
    identity = [self.vocab_sha256, contents, shares.tolist()]
    if not self.ids.is_text:
      identity.append(self.ids.sha256)
    if any(transforms):
      identity.append(
        [transform and repr(transform) for transform in transforms]
      )
    self.manifest_hash = hashlib.sha256(
      json.dumps(identity).encode()
    ).hexdigest()

    def per_row(name: str) -> float:
      return sum(
        share * packed.shape.counts[name] / packed.plan.num_rows
        for share, packed in zip(shares, self._stores, strict=True)
      )

    self.chars_per_token = per_row('chars') / per_row('scored_tokens')
    fills = [packed.plan.fill for packed in self._stores]
    self.fill = float(np.dot(shares, fills))

  @property
  def facts(self) -> dict[str, float]:
    """What the score of an objective needs to know about the data."""
    return {'chars_per_token': self.chars_per_token}

  @property
  def bytes_read(self) -> int:
    """Bytes of the records that this host has read."""
    return sum(packed.store.bytes_read for packed in self._stores)

  def batch(self, step: int) -> TokenBatch:
    """The rows of a step's batch that this host reads.

    Args:
      step: number of the step, counted from 0.

    Returns:
      A batch of numpy arrays [rows, T].

    Raises:
      ValueError: if the share of unreadable records exceeds `max_bad_fraction`.
    """
    number = self.skips.number(step) * self._batch_size + self._rows
    batch = _empty_batch(number.size, self._sequence_length, self._extras)
    sizes = [packed.plan.num_rows for packed in self._stores]
    shuffled = self._mixture.shuffled(number, sizes, self._seed)
    for index, places, row, key in shuffled:
      self._stores[index].fill(batch, places, row, key)
    return batch

  def sources(self, step: int) -> list[Source]:
    """The documents that each store gives to the batch of a step."""
    stores = [(p.store.directory, p.plan.num_rows) for p in self._stores]
    batch = self.skips.number(step), self._batch_size
    found = self._mixture.sources(batch, self._rows, stores, self._seed)
    return [
      source._replace(records=packed.plan.records(source.records))
      for source, packed in zip(found, self._stores, strict=True)
    ]


def eval_batches(
  directory: str | os.PathLike | Store,
  sequence_length: int,
  batch_size: int,
  rows: np.ndarray | None = None,
  transform: Transform | None = None,
  extras: Extras | None = None,
) -> Iterator[TokenBatch]:
  """Yields batches in which each document of a store occurs once.

  The rows come in the order of the pack plan.

  Args:
    directory: directory of the store, or the store itself.
    sequence_length: T.
    batch_size: B, rows of the whole batch over all hosts.
    rows: see `Reader`.
    transform: transform of the documents; its random choices are the same in
      every evaluation.
    extras: further arrays of a batch.

  Yields:
    A batch of numpy arrays [rows, T]; the last one is filled up with empty
    rows.

  Raises:
    ValueError: if the store is missing or broken, or if a record cannot be
      read. A score must cover all documents.
  """
  extras = dict(extras or {})
  packed = PackedStore(directory, sequence_length, transform, extras)
  for first in range(0, packed.plan.num_rows, batch_size):
    number = first + (np.arange(batch_size) if rows is None else rows)
    batch = _empty_batch(number.size, sequence_length, extras)
    places = np.flatnonzero(number < packed.plan.num_rows)
    keys = np.zeros(places.size, np.uint64)
    packed.fill(batch, places, number[places], keys)
    yield batch


def _empty_batch(
  num_rows: int, sequence_length: int, extras: Extras
) -> TokenBatch:
  shape = (num_rows, sequence_length)
  fields = {name: np.zeros(shape, np.int32) for name in PLACE_FIELDS}
  fields['loss_weights'] = np.zeros(shape, np.float32)
  return TokenBatch(
    **fields,
    extras={
      name: np.zeros((*shape, *extra.shape), extra.dtype)
      for name, extra in extras.items()
    },
  )
