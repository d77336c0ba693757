"""Writes stores of image codes; a frozen tokenizer encodes the pictures."""

import os
import pathlib
from collections.abc import Iterator, Mapping

import numpy as np

from moe import atomic_files
from moe.data.pictures import picture_batches
from moe.data.store import Record, Store, write_store
from moe.runs.image_tokenizer import ImageTokenizer
from moe.runs.run import IMAGE_TOKENIZER

# Name of the Python module that declares the tasks of the stores.
MODULE = 'picture_tasks.py'
_MODULE_TEXT = '''"""Tasks of the codes here; name this file in TASK_MODULES."""

import pathlib

from tasks.pictures import code_tasks

code_tasks.add(pathlib.Path(__file__).parent)
'''
_CHUNK = 256


def encode(
  tokenizer: ImageTokenizer,
  tokenizer_file: str | os.PathLike,
  pictures: Mapping[str, Mapping[str, str]],
  directory: str | os.PathLike,
) -> dict[str, int]:
  """Writes the codes of pictures, their tasks, and a copy of the tokenizer.

  Args:
    tokenizer: the frozen tokenizer.
    tokenizer_file: file of the tokenizer.
    pictures: name -> split -> directory of a store of pictures.
    directory: a folder, which is created if it is missing.

  Returns:
    'name/split' -> number of pictures.

  Raises:
    ValueError: if pictures cannot be read, or if the tokenizer needs another
      size.
  """
  root = pathlib.Path(directory)
  counts = {}
  for by_split in pictures.values():
    for split, store_dir in by_split.items():
      store = Store(store_dir)
      target = root / pathlib.Path(store_dir).parent.name / split
      target.parent.mkdir(parents=True, exist_ok=True)
      write_store(
        target, _records(tokenizer, store), lambda: _manifest(tokenizer)
      )
      counts[f'{target.parent.name}/{split}'] = store.lengths.size
  data = pathlib.Path(tokenizer_file).read_bytes()
  atomic_files.write_file(root / IMAGE_TOKENIZER, data)
  atomic_files.write_file(root / MODULE, _MODULE_TEXT)
  return counts


def _manifest(tokenizer: ImageTokenizer) -> dict:
  return {
    'image_tokenizer': tokenizer.sha256,
    'num_codes': tokenizer.num_codes,
    'grid': list(tokenizer.grid),
  }


def _records(tokenizer: ImageTokenizer, store: Store) -> Iterator[Record]:
  dtype = np.uint16 if tokenizer.num_codes <= 1 << 16 else np.int32
  shape = (tokenizer.pixels, tokenizer.pixels)
  first = 0
  for batch in picture_batches(store, _CHUNK, shape):
    count = int(np.count_nonzero(batch['weights']))
    codes = tokenizer.encode(batch['pictures'][:count]).astype(dtype)
    records = store.read(np.arange(first, first + count))
    for code, record in zip(codes, records, strict=True):
      yield {'tokens': code, 'facts': record['facts']}
    first += count
