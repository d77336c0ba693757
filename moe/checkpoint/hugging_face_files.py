"""Reads and writes files of weights in Hugging Face's formats.

Both directions handle one array of a file at a time, so the host never holds
more of the model than this array.
"""

import functools
import os
import re
from collections.abc import Iterable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from moe import atomic_files, json_text
from moe.checkpoint import safetensors_file
from moe.checkpoint.hugging_face import Tensor, to_ours, to_theirs
from moe.checkpoint.safetensors_file import Entry, ToWrite

SINGLE = 'model.safetensors'
INDEX = 'model.safetensors.index.json'
_MAX_INDEX_BYTES = 100_000_000

# Name of an array in the files -> (file, entry in the file's header).
Found = Mapping[str, tuple[str, Entry]]
# The sources of one array of ours: `Tensor.place` -> (the file's array that
# holds this part, index of our array in `Tensor.paths`).
Sources = Mapping[tuple[int, ...], tuple[Tensor, int]]


def save(
  directory: str,
  tensors: Sequence[Tensor],
  arrays: Mapping[str, jax.Array],
  dtype: str,
  shard_bytes: int,
) -> list[str]:
  """Writes arrays as safetensors: one file, or several with an index.

  Args:
    directory: directory of the new files.
    tensors: the arrays to write, from `plan`.
    arrays: our arrays by path, on any devices. The host fetches one part after
      another.
    dtype: dtype of the weights, a name of `safetensors_file.DTYPES`. Router
      biases stay float32, because rounded biases can change which experts are
      chosen.
    shard_bytes: largest size of a file. A larger array gets its own file.

  Returns:
    Names of the safetensors files.
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


def find(directory: str) -> Found:
  """Finds every array in the files of a directory, by name.

  Raises:
    ValueError: if a file is damaged, or if the index does not agree with the
      arrays in the files.
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
  """Reads an index: name of an array -> name of a file in its directory."""
  with open(index, 'rb') as f:
    content = f.read(_MAX_INDEX_BYTES + 1)
  try:
    if len(content) > _MAX_INDEX_BYTES:
      raise ValueError(f'more than {_MAX_INDEX_BYTES} bytes')
    weight_map = json_text.parse(content)['weight_map']
    for file in set(weight_map.values()):
      # A name with a slash could make us open a file outside the directory.
      if not re.fullmatch(r'[\w-][\w.-]*\.safetensors', file):
        raise ValueError(f'the file name {file!r}')
  except (ValueError, TypeError, KeyError, AttributeError) as e:
    raise ValueError(
      f'{index} must be an index of safetensors files, got {e!r}: fetch it'
      ' again.'
    ) from e
  return weight_map


def is_fused(names: Iterable[str]) -> bool:
  """Whether an array of the files holds all experts of a layer."""
  return any(name.endswith('.mlp.experts.down_proj') for name in names)


def check(directory: str, tensors: Sequence[Tensor], found: Found) -> None:
  """Raises ValueError unless the files have exactly the arrays of `plan`."""
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
  found: Found,
  wanted: Mapping[str, jax.ShapeDtypeStruct],
) -> dict[str, jax.Array]:
  """Reads files into our arrays, each device's part separately.

  Args:
    tensors: the arrays of the files, from `plan`; `check` has accepted them.
    found: where the arrays lie, from `find`.
    wanted: path -> shape and sharding of our array. An array that the files
      lack becomes zeros; it is `TRANSIENT` state, which is 0 between training
      steps.
  """
  sources = {}
  for tensor in tensors:
    for part, path in enumerate(tensor.paths):
      sources.setdefault(path, {})[tensor.place] = tensor, part

  return {
    path: _read(sources.get(path, {}), found, shape)
    for path, shape in wanted.items()
  }


def _read(
  sources: Sources, found: Found, shape: jax.ShapeDtypeStruct
) -> jax.Array:
  """Reads one of our arrays onto its devices.

  Each device fills its own part step by step. So the host holds only one array
  of a file at a time.
  """
  parts = []
  places = shape.sharding.addressable_devices_indices_map(shape.shape)
  for device, index in places.items():
    whole = [s.indices(n) for s, n in zip(index, shape.shape, strict=True)]
    sizes = [stop - start for start, stop, _ in whole]
    part = jnp.zeros(sizes, shape.dtype, device=device)
    for place, (tensor, number) in sources.items():
      lead = len(place)
      inside = [
        i - start for i, (start, _, _) in zip(place, whole, strict=False)
      ]
      if not all(0 <= i < n for i, n in zip(inside, sizes, strict=False)):
        continue
      array = safetensors_file.read_array(*found[tensor.name])
      ours = to_ours(tensor, array, shape.shape[lead:])[number]
      piece = ours[tuple(index[lead:])].astype(shape.dtype)
      piece = piece.reshape((1,) * lead + piece.shape)
      start = inside + [0] * (len(sizes) - lead)
      part = _put(
        part, jax.device_put(piece, device), np.array(start, np.int32)
      )
    parts.append(part)
  return jax.make_array_from_single_device_arrays(
    shape.shape, shape.sharding, parts
  )


@functools.partial(jax.jit, donate_argnums=0)
def _put(part: jax.Array, piece: jax.Array, start: jax.Array) -> jax.Array:
  """Writes `piece` into a device's part, beginning at the index `start`."""
  return jax.lax.dynamic_update_slice(part, piece, list(start))
