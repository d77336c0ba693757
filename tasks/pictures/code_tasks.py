"""Declares tasks of encoded pictures: drawing and describing.

`python -m launch.images encode` writes a folder with a store of codes for each
source of pictures, and a module that calls `add` for this folder. Each source
gets two tasks. `draw_NAME` reads a sentence and predicts the codes one by one.
`describe_NAME` reads the codes as a block and predicts the sentence. The
mixture `NAME_both` has both tasks with almost equal rates. If there are several
sources, the mixture `pictures` has the tasks of all of them.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from moe.data.records import Feature
from moe.data.store import LENGTHS, MANIFEST, RECORDS, Store, is_store
from moe.modalities.ids import PATCHES
from tasks import codes, registry

# Name of the mixture of all sources, if there are several.
ALL = 'pictures'
# Entry of a store's manifest: the SHA-256 of the image tokenizer.
TOKENIZER = 'image_tokenizer'
# Number of records that are read at a time.
_CHUNK = 256


@dataclasses.dataclass(frozen=True)
class CodeSource:
  """A source of encoded pictures.

  Attributes:
    directory: a folder with a store for each split.
  """

  directory: str

  @property
  def splits(self) -> Sequence[str]:
    """Names of the splits."""
    root = pathlib.Path(self.directory)
    return tuple(sorted(p.name for p in root.iterdir() if is_store(p)))

  def records(self, split: str) -> Iterator[dict[str, Any]]:
    """{'codes', 'caption', ...} of each picture, in the order of the store.

    Raises:
      ValueError: at once, if there is no such store.
    """
    return _records(Store(os.path.join(self.directory, split)))

  def files_of(self, split: str) -> list[str]:
    """The files of a split, for `tasks.origin`."""
    names = (RECORDS, LENGTHS, MANIFEST)
    return [os.path.join(self.directory, split, name) for name in names]


def _records(store: Store) -> Iterator[dict[str, Any]]:
  for first in range(0, store.lengths.size, _CHUNK):
    indices = np.arange(first, min(first + _CHUNK, store.lengths.size))
    for record in store.read(indices):
      yield {
        **json.loads(record['facts'].tobytes()),
        'codes': record['tokens'].astype(np.int32),
        PATCHES: record.get(PATCHES),
      }


def drawing(record: dict[str, Any]) -> tuple[str, np.ndarray]:
  """(inputs, targets) of `draw_NAME`: the sentence as a line, and the codes."""
  return record['caption'] + '\n', record['codes']


def description(record: dict[str, Any]) -> tuple[np.ndarray, str]:
  """(inputs, targets) of `describe_NAME`: the codes, and the sentence."""
  return record['codes'], record['caption']


def description_by_patches(
  record: dict[str, Any],
) -> tuple[np.ndarray, str, np.ndarray]:
  """The document of `describe_NAME` with the pixels of each code's place."""
  return record['codes'], record['caption'], record[PATCHES]


def add(directory: str | os.PathLike) -> list[str]:
  """Declares the tasks of a folder of codes.

  Args:
    directory: the folder that `launch.images encode` has written.

  Returns:
    The names of the mixtures.

  Raises:
    ValueError: if the folder has no codes, or codes of several tokenizers, or
      if the name of a task or mixture is taken.
  """
  root = pathlib.Path(directory).absolute()
  sources = {
    path.name: CodeSource(str(path))
    for path in sorted(root.iterdir())
    if path.is_dir() and CodeSource(str(path)).splits
  }
  manifests = [
    Store(os.path.join(source.directory, split)).manifest
    for source in sources.values()
    for split in source.splits
  ]
  made_by = {(m[TOKENIZER], tuple(m['grid'])) for m in manifests}
  if len(made_by) != 1:
    raise ValueError(
      f'{root} must hold the codes of one tokenizer, got'
      f' {len(made_by) or "none"}: write them again with `python -m'
      ' launch.images encode`.'
    )
  sha256, grid = made_by.pop()
  has_patches = all(manifest.get(PATCHES) for manifest in manifests)
  further = {}
  if has_patches:
    further = {PATCHES: Feature(dtype='uint8', of='inputs')}
  for name, source in sources.items():
    codes.add_task(
      f'draw_{name}',
      source,
      drawing,
      ('inputs', 'targets'),
      {'targets': Feature('image', tokenizer=sha256, grid=grid)},
    )
    codes.add_task(
      f'describe_{name}',
      source,
      description_by_patches if has_patches else description,
      ('inputs', 'targets', *further),
      {'inputs': Feature('image', True, sha256, grid), **further},
    )
    registry.add_mixture(f'{name}_both', [f'draw_{name}', f'describe_{name}'])
  if len(sources) == 1:
    return [f'{name}_both' for name in sources]
  both = [f'{verb}_{name}' for name in sources for verb in ('draw', 'describe')]
  registry.add_mixture(ALL, both)
  return [*(f'{name}_both' for name in sources), ALL]
