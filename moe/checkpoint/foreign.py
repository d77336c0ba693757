"""Checks a checkpoint from an unknown source before anything reads it.

An Orbax directory can contain links to other files of this machine, paths that
lead out of the directory, names of other stores, and arrays or files that
declare more bytes than the memory or the disk has. We inspect every file
without following links, and check every path and size. Nothing is unpickled.

Known attacks: https://github.com/google/flax/issues/5487 and
https://github.com/google/orbax/issues/3375.
"""

import math
import os
import re
import stat
from collections.abc import Iterator
from typing import Any

import numpy as np

from moe import json_text
from moe.checkpoint import integrity, listing

_MAX_FILES, _MAX_FOLDERS_DEEP = 1_000_000, 8
_MAX_JSON_BYTES, _MAX_JSON_DEPTH = 2**26, 64
# Largest ratio of the bytes that the arrays declare to the bytes on the disk.
_MAX_EXPANSION = 64
_MAX_DIMS, _MAX_NODES = 16, 1_000_000
# Files of these types can contain code that runs when a program reads them.
_CODE = ('.gin', '.pkl', '.pickle', '.pt', '.pth', '.npy', '.npz', '.py', '.so')
_JSON = ('_METADATA', '_sharding', '_CHECKPOINT_METADATA', 'metadata')
_JSON += (integrity.NAME, listing.LATE_METRICS)
_JSON += ('.zarray', '.zattrs', 'zarr.json')
# With these keys JSON tells TensorStore to read another store, perhaps one on
# the network. Orbax finds the files of a step by their place alone.
_STORES = {'driver', 'kvstore'}
_BLOCK_BYTES = 512  # The unit of `st_blocks`.


def check(place: str | os.PathLike) -> None:
  """Raises ValueError if a step at a place is not safe to read.

  Args:
    place: directory of a run, of its checkpoints, or of one step.
  """
  directory, step = listing.locate(place)
  if os.path.islink(directory):
    raise ValueError(f'{directory} must be safe to read, but it is a link.')
  for number in listing.steps(directory) if step is None else [step]:
    found = problems(directory / str(number))
    if found:
      raise ValueError(
        f'Step {number} in {directory} must be safe to read, but {found[0]}:'
        ' delete the step, or take a checkpoint that you trust.'
      )


def problems(step_directory: str | os.PathLike) -> list[str]:
  """Reasons not to read a step, one phrase each; [] if it is safe to read.

  Args:
    step_directory: directory of the step, on a local disk.
  """
  root = os.fspath(step_directory)
  if integrity.on_object_store(root):
    return [f'{root} is not on a local disk: copy it here first']
  if os.path.islink(root):
    return [f'{root} is a link']
  try:
    found, num_bytes = _files(root)
    if found:
      return found
    found = [p for path in _json_files(root) if (p := _json_problem(path))]
    return found or list(_array_problems(root, num_bytes))
  # TensorStore raises many kinds of errors; each one means damage.
  except (OSError, ValueError, RuntimeError, NotImplementedError) as error:
    return [f'it cannot be read ({" ".join(str(error).split())[:200]})']


def json_depth(content: bytes) -> int:
  """How deep brackets are nested; Python's parser fails on a large depth."""
  depth = deepest = 0
  for token in re.findall(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', content, re.DOTALL):
    if token in b'[{':
      depth += 1
      deepest = max(deepest, depth)
    elif token in b']}':
      depth -= 1
  return deepest


def _files(root: str) -> tuple[list[str], int]:
  """(problems, bytes of all files on the disk).

  Links, devices, code and files with holes are problems. A hole is a part that
  takes no bytes of the disk: one such file can seem larger than the disk.
  """
  found, num_bytes, num_files, waiting = [], 0, 0, [(root, 0)]
  while waiting:
    folder, depth = waiting.pop()
    if depth > _MAX_FOLDERS_DEEP:
      return [f'{folder} is nested too deep'], 0
    with os.scandir(folder) as entries:
      for entry in entries:
        name = os.path.relpath(entry.path, root)
        status = entry.stat(follow_symlinks=False)
        num_files += 1
        on_disk = _BLOCK_BYTES * status.st_blocks
        num_bytes += min(status.st_size, on_disk)
        if stat.S_ISDIR(status.st_mode):
          waiting.append((entry.path, depth + 1))
        elif not stat.S_ISREG(status.st_mode):
          found.append(f'{name} is a link or a device, not a file')
        elif status.st_nlink > 1:
          found.append(f'{name} is also a file elsewhere (a hard link)')
        elif name.lower().endswith(_CODE):
          found.append(f'{name} is of a kind that can contain code')
        elif on_disk < status.st_size and _has_hole(entry.path):
          found.append(
            f'{name} has {status.st_size:,} bytes, but only {on_disk:,} of them'
            ' are on the disk (a sparse file)'
          )
        if num_files > _MAX_FILES:
          return [*found, f'there are more than {_MAX_FILES:,} files'], 0
  return found, num_bytes


def _has_hole(path: str) -> bool:
  """Whether a part of a file is a hole; a compressed file has none."""
  with open(path, 'rb') as f:
    size = f.seek(0, os.SEEK_END)
    return size > 0 and f.seek(0, os.SEEK_HOLE) < size


def _json_files(root: str) -> Iterator[str]:
  for folder, _, names in os.walk(root):
    for name in names:
      if name in _JSON or os.path.basename(folder) == 'array_metadatas':
        yield os.path.join(folder, name)


def _json_problem(path: str) -> str | None:
  """Why a JSON file is not safe to parse; None if it is safe."""
  if os.path.getsize(path) > _MAX_JSON_BYTES:
    return f'{path} is too large for a record'
  with open(path, 'rb') as f:
    content = f.read()
  if json_depth(content) > _MAX_JSON_DEPTH:
    return f'{path} is nested too deep'
  try:
    parsed = json_text.parse(content)
  except ValueError as error:
    return f'{path} is not JSON ({error})'
  return f'{path} names another store' if _names_store(parsed) else None


def _names_store(parsed: Any) -> bool:
  """Whether a dict in parsed JSON has a key of `_STORES`."""
  waiting = [parsed]
  while waiting:
    entry = waiting.pop()
    if isinstance(entry, dict):
      if _STORES & entry.keys():
        return True
      waiting += entry.values()
    elif isinstance(entry, list):
      waiting += entry
  return False


def _array_problems(root: str, num_bytes: int) -> Iterator[str]:
  """Problems of the arrays: paths out of the directory, and too many bytes."""
  import tensorstore as ts  # The import is slow, and few commands need it.

  state = os.path.join(root, 'state')
  base = {'driver': 'file', 'path': state + '/'}
  for folder, _, names in os.walk(state):
    if 'manifest.ocdbt' in names:
      place = {'driver': 'file', 'path': folder + '/'}
      store = ts.KvStore.open(place).result()
      yield from _path_problems(store)
  if os.path.exists(os.path.join(state, 'manifest.ocdbt')):
    base = {'driver': 'ocdbt', 'base': base}
  arrays, declared = ts.KvStore.open(base).result(), 0
  for key in arrays.list().result():
    if key.rpartition(b'/')[2] in (b'.zarray', b'zarr.json'):
      declared += declared_bytes(arrays.read(key).result().value)
  if declared > _MAX_EXPANSION * max(num_bytes, 1):
    yield (
      f'its arrays declare {declared:,} bytes, but all files have only'
      f' {num_bytes:,}'
    )


def _path_problems(store: Any) -> Iterator[str]:
  """Problems of a TensorStore index: locations outside its directory."""
  import tensorstore as ts  # The import is slow, and few commands need it.

  waiting, seen = [ts.ocdbt.dump(store).result()], set()
  while waiting:
    for location in _locations(waiting.pop()):
      kind, _, place = location.partition(':')
      folder, path = place.split(':')[:2]
      parts = f'{folder}/{path}'.split('/')
      if folder.startswith('/') or path.startswith('/') or '..' in parts:
        yield f'its index names {folder}{path}, which is outside'
      elif kind in ('btreenode', 'versionnode') and location not in seen:
        seen.add(location)
        if len(seen) > _MAX_NODES:
          yield f'its index has more than {_MAX_NODES:,} nodes'
          return
        waiting.append(ts.ocdbt.dump(store, location).result())


def _locations(node: Any) -> Iterator[str]:
  """Every `location` and `indirect_value` in a node of the index."""
  waiting = [node]
  while waiting:
    entry = waiting.pop()
    if isinstance(entry, dict):
      found = [entry.get('location'), entry.get('indirect_value')]
      yield from (value for value in found if isinstance(value, str))
      waiting += entry.values()
    elif isinstance(entry, list | tuple):
      waiting += entry


def declared_bytes(content: bytes) -> int:
  """Number of bytes that an array's Zarr metadata, a JSON text, declares.

  Raises:
    ValueError: if the metadata are too large or no JSON, if they name another
      store, if the shape is no list of at most 16 sizes, if NumPy does not know
      the dtype, or if the array holds Python objects.
  """
  if len(content) > _MAX_JSON_BYTES or json_depth(content) > _MAX_JSON_DEPTH:
    raise ValueError('the metadata of an array are too large')
  entry = json_text.parse(content)
  if _names_store(entry):
    raise ValueError('an array names another store')
  shape = entry.get('shape') if isinstance(entry, dict) else None
  is_shape = isinstance(shape, list) and len(shape) <= _MAX_DIMS
  if not is_shape or not all(type(n) is int and n >= 0 for n in shape):
    raise ValueError(f'an array has the shape {str(shape)[:100]}')
  kind = entry.get('dtype', entry.get('data_type'))
  try:
    size = 2 if kind == 'bfloat16' else np.dtype(kind).itemsize
  except TypeError as error:
    raise ValueError(f'an array has the dtype {str(kind)[:100]}') from error
  if kind != 'bfloat16' and np.dtype(kind).hasobject:
    raise ValueError('an array holds Python objects')
  return math.prod(shape) * size
