"""Makes stores of sources that are not text, such as pictures and proteins.

Each split of a source has its store in <base>/<name>_<setting>/<split>. The
store is made again when its source's files or code have changed.
"""

import hashlib
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from moe.atomic_files import write_json
from moe.data.store import Record, Store, is_store, write_store
from tasks import origin

QUARANTINE = 'quarantine.json'


class Source(Protocol):
  """A source of records, which has a store for each split."""

  splits: Sequence[str]


AnySource = TypeVar('AnySource', bound=Source)


def prepare(
  sources: Mapping[str, AnySource],
  base: str | os.PathLike,
  setting: int,
  make: Callable[[str, AnySource, str, str], None],
) -> dict[str, dict[str, str]]:
  """Makes the stores that are missing or out of date.

  Args:
    sources: name -> source. The name of a user's folder is its path, which
      contains a slash.
    base: directory of all stores of this kind.
    setting: number that the records depend on, such as the pixels of a picture.
    make: is called with (name, source, split, directory) and makes the store in
      this directory. If the split is empty, it may make none.

  Returns:
    Name -> split -> directory of the store.
  """
  dirs = {}
  for name, source in sources.items():
    dirs[name] = {}
    for split in source.splits:
      directory = os.path.join(base, _folder_name(name, setting), split)
      if _is_outdated(directory):
        make(name, source, split, directory)
      if is_store(directory):
        dirs[name][split] = directory
  return dirs


def write(
  directory: str,
  records: Iterable[Record],
  manifest: dict[str, Any],
  bad: Sequence[dict[str, Any]],
) -> None:
  """Writes a store, and `bad` into its directory if records were left out."""
  os.makedirs(os.path.dirname(directory), exist_ok=True)
  write_store(directory, records, lambda: manifest)
  if bad:
    write_json(os.path.join(directory, QUARANTINE), bad)


def _folder_name(name: str, setting: int) -> str:
  """Name of a source's folder in the cache.

  The name for a user's folder has the last part of its path, and a hash of the
  whole path, since two folders may have the same last part. The names of seqio
  tasks are made from it, so a sign that they may not have becomes '_'.
  """
  if '/' not in name:
    return f'{name}_{setting}'
  path = pathlib.Path(name).expanduser().absolute()
  digest = hashlib.sha256(str(path).encode()).hexdigest()
  last = re.sub(r'[^\w.]', '_', path.name)
  return f'{last}_{digest[:8]}_{setting}'


def _is_outdated(directory: str) -> bool:
  if not is_store(directory):
    return True
  recorded = Store(directory).manifest.get('origin')
  return recorded is None or bool(origin.changed(recorded))
