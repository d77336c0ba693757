"""Transforms, which change a record between the store and the batch.

A transform changes a document each time it is read. Its random key depends only
on the seed, the epoch and the document. So every batch can be made again, and
all segments of a document come from the same result. A transform declares the
lengths of its results, so that rows are planned before any record is read.
"""

import dataclasses
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np

from moe import bounds
from moe.data.order import scramble
from moe.data.store import Record, Store
from moe.modalities.ids import PATCHES, IdSpace


class Shape(NamedTuple):
  """What is known about the documents of a store before they are read.

  Attributes:
    lengths: int [records], tokens of each document.
    blocks: int [blocks, 4], in the form of `Store.blocks`.
    counts: 'scored_tokens' and 'chars', summed over all documents.
  """

  lengths: np.ndarray
  blocks: np.ndarray
  counts: dict[str, int]


@runtime_checkable  # The check of a configuration uses isinstance.
class Transform(Protocol):
  """A function from a record to the example that a batch reads.

  The hash of the data contains the `repr` of the transform, so the `repr`s of
  two different transforms must differ.
  """

  def declare(self, shape: Shape) -> Shape:
    """The shape of the examples, for a store with documents of this shape."""

  def __call__(self, record: Record, key: np.uint64, ids: IdSpace) -> Record:
    """Turns a record into an example.

    Args:
      record: `tokens` and the other arrays of the store.
      key: random key of this document in this epoch.
      ids: the id space, which has the id of the mask.

    Returns:
      A record of the declared length. If it has an array `inputs`, the model
      reads `inputs` and predicts `tokens`.
    """


def shape_of(store: Store, transform: Transform | None = None) -> Shape:
  """The shape of the examples of a store, with or without a transform.

  Raises:
    ValueError: if tokens of a block are scored, but no transform hides them.
  """
  counts = store.manifest['counts']
  counts = {name: counts[name] for name in ('scored_tokens', 'chars')}
  shape = Shape(store.lengths, store.blocks, counts)
  if transform is not None:
    return transform.declare(shape)
  if store.blocks[:, 3].any():
    raise ValueError(
      'Tokens of a block see each other, so those that are to be predicted must'
      f' be hidden, got scored tokens in blocks of {store.directory}: give it a'
      ' transform such as transforms.MaskBlocks.'
    )
  return shape


@dataclasses.dataclass(frozen=True)
class MaskBlocks:
  """Hides a share of a block's scored tokens; only hidden ones are predicted.

  This is masked modelling (Devlin et al. 2018,
  https://arxiv.org/abs/1810.04805) with two changes. The number of hidden
  tokens of a block is always the same, so that the number of scored tokens is
  known. The model always reads the mask in place of a hidden token. A block
  that is not scored is a condition, and nothing in it is hidden.

  Attributes:
    fraction: share of the scored tokens of a block to hide; at least one token
      is hidden.
  """

  fraction: float = 0.15

  def __post_init__(self):
    share = 'of the scored tokens of a block'
    bounds.within('fraction', self.fraction, share, above=0, most=1)

  def declare(self, shape: Shape) -> Shape:
    """The same shape, but unmasked tokens of blocks are not counted."""
    scored = shape.blocks[:, 3].astype(np.int64)
    num_shown = int((scored - self._num_hidden(scored)).sum())
    counts = {name: count - num_shown for name, count in shape.counts.items()}
    return shape._replace(counts=counts)

  def __call__(self, record: Record, key: np.uint64, ids: IdSpace) -> Record:
    """Adds `inputs` to a record with blocks: its tokens, some masked."""
    if 'block_ids' not in record:
      return record
    block_ids = record['block_ids']
    is_scored = record.get('loss_weights', np.ones(block_ids.size)) > 0
    inputs = record['tokens'].astype(np.int32)
    for number in np.unique(block_ids[block_ids > 0]):
      places = np.flatnonzero((block_ids == number) & is_scored)
      order = np.argsort(scramble(scramble(places) ^ key), kind='stable')
      hidden = order[: self._num_hidden(np.array(places.size))]
      inputs[places[hidden]] = ids.mask
    return {**record, 'inputs': inputs}

  def _num_hidden(self, num_scored: np.ndarray) -> np.ndarray:
    rounded = np.rint(self.fraction * num_scored).astype(np.int64)
    return np.maximum(rounded, num_scored > 0)


@dataclasses.dataclass(frozen=True)
class DropCondition:
  """Hides the whole condition of a document in a random share of its readings.

  So the model learns to predict the target both with and without its condition.
  Classifier-free guidance (Ho and Salimans 2022,
  https://arxiv.org/abs/2207.12598) and the information gain of a caption need
  both predictions. A mask replaces each token of the condition, so the document
  keeps its length, and decoding can do both predictions with one cache.

  Attributes:
    fraction: probability that a document is read without its condition.
  """

  fraction: float = 0.1

  def __post_init__(self):
    share = 'share of the times a document is read without its condition'
    bounds.within('fraction', self.fraction, share, least=0, most=1)

  def declare(self, shape: Shape) -> Shape:
    """The same shape, since the length does not change.

    Raises:
      ValueError: if tokens of a block are scored. They see each other, so each
        must be masked where it is predicted, but only the condition is masked.
    """
    if shape.blocks[:, 3].any():
      raise ValueError(
        'Documents of transforms.DropCondition must have no block that is to be'
        ' predicted, got some: give them transforms.MaskBlocks.'
      )
    return shape

  def __call__(self, record: Record, key: np.uint64, ids: IdSpace) -> Record:
    """With probability `fraction`, adds `inputs`, which hide the condition."""
    if not self._is_dropped(key):
      return record
    return _without_condition(record, ids)

  def _is_dropped(self, key: np.uint64) -> bool:
    return float(scramble(key)) < self.fraction * 2.0**64


@dataclasses.dataclass(frozen=True)
class ReadPatches(DropCondition):
  """The model reads a picture as patches of pixels, not as codes.

  Masks always replace the codes of the condition. In a random share of the
  reads the patches become zeros, so the model reads no condition at all.
  Documents must have an array `patches`, which `python -m launch.images encode
  --patches` writes.

  Attributes:
    fraction: probability that the patches become zeros, too.
  """

  def __call__(self, record: Record, key: np.uint64, ids: IdSpace) -> Record:
    """Adds `inputs` to the record: its tokens, with the condition masked.

    Raises:
      ValueError: if the document has no patches.
    """
    if PATCHES not in record:
      raise ValueError(
        'Documents of transforms.ReadPatches must have patches, got none: write'
        ' the codes with `python -m launch.images encode --patches`.'
      )
    found = _without_condition(record, ids)
    if self._is_dropped(key):
      found[PATCHES] = np.zeros_like(record[PATCHES])
    return found


def _without_condition(record: Record, ids: IdSpace) -> Record:
  """Adds `inputs`, in which masks replace the condition, if there is one."""
  if 'loss_weights' not in record:
    return record
  is_condition = np.cumsum(record['loss_weights'] > 0) == 0
  inputs = np.where(is_condition, ids.mask, record['tokens'])
  return {**record, 'inputs': inputs.astype(np.int32)}
