"""Makes stores of decoded pictures, so that each source is decoded only once.

A store lies in <cache_dir>/pictures/<name>_<size>/<split>. Its records hold
`pixels`, uint8 [Y, X, 3], and `facts`, JSON in UTF-8 with the caption and the
other facts of the source.
"""

import itertools
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from moe.data.store import Record, Store
from tasks import origin, source_stores
from tasks.pictures import shapes, sources

_logger = logging.getLogger(__name__)


class PictureSource(Protocol):
  """A source of pictures; see tasks/pictures/sources.py."""

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
  # The end of a folder's name in the cache is a hash of its path.
  if re.fullmatch('.+_[0-9a-f]{8}', name):
    raise ValueError(
      f'--pictures must name your own folder, since {name!r} has only the hash'
      ' of its path: add the flag, such as --pictures ./my_pictures.'
    )
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
  base = os.path.join(cache_dir, 'pictures')
  return source_stores.prepare(found, base, size, _write)


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
    shutil.rmtree(directory, ignore_errors=True)
    return
  first = [] if first is None else [first]
  manifest = {'task': name, 'split': split, 'origin': made_of}
  # The source adds to this list while `write` reads its records.
  bad = getattr(source, 'quarantine', [])
  source_stores.write(directory, itertools.chain(first, made), manifest, bad)
  count = Store(directory).manifest['records']
  _logger.info(f'{name}/{split}: {count:,} pictures; quarantined {len(bad)}')
