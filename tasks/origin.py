"""Records the files that documents came from, and the code that read them.

A token store keeps the result of `record`. `changed` compares this record with
the present files, to find out whether the store is outdated. This module
imports neither TensorFlow nor seqio, and reads no document.
"""

import ast
import glob
import hashlib
import importlib.machinery
import importlib.util
import os
import pathlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tasks import equal_code, modules, registry, text_files

# A larger file is hashed again only if its size or modification time changed.
_ALWAYS_HASHED_BYTES = 1 << 26
_PACKAGE = pathlib.Path(__file__).resolve().parent
# Packages that make no documents. If one of them lies in the folder of a user's
# module, it must not count as the user's code.
_FOREIGN = {'', 'moe', 'launch', *sys.stdlib_module_names}
# Files of code on which no document depends. Old stores record them, so
# `changed` skips them.
_NOT_OF_DOCUMENTS = {'$TASKS/origin.py', '$TASKS/vocabulary.py'}


def of_task(task: registry.Task, split: str) -> dict[str, Any]:
  """Records the data files and the code that give the documents of a split."""
  files_of = getattr(task.source, 'files_of', lambda split: [])
  return record([*files_of(split), *code(*task.modules)])


def code(*names: str) -> list[str]:
  """Files of modules, and of modules that they import, directly or indirectly.

  Only modules of this package and modules in the folders of users' modules
  count. The imports are found in the text of a module, so the module is not
  run. Only the packages that contain it are imported.

  Args:
    *names: names of importable modules; modules without a file are left out.
  """
  found, left = {}, [n for n in names if n.split('.')[0] not in _FOREIGN]
  while left:
    name = left.pop()
    if name in found:
      continue
    found[name] = path = _file_of(name)
    if path:
      left += [other for other in _imports(name, path) if _is_own(other)]
  return sorted({path for path in found.values() if path})


def _imports(name: str, path: str) -> Iterator[str]:
  """Full names of all modules, functions and classes that a module imports."""
  is_package = pathlib.Path(path).name == '__init__.py'
  package = name if is_package else name.rpartition('.')[0]
  for node in ast.walk(ast.parse(pathlib.Path(path).read_bytes())):
    if isinstance(node, ast.Import):
      yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
      parents = package.split('.')
      above = parents[: len(parents) + 1 - node.level] if node.level else []
      base = '.'.join([*above, *([node.module] if node.module else [])])
      yield base
      yield from (f'{base}.{alias.name}' for alias in node.names)


def _is_own(name: str) -> bool:
  top = name.split('.')[0]
  if top in modules.ROOTS or top == __package__:
    return True
  spec = None if top in _FOREIGN else _spec(top)
  if spec is None:
    return False
  folders = list(spec.submodule_search_locations or ())
  place = pathlib.Path(spec.origin or folders[0])
  return any(
    'site-packages' not in place.relative_to(root).parts
    for root in modules.ROOTS.values()
    if root.name != 'site-packages' and place.is_relative_to(root)
  )


def _file_of(name: str) -> str | None:
  """The .py file of a module; None if the module or the file does not exist."""
  spec = _spec(name)
  is_code = spec and spec.origin and spec.origin.endswith('.py')
  return spec.origin if is_code else None


def _spec(name: str) -> importlib.machinery.ModuleSpec | None:
  try:
    return importlib.util.find_spec(name)
  except (ImportError, ValueError):  # The name is no module, or has no file.
    return None


def record(patterns: Iterable[str | os.PathLike]) -> dict[str, Any]:
  """Records files by size, time and hash, in a form that JSON can hold.

  Args:
    patterns: names or glob patterns of files. A relative name starts at
      `text_files.data_directory()`.

  Returns:
    pattern -> file -> [size in bytes, modification time in ns, SHA-256]. Names
    of files in this package, in the data directory and in the folder of a
    user's module are relative to it, so that a copy elsewhere can be compared.
  """
  return {
    _portable(pattern): {
      _portable(path): [*_version(path), _sha256(path)]
      for path in _matching(pattern)
    }
    for pattern in map(_located, patterns)
  }


def changed(recorded: dict[str, Any]) -> str | None:
  """The first file or pattern that differs from the record, or None.

  A pattern that matches no file is skipped, since a machine may have the stores
  but not the corpora or the user's module. Two versions of a file of code count
  as equal if `tasks.equal_code` says that they make the same documents.
  """
  for pattern, files in recorded.items():
    if pattern in _NOT_OF_DOCUMENTS:
      continue
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
      if not equal_code.is_equal(sha256, _sha256(path)):
        return str(path)
  return None


def _roots() -> dict[str, pathlib.Path]:
  return {
    '$TASKS': _PACKAGE,
    '$WUDAO_DATA': text_files.data_directory(),
    **{f'$MODULE.{top}': root for top, root in modules.ROOTS.items()},
  }


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
  found = map(pathlib.Path, sorted(glob.glob(str(pattern), recursive=True)))
  return [path for path in found if path.is_file()]


def _version(path: pathlib.Path) -> list[int]:
  status = path.stat()
  return [status.st_size, status.st_mtime_ns]


def _sha256(path: pathlib.Path) -> str:
  with open(path, 'rb') as f:
    return hashlib.file_digest(f, 'sha256').hexdigest()
