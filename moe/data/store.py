"""The token store on disk: records, lengths and manifest of one task's split.

A store is a directory <vocabulary directory>/<task>/<split>/ with

  records.array_record  one record per document, in the form of `encode_record`
  lengths.npy           int32, tokens of each record; 1 if it has no `tokens`
  manifest.json         counts, hashes, where the documents came from
  blocks.npy            int32 [blocks, 4], only if records have `block_ids`:
                        record, first token, one past the last, scored tokens

A run also keeps its pack plans, see `moe.data.packing`, in this directory. All
stores in a vocabulary directory share the file vocabulary.model in it. A
mixture has no store, but a file with its tasks and rates:
<vocabulary directory>/<mixture>/mixture.json.
"""

import hashlib
import json
import os
import shutil
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from moe import json_text

FORMAT = 1
RECORDS = 'records.array_record'
LENGTHS = 'lengths.npy'
BLOCKS = 'blocks.npy'
MANIFEST = 'manifest.json'
VOCABULARY = 'vocabulary.model'
MIXTURE = 'mixture.json'

Record = dict[str, np.ndarray]


def encode_record(arrays: Record) -> bytes:
  """Encodes named arrays as bytes, which `decode_record` reads.

  The bytes are the CRC-32 of the rest (uint32), the length of the header
  (uint32), the header, and the arrays one after the other, in C order; numbers
  are little-endian. The header is JSON: a list of [name, dtype, shape].

  Args:
    arrays: name -> array of numbers; a scalar is an array without dims.
  """
  arrays = {
    name: np.asarray(array, np.asarray(array).dtype.newbyteorder('<'))
    for name, array in arrays.items()
  }
  named = [[name, a.dtype.str, a.shape] for name, a in arrays.items()]
  header = json.dumps(named, separators=(',', ':')).encode()
  body = b''.join(
    [len(header).to_bytes(4, 'little'), header]
    + [array.tobytes() for array in arrays.values()]
  )
  return zlib.crc32(body).to_bytes(4, 'little') + body


def decode_record(data: bytes) -> Record:
  """Decodes read-only named arrays; ValueError if the bytes are damaged."""
  body = memoryview(data)[4:]
  if zlib.crc32(body) != int.from_bytes(data[:4], 'little'):
    raise ValueError('the checksum of the record is wrong')
  start = 4 + int.from_bytes(body[:4], 'little')
  arrays = {}
  try:
    for name, dtype, shape in json_text.parse(bytes(body[4:start])):
      count = int(np.prod(shape, dtype=np.int64))
      arrays[name] = np.frombuffer(body, dtype, count, start).reshape(shape)
      start += arrays[name].nbytes
  # A stranger can write any dtype and shape. NumPy raises errors of many kinds.
  except Exception as error:
    raise ValueError(f'the header of the record is wrong: {error}') from error
  return arrays


def file_sha256(path: str | os.PathLike) -> str:
  """SHA-256 of a file, in hexadecimal."""
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()


def write_store(
  directory: str | os.PathLike,
  records: Iterable[Record],
  manifest_fn: Callable[[], dict],
):
  """Writes a store whole or not at all; it replaces an existing store.

  Args:
    directory: directory of the store.
    records: the records, in the order of their numbers.
    manifest_fn: gives the rest of the manifest; called after the last record.

  Raises:
    ValueError: if there is no record, a block has a gap, or the disk has no
      room for the records.
  """
  directory = os.path.abspath(directory)
  temporary = directory + '.tmp'
  shutil.rmtree(temporary, ignore_errors=True)
  os.makedirs(temporary)
  try:
    lengths, blocks, content_sha256 = _write_records(
      os.path.join(temporary, RECORDS), records
    )
    if not lengths:
      raise ValueError(
        f'The store {directory} must have at least one document, got none:'
        ' check the files of the task.'
      )
    names = [RECORDS, LENGTHS]
    np.save(os.path.join(temporary, LENGTHS), np.array(lengths, np.int32))
    if blocks:
      np.save(os.path.join(temporary, BLOCKS), np.array(blocks, np.int32))
      names.append(BLOCKS)
    manifest = {
      'format': FORMAT,
      'records': len(lengths),
      'tokens': sum(lengths),
      'content_sha256': content_sha256,
      'files': {
        name: {
          'bytes': os.path.getsize(os.path.join(temporary, name)),
          'sha256': file_sha256(os.path.join(temporary, name)),
        }
        for name in names
      },
      **manifest_fn(),
    }
    with open(os.path.join(temporary, MANIFEST), 'w') as f:
      json.dump(manifest, f, indent=2, ensure_ascii=False)
    shutil.rmtree(directory, ignore_errors=True)
    os.rename(temporary, directory)
  except BaseException:
    shutil.rmtree(temporary, ignore_errors=True)
    raise


def _write_records(
  path: str, records: Iterable[Record]
) -> tuple[list[int], list[tuple[int, ...]], str]:
  """Writes records; returns lengths, blocks and the hash of the bytes."""
  # `array_record`, a C++ library, is imported here and below, because a program
  # that reads and writes no records does not need it.
  from array_record.python import array_record_module

  lengths, blocks, content = [], [], hashlib.sha256()
  # Each record is a separate chunk. So damage to one record leaves the others
  # readable, and reading a record at random reads no other one.
  writer = array_record_module.ArrayRecordWriter(
    path, 'group_size:1,uncompressed'
  )
  try:
    for record in records:
      data = encode_record(record)
      content.update(len(data).to_bytes(8, 'little') + data)
      blocks += [(len(lengths), *span) for span in _block_spans(record)]
      lengths.append(_length(record))
      _or_no_room(writer.write, data)
  finally:
    _or_no_room(writer.close)
  return lengths, blocks, content.hexdigest()


def _length(record: Record) -> int:
  """Number of tokens of a record; 1 if it has none, like a picture."""
  return record['tokens'].size if 'tokens' in record else 1


def _block_spans(record: Record) -> list[tuple[int, int, int]]:
  """(first token, one past the last, scored tokens) of each block.

  Raises:
    ValueError: if a block has a gap. Tokens of a block see each other. So the
      part before the gap would see the gap's tokens through the part after it.
  """
  if 'block_ids' not in record:
    return []
  block_ids, spans = record['block_ids'], []
  for number in np.unique(block_ids[block_ids > 0]):
    places = np.flatnonzero(block_ids == number)
    first, end = int(places[0]), int(places[-1]) + 1
    if end - first != places.size:
      raise ValueError(
        f'The tokens of a block must be neighbours, got block {number} at'
        f' {places.tolist()[:10]}: give each part a number of its own.'
      )
    weights = record.get('loss_weights', np.ones(block_ids.size, np.uint8))
    spans.append((first, end, int(np.count_nonzero(weights[first:end]))))
  return sorted(spans)


def _or_no_room(write_fn: Callable, *args: bytes):
  """Calls a function that writes; its RuntimeError becomes a ValueError."""
  try:
    write_fn(*args)
  except RuntimeError as error:
    raise ValueError(
      f'A token store must be written whole, got {error}: make room on the'
      ' disk, or name another cache directory.'
    ) from error


def is_store(directory: str | os.PathLike) -> bool:
  """Whether a directory holds a finished store."""
  return os.path.isfile(os.path.join(directory, MANIFEST))


def find_stores(
  vocabulary_dir: str | os.PathLike, name: str, split: str
) -> tuple[list[str], list[float]]:
  """The stores of a task or mixture, for `moe.data.reader.Reader`.

  Args:
    vocabulary_dir: directory of the vocabulary and its stores.
    name: name of the task or mixture.
    split: name of the split; tasks of a mixture without it are left out.

  Returns:
    (directories, rates).

  Raises:
    ValueError: if a store is missing, or if no task of a mixture has the split.
  """
  rates = {name: 1.0}
  path = os.path.join(vocabulary_dir, name, MIXTURE)
  if os.path.isfile(path):
    with open(path) as f:
      mixture = json_text.parse(f.read())
    if split not in mixture['splits']:
      raise ValueError(
        f'The split of {name} must be one of {", ".join(mixture["splits"])},'
        f' got {split!r}.'
      )
    rates = {task: mixture['rates'][task] for task in mixture['splits'][split]}
  dirs = [os.path.join(vocabulary_dir, task, split) for task in rates]
  missing = [directory for directory in dirs if not is_store(directory)]
  if missing:
    raise ValueError(
      f'The token store {missing[0]} must be there, got none: make it with'
      f' `python -m launch.data cache {name}`.'
    )
  return dirs, list(rates.values())


class Store:
  """Reads the records of a store by number, from any thread.

  Attributes:
    directory: directory of the store.
    manifest: content of the store's manifest.json.
    lengths: int32 [records], tokens of each record.
    blocks: int32 [blocks, 4], the content of blocks.npy; [0, 4] without it.
    bytes_read: bytes of the records that `read` has read so far. A call adds
      nothing if the reader fails on a record.
  """

  def __init__(self, directory: str | os.PathLike):
    """Opens the manifest and the lengths; the first read opens the records.

    Raises:
      ValueError: if there is no finished, sound store of this version.
    """
    self.directory = os.fspath(directory)
    if not is_store(self.directory):
      raise ValueError(
        f'A token store must be at {self.directory}, got no {MANIFEST} there:'
        ' make it with `python -m launch.data cache`.'
      )
    try:
      with open(os.path.join(self.directory, MANIFEST)) as f:
        self.manifest = json_text.parse(f.read())
      if self.manifest['format'] != FORMAT:
        raise ValueError(f'format {self.manifest["format"]}, not {FORMAT}')
      self.lengths = np.load(os.path.join(self.directory, LENGTHS))
      if self.lengths.shape != (self.manifest['records'],):
        raise ValueError(
          f'{self.manifest["records"]} records but {self.lengths.size} lengths'
        )
      self.blocks = np.zeros((0, 4), np.int32)
      if BLOCKS in self.manifest.get('files', ()):
        blocks = np.load(os.path.join(self.directory, BLOCKS))
        self.blocks = blocks.reshape(-1, 4)
    # For damaged files, NumPy raises errors of many kinds.
    except Exception as error:
      raise ValueError(
        f'The token store {self.directory} must be complete and of this'
        f' version, got {error!r}: delete it and make it again with `python -m'
        ' launch.data cache`.'
      ) from error
    self.bytes_read = 0
    self._lock = threading.Lock()
    self._reader = None

  def hold(self) -> 'Store':
    """Opens the records too, and returns the store.

    A new version of the store then has no effect, since an open file keeps its
    content when another file replaces it.

    Raises:
      ValueError: if the records are missing, or if the store was made again
        after its manifest was read.
    """
    self._open()
    before, now = self.manifest, Store(self.directory).manifest
    if before['content_sha256'] != now['content_sha256']:
      raise ValueError(
        f'The token store {self.directory} must stay as it is while it is'
        ' opened, and was made again: run the command again.'
      )
    return self

  @property
  def vocabulary_path(self) -> str:
    """File of the vocabulary that made the tokens."""
    stores = os.path.dirname(os.path.abspath(self.directory))
    return os.path.join(os.path.dirname(stores), VOCABULARY)

  def read(
    self,
    indices: Sequence[int],
    on_error: Callable[[int, Exception], None] | None = None,
  ) -> list[Record | None]:
    """Reads records by number.

    Args:
      indices: numbers in [0, records).
      on_error: called with number and error for each record that cannot be
        read. Without `on_error` the first such record raises.

    Returns:
      For each index a record (a dict of read-only arrays), or None if the
      record cannot be read.

    Raises:
      ValueError: if the file or, without `on_error`, a record is damaged.
    """
    reader = self._open()
    indices = [int(index) for index in indices]
    try:
      data = reader.read(indices) if indices else []
    except (RuntimeError, IndexError):
      # One bad record makes the whole read fail, so we read one by one below.
      data = [None] * len(indices)
    with self._lock:
      self.bytes_read += sum(len(datum or b'') for datum in data)
    return [
      self._decoded(index, datum, on_error)
      for index, datum in zip(indices, data, strict=True)
    ]

  def _open(self):
    from array_record.python import array_record_module

    with self._lock:
      if self._reader is None:
        path = os.path.join(self.directory, RECORDS)
        try:
          reader = array_record_module.ArrayRecordReader(path)
          num_records = reader.num_records()
        except RuntimeError as error:
          num_records = error
        # A file that was cut short may still open, but has no records.
        if num_records != self.lengths.size:
          raise ValueError(
            f'{path} must have {self.lengths.size} records, got {num_records}:'
            ' delete the store and make it again with `python -m launch.data'
            ' cache`.'
          )
        self._reader = reader
    return self._reader

  def _decoded(
    self,
    index: int,
    data: bytes | None,
    on_error: Callable[[int, Exception], None] | None,
  ) -> Record | None:
    """Decodes the record in `data`, or reads it first if `data` is None."""
    try:
      if data is None:
        data = self._reader.read([index])[0]
      record = decode_record(data)
      if _length(record) != self.lengths[index]:
        raise ValueError('the record is not as long as lengths.npy says')
      return record
    except (RuntimeError, ValueError, KeyError, TypeError, IndexError) as error:
      if on_error is not None:
        on_error(index, error)
        return None
      raise ValueError(
        f'Record {index} of {os.path.join(self.directory, RECORDS)} must be'
        f' readable, got {error}: delete the store and make it again.'
      ) from error
