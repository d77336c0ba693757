"""Arrays of a model as Hugging Face's formats lay them out, both ways.

`plan` pairs every array there with what it is made of here, from the table of
names and from shapes alone. Each array is then read or written by itself, so
that no more than one of them has to fit into memory beside the model.
"""

import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from moe import atomic_files
from moe.checkpoint import safetensors_file
from moe.checkpoint.hugging_face_names import (
  FUSED_LAYERS,
  LAYERS,
  TRANSIENT,
  WHOLE,
  Row,
)
from moe.checkpoint.safetensors_file import Entry, ToWrite

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
_MAX_INDEX_BYTES = 100_000_000
# Paths of ours that are not divided into layers of the stack.
_PREFIX, _PERIODS = 'stack/prefix_', 'stack/periods/block_'

Shapes = Mapping[str, tuple[int, ...]]


class Tensor(NamedTuple):
  """An array there, and what it is made of here.

  Attributes:
    name: there.
    shape: there.
    row: its row in the table of names.
    paths: of our arrays, side by side.
    place: where in the leading dims of ours it lies: (), (period,), (expert,)
      or (period, expert).
    widths: of our arrays in the dim along which they lie side by side.
    rope_dim: features that are turned, for a row with pairs.
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
  """Every array of a model there, layer after layer.

  Args:
    model_type: a key of `LAYERS`.
    shapes: of our parameters and state by path.
    is_fused: whether the experts of a layer are one array.
    rope_dim: features of a head that are turned, in latent attention.

  Raises:
    ValueError: if an array of ours has no name in the format; it names it.
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
      ' the model cannot be said in it.'
    )
  return tensors


def _layers(shapes: Shapes) -> list[tuple[str, tuple[int, ...]]]:
  """(path of the block, its place among periods) of every layer, in order."""
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
  """The arrays of one row in one layer: one, or one for each expert."""
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
  """Letters of one of our arrays, without those of its place."""
  return row.our_dims.replace('E', '') if row.is_of_one_expert else row.our_dims


def _paired(width: int, rope_dim: int) -> np.ndarray:
  """Places there of our features: of turned ones even first, then odd."""
  rest, turned = np.arange(width - rope_dim), np.arange(width - rope_dim, width)
  return np.concatenate([rest, turned[::2], turned[1::2]])


def to_theirs(tensor: Tensor, arrays: Sequence[np.ndarray]) -> np.ndarray:
  """The array there, of the parts of ours that lie at its place."""
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
  """The parts of ours that an array there holds; the other way round.

  Args:
    tensor: of the array.
    array: as it is there.
    sizes: of one of our arrays, without the dims of its place.
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


def save(
  directory: str,
  tensors: Sequence[Tensor],
  arrays: Mapping[str, jax.Array],
  dtype: str,
  shard_bytes: int,
) -> list[str]:
  """Writes arrays as safetensors: one file, or several with an index.

  Args:
    directory: to write into.
    tensors: of `plan`.
    arrays: ours by path, on any devices; one part after another is fetched.
    dtype: of weights, a name of `safetensors_file.DTYPES`. Biases of routers
      stay float32: they are compared, not multiplied.
    shard_bytes: the most bytes of a file, unless one array is larger.

  Returns:
    Names of the files.
  """

  def made(tensor: Tensor) -> np.ndarray:
    parts = [np.asarray(arrays[path][tensor.place]) for path in tensor.paths]
    return to_theirs(tensor, parts)

  shards, filled = [[]], 0
  for t in tensors:
    kind = 'F32' if t.row.theirs.endswith('bias') else dtype
    array = ToWrite(t.name, kind, t.shape, lambda t=t: made(t))
    if filled and filled + array.num_bytes > shard_bytes:
      shards.append([])
      filled = 0
    shards[-1].append(array)
    filled += array.num_bytes
  if len(shards) == 1:
    safetensors_file.write(os.path.join(directory, SINGLE), shards[0])
    return [SINGLE]
  files, weight_map = [], {}
  for number, shard in enumerate(shards, start=1):
    files.append(f'model-{number:05}-of-{len(shards):05}.safetensors')
    safetensors_file.write(os.path.join(directory, files[-1]), shard)
    weight_map |= {array.name: files[-1] for array in shard}
  total = sum(array.num_bytes for shard in shards for array in shard)
  index = {'metadata': {'total_size': total}, 'weight_map': weight_map}
  atomic_files.write_json(os.path.join(directory, INDEX), index)
  return files


def find(directory: str) -> dict[str, tuple[str, Entry]]:
  """(file, entry) of every array in a directory, by name.

  Raises:
    ValueError: if a file is damaged, or the index does not say what files hold.
    OSError: if a file is missing.
  """
  index = os.path.join(directory, INDEX)
  if not os.path.isfile(index):
    path = os.path.join(directory, SINGLE)
    return {n: (path, e) for n, e in safetensors_file.read_header(path).items()}
  weight_map = _weight_map(index)
  found = {}
  for name in sorted(set(weight_map.values())):
    path = os.path.join(directory, name)
    for array, entry in safetensors_file.read_header(path).items():
      if weight_map.get(array) != name:
        raise ValueError(
          f'{index} must say where every array lies, got none for {array!r} in'
          f' {name}: fetch the directory again.'
        )
      found[array] = path, entry
  missing = sorted(weight_map.keys() - found.keys())
  if missing:
    raise ValueError(
      f'{index} names {missing[0]!r}, which is in none of its files: fetch the'
      ' directory again.'
    )
  return found


def _weight_map(index: str) -> dict[str, str]:
  """File of each array, as an index says it: plain names of files beside it."""
  with open(index, 'rb') as f:
    content = f.read(_MAX_INDEX_BYTES + 1)
  try:
    if len(content) > _MAX_INDEX_BYTES:
      raise ValueError(f'more than {_MAX_INDEX_BYTES} bytes')
    weight_map = json.loads(content)['weight_map']
    for file in set(weight_map.values()):
      # Nothing outside of the directory is opened, whatever the index says.
      if not re.fullmatch(r'[\w-][\w.-]*\.safetensors', file):
        raise ValueError(f'the file name {file!r}')
  except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as e:
    raise ValueError(
      f'{index} must be an index of safetensors files, got {e!r}: fetch it'
      ' again.'
    ) from e
  return weight_map


def is_fused(names: Iterable[str]) -> bool:
  """Whether files have the experts of a layer as one array."""
  return any(name.endswith('.mlp.experts.down_proj') for name in names)


def check(
  directory: str, tensors: Sequence[Tensor], found: Mapping[str, tuple]
) -> None:
  """Raises ValueError unless files hold exactly the arrays of a plan."""
  wanted = {tensor.name: tensor for tensor in tensors}
  problems = [f'{n} is missing' for n in sorted(wanted.keys() - found.keys())]
  problems += [f'{n} has no use' for n in sorted(found.keys() - wanted.keys())]
  for name in sorted(wanted.keys() & found.keys()):
    shape = found[name][1].shape
    if shape != wanted[name].shape:
      problems.append(f'{name} is {shape} and must be {wanted[name].shape}')
  if problems:
    more = f'; and {len(problems) - 6} more' if len(problems) > 6 else ''
    raise ValueError(
      f'the arrays of {directory} do not fit its config.json:'
      f' {"; ".join(problems[:6])}{more}.'
    )


def load(
  tensors: Sequence[Tensor],
  found: Mapping[str, tuple[str, Entry]],
  wanted: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, jax.Array]:
  """Reads our arrays, each device's part by itself.

  Args:
    tensors: of `plan`; `check` has passed.
    found: of `find`.
    wanted: ours by path, with shardings. Those that no tensor holds are zeros:
      they are what the next training step begins anew.
  """
  sources = {}
  for tensor in tensors:
    for part, path in enumerate(tensor.paths):
      sources.setdefault(path, {})[tensor.place] = tensor, part

  def read(path: str, shape: jax.ShapeDtypeStruct) -> jax.Array:
    fetch = lambda index: _part(sources.get(path, {}), found, shape, index)
    return jax.make_array_from_callback(shape.shape, shape.sharding, fetch)

  return {path: read(path, shape) for path, shape in wanted.items()}


def _part(
  sources: Mapping[tuple[int, ...], tuple[Tensor, int]],
  found: Mapping[str, tuple[str, Entry]],
  shape: jax.ShapeDtypeStruct,
  index: tuple[slice, ...],
) -> np.ndarray:
  """What one device holds of one of our arrays."""
  whole = [s.indices(n) for s, n in zip(index, shape.shape, strict=True)]
  part = np.zeros([stop - start for start, stop, _ in whole], shape.dtype)
  for place, (tensor, number) in sources.items():
    lead = len(place)
    if not all(
      start <= i < stop
      for i, (start, stop, _) in zip(place, whole[:lead], strict=True)
    ):
      continue
    array = safetensors_file.read_array(*found[tensor.name])
    ours = to_ours(tensor, array, shape.shape[lead:])[number]
    inside = tuple(i - whole[d][0] for d, i in enumerate(place))
    part[inside] = ours[tuple(index[lead:])]
  return part
