"""Types that every part shares, and the legend of the letters in tensor names.

A tensor's name ends in its dims (`x_BTD`); scalars and trees carry no suffix;
the suffix is the logical shape, never the shard one device holds.

  B  sequences in the batch      D  model width        E  experts
  T  tokens per sequence (query) F  feed-forward width A  active experts (top-k)
  S  key/value or cache length   V  vocabulary         C  capacity: slots per
  N  query heads                 L  layers (scan axis)    expert and group
  K  key/value heads             H  head width         G  routing groups
  R  routed rows (token, expert) I, J residues i and j M  tokens per group
  Y, X  image rows and columns   Q  image channels     P  atom slots per residue
  Z  latent width (attention)    U  rows of a buffer   W  rows of a window

Lower-case letters are local to a function, such as n for a number of devices.
"""

import dataclasses
from typing import Any, NamedTuple

import jax

Array = jax.Array
PyTree = Any

# A batch is a tree of named arrays that an objective declares as `Field`s. The
# first dim of each array counts rows.
Batch = PyTree

# The modalities of tokens, by their numbers in `TokenBatch.modality`.
MODALITIES = ('text', 'image', 'protein')

# A loss or a metric as (sum, weight). Sums and weights are first added over
# microbatches and devices; only the totals are divided.
Pair = tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class Field:
  """One array of a batch, as its objective declares it.

  Attributes:
    shape: shape of the whole batch, over all devices and microbatches.
    dtype: dtype of the array.
    axes: logical axis of each dim, None for a dim that is never divided.
  """

  shape: tuple[int, ...]
  dtype: Any
  axes: tuple[str | None, ...]


class Extra(NamedTuple):
  """A further array of a `TokenBatch`, with one value for each token.

  Attributes:
    name: name of the array in stores and in batches.
    shape: shape of the value of one token.
    dtype: dtype of the array.
  """

  name: str
  shape: tuple[int, ...] = ()
  dtype: str = 'int32'


class TokenBatch(NamedTuple):
  """What a language model reads, one row per sequence; fields are [B, T].

  Attention rule: a query q sees a key k iff both have the same segment and
  (k <= q, or both have the same non-zero block).

  Attributes:
    tokens: int32 ids that the model reads; 0 at the first place of a document.
    targets: int32, id that the model must predict at each place.
    loss_weights: float32, weight of each target; 0 for padding and prompts.
    segment_ids: int32, 1, 2, ... for the documents of a row; 0 is padding.
    positions: int32, place of the token in its document.
    block_ids: int32, 0 for causal tokens; tokens of one block see each other.
    modality: int32 modality of the token that is read, a number of
      `MODALITIES`.
    extras: further arrays [B, T, ...] for the tokens that are read, such as
      patches, rows and columns, or coordinates; the model declares them.
  """

  tokens: Array
  targets: Array
  loss_weights: Array
  segment_ids: Array
  positions: Array
  block_ids: Array
  modality: Array
  extras: dict[str, Array] = {}


# The fields that are [B, T] in every batch.
PLACE_FIELDS = tuple(name for name in TokenBatch._fields if name != 'extras')


def following(a_BT: Array) -> Array:
  """The value of the next place, for each place of a row; 0 for the last."""
  return jax.numpy.pad(a_BT[:, 1:], ((0, 0), (0, 1)))


class Cache(NamedTuple):
  """Keys and values of the tokens that decoding has read.

  Attributes:
    segment_ids: int32 [B, S], 0 where an entry is empty or padding.
    block_ids: int32 [B, S].
    index: int32 scalar, number of filled entries, the same for every row.
    layers: tree of key and value arrays; the model decides its structure.
  """

  segment_ids: Array
  block_ids: Array
  index: Array
  layers: PyTree


class Outputs(NamedTuple):
  """What a model returns.

  Attributes:
    hidden: [B, T, D] after the last norm, ready for `head`.
    state: arrays that each step updates without training (router bias,
      averages).
    cache: the filled `Cache`, or None if none was given.
    losses: name -> (sum, weight), unscaled.
    metrics: name -> (sum, weight), arrays of any shape.
    ahead: [B, T, D] from which `head` predicts the token after the next one;
      None if the model does not predict it.
  """

  hidden: Array
  state: PyTree
  cache: Cache | None
  losses: dict[str, Pair]
  metrics: dict[str, Pair]
  ahead: Array | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
  """Mesh axes by their use, for code inside `shard_map`.

  Attributes:
    batch_axes: axes that divide the batch dim of activations.
    sequence_axes: axes that divide the sequence dim of activations.
    expert_axes: axes that divide the experts.
    tensor_axes: axes that divide feed-forward width and heads.
    sizes: (axis, devices) for every axis of the mesh.
  """

  batch_axes: tuple[str, ...] = ()
  sequence_axes: tuple[str, ...] = ()
  expert_axes: tuple[str, ...] = ()
  tensor_axes: tuple[str, ...] = ()
  sizes: tuple[tuple[str, int], ...] = ()

  def dividing(self, batch: int, length: int) -> 'Layout':
    """The layout for a batch that may be too small for all axes.

    It keeps as many leading batch axes as divide `batch` rows, and the sequence
    axes if they divide `length` columns. The other axes hold copies of the
    tokens.
    """
    rows = self.batch_axes
    while rows and batch % self.size(rows):
      rows = rows[:-1]
    columns = (
      () if length % self.size(self.sequence_axes) else (self.sequence_axes)
    )
    return dataclasses.replace(self, batch_axes=rows, sequence_axes=columns)

  def size(self, axes: tuple[str, ...]) -> int:
    """Product of the sizes of `axes`; 1 for none."""
    sizes = dict(self.sizes)
    total = 1
    for axis in axes:
      total *= sizes[axis]
    return total
