"""Types that all packages share, and the legend of letters in tensor names.

A tensor's name ends with its dims (`x_BTD`). Names of scalars and trees have no
suffix. The letters name the dims of the whole array; a device may have a part.

  B  sequences in the batch      D  model width        E  experts
  T  tokens per sequence (query) F  feed-forward width A  active experts (top-k)
  S  key/value or cache length   V  vocabulary         C  capacity: slots per
  N  query heads                 L  layers (scan axis)    expert and group
  K  key/value heads             H  head width         G  routing groups
  R  routed rows (token, expert) I, J residues i and j M  tokens per group
  Y, X  image rows and columns   Q  image channels     P  atom slots per residue
  Z  latent width, pair width    U  rows of a buffer   W  rows of a window

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

# The modalities of tokens. `TokenBatch.modality` has indices of this tuple.
MODALITIES = ('text', 'image', 'protein')

# A loss or a metric as (sum, weight). Both are added over microbatches and
# devices before the sum is divided by the weight.
Pair = tuple[Array, Array]


@dataclasses.dataclass(frozen=True)
class Field:
  """An array of a batch, as the objective declares it.

  Attributes:
    shape: shape of the array, over all devices and microbatches.
    dtype: dtype of the array.
    axes: logical axis of each dim; None for a dim that is never divided.
  """

  shape: tuple[int, ...]
  dtype: Any
  axes: tuple[str | None, ...]


class Extra(NamedTuple):
  """A further array of a `TokenBatch`, with a value for each token.

  Attributes:
    name: name of the array in stores and in batches.
    shape: shape of a token's value; () for a scalar.
    dtype: dtype of the array.
  """

  name: str
  shape: tuple[int, ...] = ()
  dtype: str = 'int32'


class TokenBatch(NamedTuple):
  """What a language model reads; all fields except `extras` are [B, T].

  Attention rule: a query q sees a key k iff both have the same segment and
  (k <= q, or both have the same non-zero block).

  Attributes:
    tokens: int32 ids that the model reads. A document that the model learns to
      predict begins with the id 0.
    targets: int32, the id that the model must predict at each place.
    loss_weights: float32, weight of each target; 0 for padding and prompts.
    segment_ids: int32, 1, 2, ... for the documents of a row; 0 is padding.
    positions: int32, place of the token in its document.
    block_ids: int32, 0 for causal tokens. Tokens of the same block attend to
      each other.
    modality: int32 modality of the token that is read, an index of
      `MODALITIES`.
    extras: name -> further array [B, T, ...] for the tokens that are read, such
      as their rows and columns in a picture. The model declares these arrays.
  """

  tokens: Array
  targets: Array
  loss_weights: Array
  segment_ids: Array
  positions: Array
  block_ids: Array
  modality: Array
  extras: dict[str, Array] = {}


# The fields of `TokenBatch` that are [B, T] in every batch.
PLACE_FIELDS = tuple(name for name in TokenBatch._fields if name != 'extras')


def following(a_BT: Array) -> Array:
  """The next value for each place of a row, [B, T]; 0 for the last place."""
  return jax.numpy.pad(a_BT[:, 1:], ((0, 0), (0, 1)))


class Cache(NamedTuple):
  """What attention keeps of the tokens that decoding has read.

  Attributes:
    segment_ids: int32 [B, S]; 0 for an empty entry or for padding.
    block_ids: int32 [B, S], as in `TokenBatch`.
    index: int32 scalar, number of filled entries, the same for every row.
    layers: tree of arrays, such as keys and values; the model decides its
      structure.
  """

  segment_ids: Array
  block_ids: Array
  index: Array
  layers: PyTree


class Outputs(NamedTuple):
  """What a model returns.

  Attributes:
    hidden: [B, T, D] after the last norm, from which `head` makes logits.
    state: arrays that each step updates, but without gradients, such as router
      biases.
    cache: the filled `Cache`, or None if none was given.
    losses: name -> (sum, weight), unscaled.
    metrics: name -> (sum, weight), which are arrays of any shape.
    ahead: [B, T, D] from which `head` predicts the token after the next one;
      None if the model does not predict it.
    maps: attention weights [L, B, N, T, S] of all layers; None if the layers
      do not return them.
  """

  hidden: Array
  state: PyTree
  cache: Cache | None
  losses: dict[str, Pair]
  metrics: dict[str, Pair]
  ahead: Array | None = None
  maps: Array | None = None


@dataclasses.dataclass(frozen=True)
class Layout:
  """Mesh axes by use, for code inside `shard_map`.

  Attributes:
    batch_axes: axes that divide the batch dim of activations.
    sequence_axes: axes that divide the sequence dim of activations.
    expert_axes: axes that divide the experts.
    tensor_axes: axes that divide feed-forward width and heads.
    sizes: (axis, number of devices) for every axis of the mesh; () for a mesh
      of one device.
  """

  batch_axes: tuple[str, ...] = ()
  sequence_axes: tuple[str, ...] = ()
  expert_axes: tuple[str, ...] = ()
  tensor_axes: tuple[str, ...] = ()
  sizes: tuple[tuple[str, int], ...] = ()

  def dividing(self, batch: int, length: int) -> 'Layout':
    """Returns the layout for a batch that may be too small for all axes.

    The result has as many of the first batch axes as can divide `batch` rows,
    and the sequence axes if they can divide `length` columns. Along other axes,
    devices have copies of the tokens.
    """
    rows = self.batch_axes
    while rows and batch % self.size(rows):
      rows = rows[:-1]
    columns = (
      () if length % self.size(self.sequence_axes) else (self.sequence_axes)
    )
    return dataclasses.replace(self, batch_axes=rows, sequence_axes=columns)

  def size(self, axes: tuple[str, ...]) -> int:
    """Number of devices along all of `axes` together; 1 for ()."""
    sizes = dict(self.sizes)
    total = 1
    for axis in axes:
      total *= sizes[axis]
    return total
