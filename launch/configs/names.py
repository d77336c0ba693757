"""Names in gin files: what the import statements make known.

A name that does not exist is an error with its place and the nearest right one.
"""

import collections.abc
import dataclasses
import difflib
import importlib
import inspect
import pkgutil

from gin.config_parser import ImportStatement

from launch.configs import gin_values

# A module that older configurations name -> the module with its content now.
MOVED = {
  'launch.config': 'moe.runs.run',
  'moe.train.objective': 'moe.objectives.language',
  'moe.train.upcycle': 'moe.checkpoint.upcycle',
}


def nearest(name: str, known: collections.abc.Iterable[str]) -> str:
  """', did you mean x?' where something is near, else ''."""
  close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
  return f"; did you mean '{close[0]}'?" if close else ''


def _import(name: str, place: str):
  """A module, or what its parent holds under the last part of the name."""
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
  """A hint on the first part of a dotted name that does not exist."""
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
  """The statement, with the module's present name."""
  now = MOVED.get(statement.module)
  if not now or not (statement.is_from or statement.alias):
    return statement
  return statement._replace(module=now, is_from=True, alias=None)


class Imports:
  """The import statements of all files; each module gets one name."""

  def __init__(self):
    self._statements = {}

  def add(self, statement: ImportStatement) -> str:
    """Takes a statement in; returns the name that it makes known."""
    is_path = not statement.is_from and not statement.alias
    # 'import moe.routing.gates' makes 'moe' known, as in Python.
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
    """The statements by module."""
    return sorted(self._statements.values(), key=lambda s: s.module)


class Names:
  """What the import statements of one file make known.

  Attributes:
    modules: name -> (module, its name in `Imports`).
  """

  def __init__(self):
    self.modules = {}

  def add(
    self, statement: ImportStatement, imports: Imports, place: str
  ) -> None:
    """Imports what a statement names."""
    if statement.module.startswith('__gin__'):
      return
    present = moved(statement)
    module, name = _import(present.module, place), statement.bound_name()
    if not statement.is_from and not statement.alias:
      module = importlib.import_module(name)
    self.modules[name] = module, imports.add(present)
    # A module that has moved is known by its present name, too.
    self.modules.setdefault(present.bound_name(), self.modules[name])

  def resolve(self, selector: str, place: str) -> tuple[object, str]:
    """(class or function of that name, its name in `Imports`)."""
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
    """The value with every reference's target filled in."""

    def resolved(reference):
      target, name = self.resolve(reference.name, place)
      return dataclasses.replace(reference, name=name, target=target)

    return gin_values.map_references(resolved, value)


def parameters(
  target: collections.abc.Callable,
) -> dict[str, inspect.Parameter]:
  """What can be bound of a class or function, by name."""
  found = dict(inspect.signature(target).parameters)
  for internal in ('parent', 'name'):  # of every flax module
    found.pop(internal, None)
  return found
