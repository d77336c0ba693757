"""What documents were made of: their files, and the code that read them.

A token store keeps a `record` of them. `changed` tells whether the store would
be another today; it needs no TensorFlow and no seqio, and reads no document.
"""

import glob
import hashlib
import inspect
import os
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

from tasks import text_files

# A larger file is hashed again only if its size or time of change is another.
_ALWAYS_HASHED_BYTES = 1 << 26
_PACKAGE = pathlib.Path(__file__).resolve().parent


def code(*modules: str) -> list[str]:
  """Files of modules, and of all modules of this package that they use.

  Args:
    *modules: names of imported modules; those without a file are left out.
  """
  found, left = {}, list(modules)
  while left:
    name = left.pop()
    module = sys.modules.get(name)
    path = getattr(module, '__file__', None)
    if name in found or not path:
      continue
    found[name] = path
    for value in vars(module).values():
      is_module = inspect.ismodule(value)
      other = value.__name__ if is_module else type_module(value)
      if other.split('.')[0] == __package__:
        left.append(other)
  return sorted(found.values())


def type_module(value: Any) -> str:
  """Name of the module that defines a value or its class."""
  name = getattr(value, '__module__', None)
  return name if isinstance(name, str) else ''


def record(patterns: Iterable[str | os.PathLike]) -> dict[str, Any]:
  """The record of files that a store keeps, ready for JSON.

  Args:
    patterns: of files; relative ones start at `text_files.data_directory()`.

  Returns:
    pattern -> file -> [size, time of change in ns, SHA-256]. Names in this
    package or in the data directory are relative to it, so that another copy of
    either can be compared.
  """
  return {
    _portable(pattern): {
      _portable(path): [*_version(path), _sha256(path)]
      for path in _matching(pattern)
    }
    for pattern in map(_located, patterns)
  }


def changed(recorded: dict[str, Any]) -> str | None:
  """The first file or pattern that is not as it was; None if all are.

  A pattern without any file is not compared: a machine may have the stores
  without the files of the corpora.
  """
  for pattern, files in recorded.items():
    found = {_portable(p): p for p in _matching(_located(pattern))}
    if not found:
      continue
    if found.keys() != files.keys():
      return str(_located(pattern))
    for name, path in found.items():
      *version, sha256 = files[name]
      is_large = version[0] > _ALWAYS_HASHED_BYTES
      if is_large and version == _version(path):
        continue
      if version[0] != _version(path)[0] or sha256 != _sha256(path):
        return str(path)
  return None


def _roots() -> dict[str, pathlib.Path]:
  return {'$TASKS': _PACKAGE, '$WUDAO_DATA': text_files.data_directory()}


def _portable(path: pathlib.Path) -> str:
  for mark, root in _roots().items():
    if path.is_relative_to(root):
      return f'{mark}/{path.relative_to(root)}'
  return str(path)


def _located(name: str | os.PathLike) -> pathlib.Path:
  mark, _, rest = os.fspath(name).partition('/')
  root = _roots().get(mark)
  return root / rest if root else text_files.data_directory() / name


def _matching(pattern: pathlib.Path) -> Sequence[pathlib.Path]:
  if pattern.is_file():
    return [pattern]
  return [pathlib.Path(path) for path in sorted(glob.glob(str(pattern)))]


def _version(path: pathlib.Path) -> list[int]:
  status = path.stat()
  return [status.st_size, status.st_mtime_ns]


def _sha256(path: pathlib.Path) -> str:
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()
