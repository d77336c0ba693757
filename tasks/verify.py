"""Finds token stores by directory or task, and verifies their contents."""

import difflib
import json
import pathlib
from collections.abc import Iterator

from moe.data import verify
from moe.data.store import MANIFEST, MIXTURE


def verify_stores(
  what: str | None, cache_dir: str
) -> Iterator[tuple[str, list[str]]]:
  """Reads token stores, one by one, and compares them with their manifests.

  Args:
    what: a directory with stores, or a task or mixture; None for all stores of
      the cache.
    cache_dir: directory of all token stores.

  Yields:
    (directory of a store, its problems); each problem is a sentence.

  Raises:
    ValueError: if no store is found.
  """
  for store in _find(what, cache_dir):
    yield store, verify.verify(store)


def show(what: str | None, cache_dir: str) -> int:
  """Prints stores with their problems; the exit code is 1 if one is unsound."""
  code = 0
  for store, problems in verify_stores(what, cache_dir):
    print(f'{"UNSOUND" if problems else "sound  "} {store}')
    for problem in problems:
      print(f'  {problem}')
      code = 1
  return code


def _find(what: str | None, cache_dir: str) -> list[str]:
  """Directories of the stores that `verify_stores` reads, in order."""
  name = what or cache_dir
  if pathlib.Path(name).is_dir():
    roots = [pathlib.Path(name)]
  else:
    roots = _directories_of(name, cache_dir)
  stores = sorted(
    str(path.parent)
    for root in roots
    for path in root.rglob(MANIFEST)
    if not path.parent.name.endswith('.tmp')
  )
  if not stores:
    found = {path.name for path in pathlib.Path(cache_dir).glob('*/*/')}
    near = difflib.get_close_matches(name, sorted(found), cutoff=0.5)
    hint = f'; did you mean {" or ".join(near)}?' if near else '.'
    required = (
      f'{what} must be a directory with token stores, or a task or mixture with'
      f' stores in {cache_dir}'
      if what
      else f'The cache directory {cache_dir} must hold token stores'
    )
    raise ValueError(
      f'{required}, got none: make them with'
      f' `python -m launch.data cache`{hint}'
    )
  return stores


def _directories_of(name: str, cache_dir: str) -> list[pathlib.Path]:
  """Directories of the stores of a task, or of a mixture's tasks."""
  found = []
  for directory in sorted(pathlib.Path(cache_dir).glob(f'*/{name}')):
    if (directory / MIXTURE).is_file():
      rates = json.loads((directory / MIXTURE).read_text())['rates']
      found += [directory.parent / task for task in rates]
    else:
      found.append(directory)
  return found
