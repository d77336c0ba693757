"""Refuses gin files that could do more than configure a run.

A gin file imports modules, and names the classes and functions of the run. So a
file from a stranger can run any code. With `--safe` it may name only classes
and functions of the modules below, which read and write no files.
"""

import argparse
import importlib
import os
import pathlib
from collections.abc import Iterator, Sequence

from gin import config_parser
from gin.config_parser import ImportStatement

from launch.configs import bindings, gin_values, names
from launch.later import Later

foreign = Later('moe.checkpoint.foreign')

# A run needs only these modules and their submodules. None of their functions
# that a gin file can call reads or writes a file.
_MODULES = (
  'moe.checkpoint.upcycle',
  'moe.data.transforms',
  'moe.layers',
  'moe.modalities.image',
  'moe.models',
  'moe.objectives',
  'moe.optim',
  'moe.parallel.mesh',
  'moe.routing',
  'moe.runs.folding_run',
  'moe.runs.run',
  'moe.runs.tokenizer_run',
  'moe.train.trainer',
)
# These names list modules to load. A file may bind them only to an empty list
# or to the macro TASK_MODULES, for which the same holds.
_CODE = ('task_modules', 'TASK_MODULES')
_NO_CODE = ((), [], gin_values.Macro('TASK_MODULES'))


class Unsafe(ValueError, argparse.ArgumentTypeError):
  """Error: a checkpoint is not safe to read."""


def check(files: Sequence[str]) -> None:
  """Raises ValueError if a gin file could do more than configure a run.

  A file must name nothing outside `_MODULES`, bind no task modules, and include
  no file by a path with a leading slash or `..`. The check imports only modules
  of this project. The command line is not checked, since it comes from the
  user.

  Args:
    files: the gin files.
  """
  for name in files:
    _check_file(bindings.find_file(name), ())


def checkpoint(directory: str) -> str:
  """Returns the directory of a checkpoint that can safely be read.

  Its steps must pass `moe.checkpoint.foreign`, and each config.gin that a
  command may read with it must pass `check`.

  Raises:
    Unsafe: if something in the directory is not safe.
  """
  place = pathlib.Path(directory).absolute()
  files = [p / 'config.gin' for p in (place, *place.parents[:2])]
  try:
    foreign.check(directory)
    check([str(path) for path in files if path.exists()])
  except (ValueError, OSError) as error:
    raise Unsafe(str(error).replace('--safe', '--untrusted')) from error
  return directory


def _check_file(path: str, including: tuple[str, ...]) -> None:
  if path in including:
    raise ValueError(f'{path}: includes itself.')
  modules = {}
  for statement in bindings.statements(path):
    place = f'{path}:{statement.location.line_num}'
    if isinstance(statement, ImportStatement):
      modules |= _imported(statement, place)
    elif isinstance(statement, config_parser.IncludeStatement):
      parts = statement.filename.replace('\\', '/').split('/')
      if os.path.isabs(statement.filename) or '..' in parts:
        raise ValueError(
          f"{place}: with --safe '{statement.filename}' must lie beside this"
          ' file or in gin_configs: name it without a leading slash and ..'
        )
      found = bindings.find_file(statement.filename, path)
      _check_file(found, (*including, path))
    elif isinstance(statement, config_parser.BindingStatement):
      _check_binding(statement, modules, place)


def _imported(statement: ImportStatement, place: str) -> dict[str, str]:
  """{name: module} of an import statement; ValueError if it is not allowed."""
  if statement.module.startswith('__gin__'):
    return {}
  module = names.moved(statement).module
  if not _is_known(module) or not (statement.is_from or statement.alias):
    raise ValueError(
      f'{place}: with --safe {statement.module} must be one of'
      f' {", ".join(_MODULES)}, imported with `from`: trust the file and leave'
      ' out --safe, or delete the line.'
    )
  return {statement.bound_name(): module}


def _check_binding(statement, modules: dict[str, str], place: str) -> None:
  is_code = statement.arg_name in _CODE or statement.selector in _CODE
  if is_code and statement.value not in _NO_CODE:
    raise ValueError(
      f'{place}: with --safe {statement.arg_name or statement.selector} must'
      ' not be bound, since its modules are loaded: delete the line.'
    )
  if statement.arg_name:
    _check_target(statement.selector, modules, place)
  for reference in references(statement.value):
    _check_target(reference, modules, place)


def references(value: object) -> Iterator[str]:
  """Yields the name after each @ in a value."""
  if isinstance(value, gin_values.Reference):
    yield value.name
  elif isinstance(value, list | tuple):
    for entry in value:
      yield from references(entry)
  elif isinstance(value, dict):
    yield from references((*value.keys(), *value.values()))


def _check_target(name: str, modules: dict[str, str], place: str) -> None:
  """Raises ValueError unless one of `_MODULES` defines the target."""
  first, _, rest = name.partition('.')
  try:
    found = getattr(importlib.import_module(modules[first]), rest)
  except (KeyError, ImportError, AttributeError):
    found = None
  if rest.startswith('_') or not _is_known(getattr(found, '__module__', '')):
    raise ValueError(
      f'{place}: with --safe {name} must be a class or a function of'
      f' {", ".join(_MODULES)}: trust the file and leave out --safe, or delete'
      ' the line.'
    )


def _is_known(module: str) -> bool:
  return any(f'{module}.'.startswith(f'{known}.') for known in _MODULES)
