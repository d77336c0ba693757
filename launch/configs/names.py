"""Resolves names in gin files by the import statements of these files.

A name that does not exist raises an error with its place and perhaps a similar
name.
"""

import collections.abc
import dataclasses
import difflib
import importlib
import inspect
import pkgutil

from gin.config_parser import ImportStatement

from launch.configs import gin_values

# Old path of a module -> its new path, so that old configurations still work.
MOVED = {
  'launch.config': 'moe.runs.run',
  'moe.train.objective': 'moe.objectives.language',
  'moe.train.upcycle': 'moe.checkpoint.upcycle',
}


def nearest(name: str, known: collections.abc.Iterable[str]) -> str:
  """The hint '; did you mean ...?' if a known name is similar, else ''."""
  close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
  return f"; did you mean '{close[0]}'?" if close else ''


def _import(name: str, place: str):
  """Imports 'a.b.c' as a module, or as the attribute c of the module a.b."""
  try:
    return importlib.import_module(name)
  except ImportError as error:
    parent, _, last = name.rpartition('.')
    try:
      return getattr(importlib.import_module(parent), last)
    except (ImportError, AttributeError, ValueError):
      hint = _nearest_module(name)
      raise ValueError(
        f'{place}: cannot import {name} ({error}){hint}'
      ) from error


def _nearest_module(name: str) -> str:
  """The hint of `nearest` for the first wrong part of a dotted path, or ''."""
  parts, known = name.split('.'), ['launch', 'moe', 'tasks']
  for i in range(len(parts)):
    prefix = '.'.join(parts[: i + 1])
    try:
      package = importlib.import_module(prefix)
    except ImportError:
      return '' if prefix in known else nearest(prefix, known)
    inside = pkgutil.iter_modules(getattr(package, '__path__', ()))
    known = [f'{prefix}.{module.name}' for module in inside]
  return ''


def moved(statement: ImportStatement) -> ImportStatement:
  """The statement, with the new path of its module if the module has moved.

  `import a.b` without an alias stays, since bindings write the whole path.
  """
  now = MOVED.get(statement.module)
  if not now or not (statement.is_from or statement.alias):
    return statement
  return statement._replace(module=now, is_from=True, alias=None)


class Imports:
  """The import statements of all files; each module gets one name."""

  def __init__(self):
    self._statements = {}

  def add(self, statement: ImportStatement) -> str:
    """Adds a statement; returns the name by which bindings refer to it."""
    is_path = not statement.is_from and not statement.alias
    # 'import moe.routing.gates' binds the name 'moe', as in Python.
    key = statement.module, is_path and '.' in statement.module
    if key not in self._statements:
      known = {s.bound_name() for s in self._statements.values()}
      name, number = statement.bound_name(), 2
      while not key[1] and name in known:
        name, number = f'{statement.bound_name()}_{number}', number + 1
      if name != statement.bound_name():
        statement = statement._replace(alias=name)
      self._statements[key] = statement
    return self._statements[key].bound_name()

  def sorted(self) -> list[ImportStatement]:
    """The statements, sorted by module."""
    return sorted(self._statements.values(), key=lambda s: s.module)


class Names:
  """The names that the import statements of one file define.

  Attributes:
    modules: name -> (module, the name that `Imports` gives to it).
  """

  def __init__(self):
    self.modules = {}

  def add(
    self, statement: ImportStatement, imports: Imports, place: str
  ) -> None:
    """Imports the module of a statement, and adds its name."""
    if statement.module.startswith('__gin__'):
      return
    present = moved(statement)
    module, name = _import(present.module, place), statement.bound_name()
    if not statement.is_from and not statement.alias:
      module = importlib.import_module(name)
    self.modules[name] = module, imports.add(present)
    # The file may use a moved module by its old or by its new name.
    self.modules.setdefault(present.bound_name(), self.modules[name])

  def resolve(self, selector: str, place: str) -> tuple[object, str]:
    """Resolves a dotted name to (class or function, its name in `Imports`)."""
    first, *parts = selector.split('.')
    if first not in self.modules:
      hint = nearest(first, self.modules)
      raise ValueError(
        f"{place}: '{first}' of '{selector}' is not imported here{hint}"
      )
    found, name = self.modules[first]
    for part in parts:
      if not hasattr(found, part):
        public = [n for n in vars(found) if not n.startswith('_')]
        raise ValueError(
          f"{place}: '{selector}' does not exist{nearest(part, public)}"
        )
      found = getattr(found, part)
    if not callable(found):
      raise ValueError(
        f"{place}: '{selector}' must be a class or a function, got a"
        f' {type(found).__name__}: name what is in it.'
      )
    return found, '.'.join([name, *parts])

  def resolve_value(self, value: object, place: str) -> object:
    """Sets the target of each reference in a value to its class or function."""

    def resolved(reference):
      target, name = self.resolve(reference.name, place)
      return dataclasses.replace(reference, name=name, target=target)

    return gin_values.map_references(resolved, value)


def parameters(
  target: collections.abc.Callable,
) -> dict[str, inspect.Parameter]:
  """Name -> parameter, for the parameters that a gin file may bind."""
  found = dict(inspect.signature(target).parameters)
  for internal in ('parent', 'name'):  # Flax adds these to every module.
    found.pop(internal, None)
  return found
