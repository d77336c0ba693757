"""Finds and loads modules that declare tasks: the project's and the users'.

A user names a module that Python can import, such as 'my.module', or a file,
such as 'my/letters.py'. `locate` finds the module without running it. This is
enough to tell whether its code has changed. `load` runs it, which declares its
tasks.
"""

import glob
import importlib
import importlib.util
import pathlib
import sys
import traceback
from collections.abc import Sequence
from typing import Any

from moe.data import task_names
from tasks import registry

# Top-level name of each module outside of `tasks` that a user named -> the
# folder that holds it.
ROOTS: dict[str, pathlib.Path] = {}
# Task or mixture that a user's module declared -> that module.
MODULE_OF: dict[str, str] = {}
_named: list[str] = []
_loaded: set[str] = set()


def named() -> list[str]:
  """The importable names of all modules that `locate` has found so far."""
  return list(_named)


def locate(task_modules: Sequence[str]) -> list[str]:
  """Finds modules without running them; it imports only their parent packages.

  Args:
    task_modules: importable names, or files that end in '.py'. The folder of a
      file is added to the end of Python's path, so that the file can import
      its neighbours.

  Returns:
    The names under which Python can import the modules.

  Raises:
    ValueError: if Python cannot find a module, or finds another module of the
      same name.
  """
  found = []
  for module in task_modules:
    is_file = module.endswith('.py') or '/' in module
    name = _locate_file(module) if is_file else _locate_name(module)
    if name not in _named:
      _named.append(name)
    found.append(name)
  return found


def load(task_modules: Sequence[str] = ()) -> None:
  """Declares the tasks of `tasks.mixtures`, and those of users' modules.

  Args:
    task_modules: as in `locate`.

  Raises:
    ValueError: if a module is missing, cannot be imported or declares no task,
      or if the name of a task is taken.
  """
  # This import declares the project's tasks. It is not at the head of the file,
  # since an import of `tasks.modules` must not declare any.
  importlib.import_module('tasks.mixtures')
  for module, name in zip(task_modules, locate(task_modules), strict=True):
    if name not in _loaded:
      _load(module, name)
      _loaded.add(name)


def _locate_file(module: str) -> str:
  path = pathlib.Path(module).expanduser().absolute()
  if not path.is_file() or path.suffix != '.py':
    raise ValueError(
      f'The task module {module} must be a Python file, got nothing there: name'
      ' a file that ends in .py, or a module such as my.module.'
    )
  if not path.stem.isidentifier():
    raise ValueError(
      f'The task module {module} must have a name that Python can import, got'
      f' {path.stem!r}: rename the file.'
    )
  if str(path.parent) not in sys.path:
    sys.path.append(str(path.parent))
  origin = _origin(path.stem)
  if not origin or not path.samefile(origin):
    raise ValueError(
      f'The task module {module} must be the only module {path.stem!r}, got'
      f' another one, {origin or "built into Python"}: rename the file.'
    )
  ROOTS[path.stem] = path.parent
  return path.stem


def _locate_name(module: str) -> str:
  origin = _origin(module)
  if origin is None or not pathlib.Path(origin).is_file():
    raise ValueError(
      f'The task module {module!r} must be one that Python finds, got none: put'
      ' its folder on PYTHONPATH, or name its file.'
    )
  path = pathlib.Path(origin).resolve()
  depth = module.count('.') + (path.name == '__init__.py')
  top = module.partition('.')[0]
  if top != 'tasks':
    ROOTS[top] = path.parents[depth]
  return module


def _origin(name: str) -> str | None:
  """The file of a module, or None; the search imports the parent package."""
  try:
    spec = importlib.util.find_spec(name)
  except ModuleNotFoundError:
    return None
  except Exception as error:
    raise ValueError(_unfit(name, error)) from error
  return spec and spec.origin


def _load(module: str, name: str) -> None:
  before = declared()
  try:
    importlib.import_module(name)
  except ValueError:
    raise  # A ValueError of `registry` already says what to fix.
  except Exception as error:
    raise ValueError(_unfit(module, error)) from error
  new = declared() - before
  # If the module was imported before this call, its tasks are not new.
  own = [t for t, task in registry.TASKS.items() if name in task.modules]
  if not new and not own:
    raise ValueError(
      f'The task module {module} must declare a task, got none: call'
      ' tasks.registry.add_text_task in it.'
    )
  MODULE_OF.update(dict.fromkeys([*new, *own], name))
  for task in new & registry.TASKS.keys():
    registry.TASKS[task].modules.append(name)


def declared() -> set[str]:
  """Names of all tasks and mixtures, also seqio's if seqio is imported."""
  of_seqio_alone = {provider.name for provider in of_seqio()}
  return {*registry.TASKS, *registry.MIXTURES, *of_seqio_alone}


def check_declared(name: str) -> None:
  """Raises ValueError with the nearest names if a task is not declared."""
  task_names.check(name, declared())


def check_tasks(
  names: Sequence[str],
  cache_dir: str | pathlib.Path,
  task_modules: Sequence[str] = (),
  is_dry_run: bool = False,
) -> None:
  """Checks the names of tasks at once, before a model is made or read.

  Args:
    names: tasks and mixtures. A name that has a store need not be declared.
    cache_dir: directory of all token stores.
    task_modules: modules or files of a user. They may import TensorFlow, so
      only a dry run imports them here. Otherwise the child process that makes
      the stores checks the names.
    is_dry_run: whether this process only checks the configuration.

  Raises:
    ValueError: if there is no such task, mixture or module.
  """
  load(task_modules if is_dry_run else ())
  if is_dry_run or not locate(task_modules):
    for name in names:
      stores = pathlib.Path(cache_dir).glob(f'*/{glob.escape(name)}')
      if not any(stores):
        check_declared(name)


def of_seqio() -> list[Any]:
  """Tasks and mixtures declared only in seqio; [] if seqio is not imported."""
  seqio = sys.modules.get('seqio')
  if seqio is None:
    return []
  return [
    providers.get(name)
    for providers in (seqio.TaskRegistry, seqio.MixtureRegistry)
    for name in providers.names()
    if name not in registry.TASKS and name not in registry.MIXTURES
  ]


def _unfit(module: str, error: Exception) -> str:
  """An error message that names a module, its faulty line and the error."""
  frames = traceback.extract_tb(error.__traceback__)
  place = f'{frames[-1].filename}:{frames[-1].lineno}' if frames else ''
  if isinstance(error, SyntaxError):
    place = f'{error.filename}:{error.lineno}'
  what = f'{type(error).__name__}: {error}'
  return (
    f'The task module {module} must be one that can be imported, got {what}'
    f' ({place}): fix that line.'
  )
