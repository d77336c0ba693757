"""Writes stores of image codes; a frozen tokenizer encodes the pictures."""

import os
import pathlib
import shlex
from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from moe import atomic_files
from moe.data.pictures import JUDGE, picture_batches
from moe.data.store import Record, Store, write_store
from moe.modalities import image
from moe.modalities.ids import PATCHES
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
# Tokens of the shortest row of a run, and the room for a sentence in a row.
_LEAST_LENGTH, _SENTENCE = 256, 64


def encode(
  tokenizer: ImageTokenizer,
  tokenizer_file: str | os.PathLike,
  pictures: Mapping[str, Mapping[str, str]],
  directory: str | os.PathLike,
  has_patches: bool = False,
) -> dict[str, int]:
  """Writes the codes of pictures, their tasks, and a copy of the tokenizer.

  Held-out pictures are written with their pixels, for the report of a run.

  Args:
    tokenizer: the frozen tokenizer.
    tokenizer_file: file of the tokenizer.
    pictures: name -> split -> directory of a store of pictures.
    directory: a folder, which is created if it is missing.
    has_patches: whether the pixels at each code's place are written, too, for
      models that read them in place of the codes.

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
      if split == JUDGE:
        continue
      store = Store(store_dir)
      target = root / pathlib.Path(store_dir).parent.name / split
      target.parent.mkdir(parents=True, exist_ok=True)
      made = _records(tokenizer, store, split != 'train', has_patches)
      write_store(target, made, lambda: _manifest(tokenizer, has_patches))
      counts[f'{target.parent.name}/{split}'] = store.lengths.size
  data = pathlib.Path(tokenizer_file).read_bytes()
  atomic_files.write_file(root / IMAGE_TOKENIZER, data)
  atomic_files.write_file(root / MODULE, _MODULE_TEXT)
  return counts


def run_flags(
  tokenizer: ImageTokenizer,
  directory: str | os.PathLike,
  counts: Iterable[str],
  has_patches: bool,
) -> str:
  """Flags of `launch.train` for a run that draws and describes the pictures.

  Args:
    tokenizer: the frozen tokenizer.
    directory: the folder that `encode` has written.
    counts: the result of `encode`.
    has_patches: whether a run reads patches in place of codes.
  """
  root = pathlib.Path(directory)
  one, *more = sorted({name.rpartition('/')[0] for name in counts})
  read = 'ReadPatches' if has_patches else 'DropCondition'
  of_task = {}
  for name in (one, *more):
    of_task |= {f'draw_{name}': 'DropCondition', f'describe_{name}': read}
  transforms = [f"('{t}', @transforms.{c}())" for t, c in of_task.items()]
  values = {
    'TASK_MODULES': repr((str(root / MODULE),)),
    'IMAGE_TOKENIZER': repr(str(root / IMAGE_TOKENIZER)),
    'TASK': repr('pictures' if more else f'{one}_both'),
    'EVAL_TASKS': repr(tuple(of_task)),
    'TRANSFORMS': f'({", ".join(transforms)})',
    **_sizes(tokenizer, has_patches),
  }
  flags = (f'--gin.{name}={text}' for name, text in values.items())
  return ' \\\n'.join(map(shlex.quote, flags))


def _sizes(
  tokenizer: ImageTokenizer, has_patches: bool
) -> dict[str, tuple | int]:
  """Macros of a run whose pictures come from this tokenizer."""
  height, width = tokenizer.grid
  codes = height * width
  # A row has room for a picture and a sentence, and for several small pictures.
  length = max(_LEAST_LENGTH, -(-(codes + _SENTENCE) // 64) * 64)
  found = {
    'CODE_LEVELS': tokenizer.levels,
    'NUM_CODES': tokenizer.num_codes,
    'EXTRA_TABLES': (('row', height + 1), ('column', width + 1)),
    'LONGEST_BLOCK': codes,
    'SEQUENCE_LENGTH': length,
    'GROUP_SIZE': 4 * length,
  }
  if has_patches:
    found['PATCH_VALUES'] = tokenizer.pixels**2 // codes * 3
  return found


def _manifest(tokenizer: ImageTokenizer, has_patches: bool) -> dict:
  return {
    PATCHES: has_patches,
    'image_tokenizer': tokenizer.sha256,
    'num_codes': tokenizer.num_codes,
    'grid': list(tokenizer.grid),
  }


def _records(
  tokenizer: ImageTokenizer, store: Store, has_pixels: bool, has_patches: bool
) -> Iterator[Record]:
  dtype = np.uint16 if tokenizer.num_codes <= 1 << 16 else np.int32
  shape = (tokenizer.pixels, tokenizer.pixels)
  first = 0
  for batch in picture_batches(store, _CHUNK, shape):
    count = int(np.count_nonzero(batch['weights']))
    codes = tokenizer.encode(batch['pictures'][:count]).astype(dtype)
    records = store.read(np.arange(first, first + count))
    patches = image.patches_of(batch['pictures'][:count], tokenizer.grid)
    for code, patch, record in zip(codes, patches, records, strict=True):
      made = {'tokens': code, 'facts': record['facts']}
      if has_pixels:
        made['pixels'] = record['pixels']
      if has_patches:
        made[PATCHES] = patch
      yield made
    first += count
