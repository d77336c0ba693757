"""Reads and writes safetensors files: a JSON header, then the arrays' bytes.

Source of the format: https://huggingface.co/docs/safetensors. A file may come
from an unknown person. So the reader checks the whole header first: its length,
names, dtypes and shapes, and that the arrays fill the rest of the file without
gap or overlap. No code from a file is ever run.
"""

import json
import math
import os
import stat
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from moe import atomic_files, json_text

# The format's limit. An attacker could use a longer header to fill our memory.
MAX_HEADER_BYTES = 100_000_000
_MAX_DIMS = 8
_METADATA = '__metadata__'
# Bytes of an element. A header may name all these dtypes, but we read only
# arrays of `DTYPES`.
_ITEM_BYTES = {
  'BOOL': 1, 'U8': 1, 'I8': 1, 'F8_E4M3': 1, 'F8_E5M2': 1,
  'U16': 2, 'I16': 2, 'F16': 2, 'BF16': 2,
  'U32': 4, 'I32': 4, 'F32': 4,
  'U64': 8, 'I64': 8, 'F64': 8,
}  # fmt: skip
DTYPES = {
  'F32': np.dtype('<f4'),
  'F16': np.dtype('<f2'),
  'BF16': np.dtype(jnp.bfloat16),
}


class Entry(NamedTuple):
  """Dtype, shape and place of an array in a file.

  Attributes:
    dtype: the format's name of the dtype, such as 'BF16'.
    shape: shape of the array.
    start: index of the array's first byte in the file.
    num_bytes: number of bytes of the array.
  """

  dtype: str
  shape: tuple[int, ...]
  start: int
  num_bytes: int


class ToWrite(NamedTuple):
  """An array to write; its values are computed only while it is written.

  Attributes:
    name: name of the array in the file.
    dtype: dtype of the array in the file, a name of `DTYPES`.
    shape: shape of the array.
    make: computes the array, in any float dtype.
  """

  name: str
  dtype: str
  shape: tuple[int, ...]
  make: Callable[[], np.ndarray]

  @property
  def num_bytes(self) -> int:
    """Bytes in the file."""
    return math.prod(self.shape) * _ITEM_BYTES[self.dtype]


def read_header(path: str | os.PathLike) -> dict[str, Entry]:
  """Reads and checks a file's header: name -> entry, in the order of the bytes.

  Raises:
    ValueError: if the file does not follow the format; the message says what is
      wrong.
    OSError: if the file cannot be read.
  """
  try:
    with open(path, 'rb') as f:
      status = os.fstat(f.fileno())
      if not stat.S_ISREG(status.st_mode):
        raise ValueError('a path that is no regular file')
      first = f.read(8)
      length = int.from_bytes(first, 'little')
      if len(first) < 8 or not 2 <= length <= MAX_HEADER_BYTES:
        raise ValueError(f'a header of {length} bytes')
      header = f.read(length)
      if len(header) < length:
        raise ValueError('a file that ends within its header')
    return _checked(header, 8 + length, status.st_size)
  except ValueError as error:
    raise ValueError(
      f'{path} must be a sound safetensors file, got {error}: fetch it again.'
    ) from error


def _checked(header: bytes, start: int, size: int) -> dict[str, Entry]:
  """Checks a header and returns its entries; arrays begin at byte `start`."""
  if not header.startswith(b'{'):
    raise ValueError('a header that does not begin with {')
  parsed = json_text.parse(header, object_pairs_hook=_without_repetition)
  metadata = parsed.pop(_METADATA, {})
  if not _is_text_to_text(metadata):
    raise ValueError(f'{_METADATA} that does not map text to text')
  entries = {n: _entry(n, fields, start) for n, fields in parsed.items()}
  order = sorted(
    entries, key=lambda n: (entries[n].start, entries[n].num_bytes)
  )
  expected = start
  for name in order:
    if entries[name].start != expected:
      raise ValueError(f'a gap or an overlap before {name!r}')
    expected += entries[name].num_bytes
  if expected != size:
    raise ValueError(f'{size} bytes instead of {expected} by its header')
  return {name: entries[name] for name in order}


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
  found = dict(pairs)
  if len(found) < len(pairs):
    raise ValueError('a name that occurs twice in its header')
  return found


def _is_text_to_text(value: Any) -> bool:
  return isinstance(value, dict) and all(
    isinstance(text, str) for text in value.values()
  )


def _entry(name: str, fields: Any, start: int) -> Entry:
  """Checks and returns one entry; offsets in the header count from `start`."""
  keys = {'dtype', 'shape', 'data_offsets'}
  if not isinstance(fields, dict) or set(fields) != keys:
    raise ValueError(f'{name!r} without dtype, shape and data_offsets')
  dtype, shape, offsets = (
    fields[k] for k in ('dtype', 'shape', 'data_offsets')
  )
  if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
    raise ValueError(f'{name!r} of an unknown dtype')
  if not _are_counts(shape) or len(shape) > _MAX_DIMS:
    raise ValueError(f'{name!r} of an impossible shape')
  if not _are_counts(offsets) or len(offsets) != 2:
    raise ValueError(f'{name!r} with impossible offsets')
  num_bytes = math.prod(shape) * _ITEM_BYTES[dtype]
  if offsets[1] - offsets[0] != num_bytes:
    raise ValueError(f'{name!r} whose shape and offsets differ')
  return Entry(dtype, tuple(shape), start + offsets[0], num_bytes)


def _are_counts(values: Any) -> bool:
  return isinstance(values, list) and all(
    type(value) is int and 0 <= value < 2**63 for value in values
  )


def read_array(path: str | os.PathLike, entry: Entry) -> np.ndarray:
  """Reads one array, whose entry `read_header` has returned.

  Raises:
    ValueError: if the dtype is not in `DTYPES`, or if the file has become
      shorter.
  """
  if entry.dtype not in DTYPES:
    raise ValueError(
      f'{path} has an array of {entry.dtype}, but the dtype of weights must be'
      f' one of {", ".join(DTYPES)}: convert the file first.'
    )
  content = bytearray(entry.num_bytes)
  with open(path, 'rb') as f:
    f.seek(entry.start)
    if f.readinto(content) < entry.num_bytes:
      raise ValueError(f'{path} has become shorter: fetch it again.')
  return np.frombuffer(content, DTYPES[entry.dtype]).reshape(entry.shape)


def write(path: str | os.PathLike, arrays: Iterable[ToWrite]) -> None:
  """Writes a file atomically, one array at a time.

  The same arrays always give the same bytes. Arrays with wide dtypes come
  first, so that every array is aligned.
  """
  arrays = sorted(arrays, key=lambda a: -_ITEM_BYTES[a.dtype])
  header, end = {_METADATA: {'format': 'pt'}}, 0
  for array in arrays:
    offsets = [end, end + array.num_bytes]
    header[array.name] = {
      'dtype': array.dtype,
      'shape': list(array.shape),
      'data_offsets': offsets,
    }
    end = offsets[1]
  text = json.dumps(header, separators=(',', ':')).encode()
  text += b' ' * (-len(text) % 8)
  with atomic_files.replacing(path) as f:
    f.write(len(text).to_bytes(8, 'little') + text)
    for array in arrays:
      made = array.make()
      assert made.shape == array.shape, (array.name, made.shape, array.shape)
      contiguous = np.ascontiguousarray(made, dtype=DTYPES[array.dtype])
      f.write(contiguous.reshape(-1).view(np.uint8))
