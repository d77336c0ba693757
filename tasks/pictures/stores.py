"""Makes stores of decoded pictures, so that each source is decoded only once.

A store lies in <cache_dir>/pictures/<name>/<split>. Its records hold `pixels`,
uint8 [Y, X, 3], and `facts`, JSON in UTF-8 with the caption and the other facts
of the source.
"""

import hashlib
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from moe.atomic_files import write_json
from moe.data.store import Record, Store, is_store, write_store
from tasks import origin
from tasks.pictures import shapes, sources

_logger = logging.getLogger(__name__)

QUARANTINE = 'quarantine.json'


class PictureSource(Protocol):
  """A source of pictures; tasks/pictures/sources.py has some."""

  splits: Sequence[str]
  size: int

  def records(self, split: str) -> Iterator[dict[str, Any]]:
    """Pictures of a split."""


# Name of a source -> function that makes it.
SOURCES: dict[str, Callable[[], PictureSource]] = {
  'fashion_mnist': sources.FashionMnist,
  'shapes': shapes.Shapes,
  'emoji': sources.Emoji,
  'hanzi': sources.Hanzi,
}


def source_of(name: str, size: int) -> PictureSource:
  """Makes the source with this name.

  Args:
    name: a key of `SOURCES`, or a folder of a user, which has a slash in its
      name.
    size: pixels of height and width.

  Raises:
    ValueError: if there is no such source.
  """
  if '/' in name:
    return sources.Folder(name, size)
  if name not in SOURCES:
    raise ValueError(
      f'PICTURES must be of {", ".join(SOURCES)} or a folder such as'
      f' ./my_pictures, got {name!r}: change the name.'
    )
  return SOURCES[name](size=size)


def prepare(
  names: Sequence[str], size: int, cache_dir: str | os.PathLike
) -> dict[str, dict[str, str]]:
  """Makes the stores that are missing or out of date.

  Args:
    names: names of the sources, as for `source_of`.
    size: pixels of height and width.
    cache_dir: directory of all stores.

  Returns:
    Name -> split -> directory of the store.

  Raises:
    ValueError: if a source is unknown or its files cannot be used.
  """
  found = {name: source_of(name, size) for name in names}
  dirs = {}
  for name, source in found.items():
    base = os.path.join(cache_dir, 'pictures', _folder_name(name, size))
    dirs[name] = {}
    for split in source.splits:
      directory = os.path.join(base, split)
      if _is_outdated(directory):
        _write(name, source, split, directory)
      if is_store(directory):
        dirs[name][split] = directory
  return dirs


def _folder_name(name: str, size: int) -> str:
  """Name of a source's folder in the cache.

  For a folder of a user it has the last part of the path, and a hash of the
  whole path, since two folders may have the same last part.
  """
  if '/' not in name:
    return f'{name}_{size}'
  path = pathlib.Path(name).expanduser().absolute()
  digest = hashlib.sha256(str(path).encode()).hexdigest()
  return f'{path.name}_{digest[:8]}_{size}'


def _is_outdated(directory: str) -> bool:
  if not is_store(directory):
    return True
  recorded = Store(directory).manifest.get('origin')
  return recorded is None or bool(origin.changed(recorded))


def _write(
  name: str, source: PictureSource, split: str, directory: str
) -> None:
  files_of = getattr(source, 'files_of', lambda split: [])
  made_of = origin.record(
    [*files_of(split), *origin.code(type(source).__module__, __name__)]
  )

  def records() -> Iterator[Record]:
    for record in source.records(split):
      facts = {'caption': record['caption'], **record['facts']}
      encoded = json.dumps(facts, ensure_ascii=False).encode()
      yield {
        'pixels': record['picture'],
        'facts': np.frombuffer(encoded, np.uint8),
      }

  made = records()
  first = next(made, None)
  # In a small folder of a user, perhaps no picture is held out. Then no store
  # is made for the split.
  if first is None and split != 'train':
    return
  first = [] if first is None else [first]
  manifest = {'task': name, 'split': split, 'origin': made_of}
  os.makedirs(os.path.dirname(directory), exist_ok=True)
  write_store(directory, itertools.chain(first, made), lambda: manifest)
  bad = getattr(source, 'quarantine', [])
  if bad:
    write_json(os.path.join(directory, QUARANTINE), bad)
  count = Store(directory).manifest['records']
  _logger.info(f'{name}/{split}: {count:,} pictures; quarantined {len(bad)}')
