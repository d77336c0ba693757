"""Converts arrays between our layout and the layouts of Hugging Face's formats.

`plan` lists every array of a Hugging Face file, each with the arrays of ours
that it is made of. It needs only the table of names and our shapes. With this
list, `hugging_face_files` reads or writes one array at a time.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from moe.checkpoint.hugging_face_names import (
  FUSED_LAYERS,
  LAYERS,
  TRANSIENT,
  WHOLE,
  Row,
)

# How our paths begin in the unscanned first layers and in the scanned layers.
_PREFIX, _PERIODS = 'stack/prefix_', 'stack/periods/block_'

Shapes = Mapping[str, tuple[int, ...]]


class Tensor(NamedTuple):
  """An array in a Hugging Face file, with our arrays that it is made of.

  Attributes:
    name: its name in the file.
    shape: its shape in the file.
    row: its row in the table of names.
    paths: paths of our arrays, in the order in which they are concatenated.
    place: index into the leading dims of our arrays: (), (period,), (expert,)
      or (period, expert).
    widths: sizes of our arrays in the dim along which they are concatenated;
      (0,) for a single array.
    rope_dim: number of features that rotary embeddings rotate; 0 if the row has
      no `paired` dim.
  """

  name: str
  shape: tuple[int, ...]
  row: Row
  paths: tuple[str, ...]
  place: tuple[int, ...]
  widths: tuple[int, ...]
  rope_dim: int


def plan(
  model_type: str, shapes: Shapes, is_fused: bool, rope_dim: int = 0
) -> list[Tensor]:
  """Lists every array of a model in a Hugging Face format, layer after layer.

  Args:
    model_type: a key of `LAYERS`.
    shapes: shapes of our parameters and state by path.
    is_fused: whether an array of the file can hold all experts of a layer.
    rope_dim: features of a head that rotary embeddings rotate, in latent
      attention.

  Raises:
    ValueError: if the format has no name for an array of ours; the message
      says for which one.
  """
  table = (FUSED_LAYERS if is_fused else LAYERS)[model_type]
  tensors, used = [], []
  blocks = [('', (), '', WHOLE)]
  for number, (block, place) in enumerate(_layers(shapes)):
    blocks.append((block, place, f'model.layers.{number}.', table))
  for block, place, prefix, rows in blocks:
    for row in rows:
      paths = tuple(block + path for path in row.paths)
      if not set(paths) <= shapes.keys():
        continue
      used += paths
      tensors += _of_row(row, prefix, paths, place, shapes, rope_dim)
  unsaid = [
    path
    for path in shapes
    if path not in used and path.rpartition('/')[2] not in TRANSIENT
  ]
  if unsaid:
    raise ValueError(
      f'{", ".join(sorted(unsaid)[:4])} has no name in the format {model_type}:'
      ' the format cannot describe this model.'
    )
  return tensors


def _layers(shapes: Shapes) -> list[tuple[str, tuple[int, ...]]]:
  """(path of the block, index of its period) of every layer, in order."""
  number = lambda start: {
    int(path.removeprefix(start).partition('/')[0])
    for path in shapes
    if path.startswith(start)
  }
  found = [(f'{_PREFIX}{i}/', ()) for i in sorted(number(_PREFIX))]
  blocks = sorted(number(_PERIODS))
  if blocks:
    norm = f'{_PERIODS}0/attention_norm/scale'
    for period in range(shapes[norm][0]):
      found += [(f'{_PERIODS}{i}/', (period,)) for i in blocks]
  return found


def _of_row(
  row: Row,
  prefix: str,
  paths: tuple[str, ...],
  place: tuple[int, ...],
  shapes: Shapes,
  rope_dim: int,
) -> list[Tensor]:
  """The file's arrays for one row of the table in one layer.

  There is one array, or one for each expert.
  """
  ours = [shapes[path][len(place) :] for path in paths]
  sizes = dict(zip(row.our_dims, ours[0], strict=True))
  widths = (0,)
  if row.joined:
    axis = row.our_dims.index(row.joined)
    widths = tuple(shape[axis] for shape in ours)
    sizes[row.joined] = sum(widths)
  shape = tuple(
    math.prod(sizes[letter] for letter in word)
    for word in row.their_dims.split()
  )
  rope_dim = rope_dim if row.paired else 0
  if not row.is_of_one_expert:
    name = prefix + row.theirs
    return [Tensor(name, shape, row, paths, place, widths, rope_dim)]
  return [
    Tensor(
      prefix + row.theirs.format(e=e),
      shape, row, paths, (*place, e), widths, rope_dim,
    )
    for e in range(sizes['E'])
  ]  # fmt: skip


def _dims(row: Row) -> str:
  """Letters of our dims, without E if the file has an array for each expert."""
  return row.our_dims.replace('E', '') if row.is_of_one_expert else row.our_dims


def _paired(width: int, rope_dim: int) -> np.ndarray:
  """For each feature in our order, its index in the order of the file.

  Hugging Face rotates features i and i + 1 as a pair. We rotate features i and
  i + rope_dim / 2. So our order has the even features first, then the odd ones.
  Features that are not rotated come before them.
  """
  rest, turned = np.arange(width - rope_dim), np.arange(width - rope_dim, width)
  return np.concatenate([rest, turned[::2], turned[1::2]])


def to_theirs(tensor: Tensor, arrays: Sequence[np.ndarray]) -> np.ndarray:
  """Makes Hugging Face's array from the matching parts of our arrays."""
  row, dims = tensor.row, _dims(tensor.row)
  whole = arrays[0]
  if row.joined:
    whole = np.concatenate(arrays, axis=dims.index(row.joined))
  if row.paired:
    axis = dims.index(row.paired)
    order = _paired(whole.shape[axis], tensor.rope_dim)
    whole = np.take(whole, np.argsort(order), axis=axis)
  letters = tensor.row.their_dims.replace(' ', '')
  return whole.transpose([dims.index(x) for x in letters]).reshape(tensor.shape)


def to_ours(
  tensor: Tensor, array: np.ndarray, sizes: Sequence[int]
) -> list[np.ndarray]:
  """Makes our arrays, or slices of them, from an array of Hugging Face.

  Args:
    tensor: description of the array.
    array: the array as the file has it.
    sizes: shape of one of our arrays, without the dims of `Tensor.place`.

  Returns:
    An array for each of the paths in `Tensor.row`.
  """
  row, dims = tensor.row, _dims(tensor.row)
  size = dict(zip(dims, sizes, strict=True))
  if row.joined:
    size[row.joined] = sum(tensor.widths)
  letters = row.their_dims.replace(' ', '')
  whole = array.reshape([size[x] for x in letters])
  whole = whole.transpose([letters.index(x) for x in dims])
  if row.paired:
    axis = dims.index(row.paired)
    order = _paired(whole.shape[axis], tensor.rope_dim)
    whole = np.take(whole, order, axis=axis)
  if not row.joined:
    return [whole]
  cuts = np.cumsum(tensor.widths)[:-1]
  return np.split(whole, cuts, axis=dims.index(row.joined))
