"""Reads gin files before gin does, and finds what gin lets pass.

A misspelt macro, a binding nobody reads and a value of the wrong type are errors
here, with file, line and the nearest right name, before anything is imported that
takes time or any device is touched.
"""

import collections.abc
import dataclasses
import difflib
import importlib
import inspect
import os
import re
import types
import typing

from gin import config_parser

SEARCH_PATHS = (
  '',
  os.path.join(os.path.dirname(os.path.dirname(__file__)), 'gin_configs'),
  os.path.dirname(os.path.dirname(__file__)),
)


@dataclasses.dataclass(frozen=True)
class Reference:
  """@name or @name()."""

  name: str
  is_called: bool
  target: object = None


@dataclasses.dataclass(frozen=True)
class Macro:
  """%NAME."""

  name: str


class _Delegate(config_parser.ParserDelegate):
  """Keeps references and macros as they are written."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    return Reference(scoped_configurable_name.split('/')[-1], evaluate)

  def macro(self, macro_name):
    return Macro(macro_name.split('/')[-1])


@dataclasses.dataclass(frozen=True)
class Binding:
  """One line 'target.argument = value', or 'NAME = value' with target None."""

  target: object
  argument: str
  value: object
  place: str


def find_file(name: str) -> str:
  """Path of a gin file: as given, or within gin_configs.

  Raises:
    ValueError: if it is nowhere.
  """
  for folder in SEARCH_PATHS:
    path = os.path.join(folder, name)
    if os.path.isfile(path):
      return path
  known = sorted(
    os.path.relpath(os.path.join(folder, file), SEARCH_PATHS[1])
    for folder, _, files in os.walk(SEARCH_PATHS[1])
    for file in files
    if file.endswith('.gin')
  )
  raise ValueError(
    f"gin file '{name}' must exist, here or in gin_configs{nearest(name, known)}."
  )


def nearest(name: str, known: collections.abc.Iterable[str]) -> str:
  """', did you mean x?' where something is near, else ''."""
  close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
  return f"; did you mean '{close[0]}'?" if close else ''


def _import(module: str, place: str):
  try:
    return importlib.import_module(module)
  except ModuleNotFoundError as error:
    raise ValueError(f'{place}: cannot import {module} ({error}).') from error
  except ImportError as error:
    raise ValueError(f'{place}: cannot import {module} ({error}).') from error


class _Names:
  """What the import statements of one file make known."""

  def __init__(self):
    self.modules = {}

  def add(self, statement, place: str) -> None:
    if statement.module.startswith('__gin__'):
      return
    module = None
    try:
      module = _import(statement.module, place)
    except ValueError:
      # 'from launch.config import Run': the last part may be an attribute.
      parent, _, name = statement.module.rpartition('.')
      if not parent:
        raise
      module = getattr(_import(parent, place), name, None)
      if module is None:
        raise
    self.modules[statement.bound_name()] = module

  def resolve(self, selector: str, place: str) -> object:
    parts = selector.split('.')
    found = self.modules.get(parts[0])
    if found is None:
      hint = nearest(parts[0], self.modules)
      raise ValueError(
        f"{place}: '{parts[0]}' of '{selector}' is not imported here{hint}"
      )
    for part in parts[1:]:
      if not hasattr(found, part):
        public = [n for n in vars(found) if not n.startswith('_')]
        raise ValueError(
          f"{place}: '{selector}' does not exist{nearest(part, public)}"
        )
      found = getattr(found, part)
    return found

  def resolve_value(self, value, place: str):
    """The value with every reference's target filled in."""
    if isinstance(value, Reference):
      return dataclasses.replace(value, target=self.resolve(value.name, place))
    if isinstance(value, list | tuple):
      return type(value)(self.resolve_value(v, place) for v in value)
    if isinstance(value, dict):
      return {
        self.resolve_value(k, place): self.resolve_value(v, place)
        for k, v in value.items()
      }
    return value


def read(files: list[str], command_line: list[str]) -> list[Binding]:
  """All bindings of the files and of the command line, in their order.

  Raises:
    ValueError: for syntax, missing files, and names that do not exist.
  """
  bindings, everything = [], _Names()
  for name in files:
    _read_file(find_file(name), bindings, everything, ())
  for text in command_line:
    place = f'--gin.{text}'
    if '=' not in text:
      raise ValueError(f'{place}: write --gin.NAME=VALUE.')
    for statement in _statements(text, place, None):
      _add_binding(statement, place, everything, bindings)
  return bindings


def _statements(source, name: str, path: str | None):
  try:
    return list(config_parser.ConfigParser(source, _Delegate()))
  except SyntaxError as error:
    # gin raises with its own place, which it words differently for each error.
    line = re.search(r'line (\d+)', str(error))
    where = f'{path}:{line.group(1)}' if path and line else name
    reason = str(error).split('\n')[0].strip()
    raise ValueError(
      f'{where}: cannot be read as gin ({reason}); text values need quotes:'
      ' NAME=\'"text"\'.'
    ) from error


def _read_file(
  path: str, bindings: list[Binding], everything: _Names, including: tuple
) -> None:
  if path in including:
    raise ValueError(f'{path}: includes itself.')
  names = _Names()
  try:
    with open(path, encoding='utf-8') as f:
      text = f.read()
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: must be UTF-8 text ({error}).') from error
  for statement in _statements(text, path, path):
    place = f'{path}:{statement.location.line_num}'
    if isinstance(statement, config_parser.ImportStatement):
      names.add(statement, place)
      everything.modules.update(names.modules)
    elif isinstance(statement, config_parser.IncludeStatement):
      try:
        included = find_file(statement.filename)
      except ValueError as error:
        raise ValueError(f'{place}: {error}') from error
      _read_file(included, bindings, everything, (*including, path))
    elif isinstance(statement, config_parser.BindingStatement):
      _add_binding(statement, place, names, bindings)


def _add_binding(statement, place, names, bindings) -> None:
  value = names.resolve_value(statement.value, place)
  if not statement.arg_name:
    bindings.append(Binding(None, statement.selector, value, place))
    return
  if statement.selector == 'gin.macro' or statement.arg_name == 'value':
    bindings.append(Binding(None, statement.scope, value, place))
    return
  target = names.resolve(statement.selector, place)
  known = _parameters(target)
  if statement.arg_name not in known:
    raise ValueError(
      f"{place}: '{statement.selector}' has no '{statement.arg_name}'"
      f'{nearest(statement.arg_name, known)}'
    )
  bindings.append(Binding(target, statement.arg_name, value, place))


def _parameters(target) -> dict[str, inspect.Parameter]:
  parameters = dict(inspect.signature(target).parameters)
  for internal in ('parent', 'name'):  # of every flax module
    parameters.pop(internal, None)
  return parameters


def check(bindings: list[Binding], root: object) -> None:
  """Raises ValueError for what nobody reads and for values of a wrong type.

  Args:
    bindings: as `read` returns them.
    root: what is called first; a binding counts as read if the target can be
      reached from it through references and macros.
  """
  reach = _Reach(bindings)
  reach.visit_target(root)
  for b in bindings:
    if b.target is None and b.argument not in reach.macros_read:
      hint = nearest(b.argument, reach.macros_read)
      raise ValueError(f"{b.place}: nobody reads '{b.argument}'{hint}")
    if b.target is not None and id(b.target) not in reach.targets_read:
      name = getattr(b.target, '__name__', str(b.target))
      raise ValueError(
        f"{b.place}: nobody reads '{name}.{b.argument}': nothing in use refers"
        f' to @{name}; refer to it, or delete the line.'
      )


class _Reach:
  """Follows references and macros from the root."""

  def __init__(self, bindings: list[Binding]):
    self.macros = {b.argument: b for b in bindings if b.target is None}
    self.macros_read, self.targets_read = set(), set()
    self._bound = {}
    for b in bindings:
      if b.target is not None:
        self._bound.setdefault(id(b.target), {})[b.argument] = b

  def visit_target(self, target) -> None:
    if id(target) in self.targets_read:
      return
    self.targets_read.add(id(target))
    for b in self._bound.get(id(target), {}).values():
      self._visit(b.value, b.place)
      _check_type(b, self.macros)

  def _visit(self, value, place: str) -> None:
    if isinstance(value, Macro):
      self._visit_macro(value.name, place)
    elif isinstance(value, Reference):
      self.visit_target(value.target)
    elif isinstance(value, list | tuple):
      for v in value:
        self._visit(v, place)
    elif isinstance(value, dict):
      for v in (*value.keys(), *value.values()):
        self._visit(v, place)

  def _visit_macro(self, name: str, place: str) -> None:
    if name not in self.macros:
      hint = nearest(name, self.macros)
      raise ValueError(f"{place}: '%{name}' is defined nowhere{hint}")
    if name not in self.macros_read:
      self.macros_read.add(name)
      self._visit(self.macros[name].value, self.macros[name].place)


def _resolved(value, macros):
  """The value behind macros, and the place of the last one."""
  place = None
  while isinstance(value, Macro):
    place = macros[value.name].place
    value = macros[value.name].value
  return value, place


def _check_type(binding: Binding, macros: dict[str, Binding]) -> None:
  target = binding.target
  try:
    hints = typing.get_type_hints(target)
  except (NameError, TypeError):
    return
  wanted = hints.get(binding.argument)
  value, macro_place = _resolved(binding.value, macros)
  if wanted is None or _fits(value, wanted, macros):
    return
  name = getattr(target, '__name__', str(target))
  label = binding.value.name if macro_place else f'{name}.{binding.argument}'
  raise ValueError(
    f"{macro_place or binding.place}: '{label}' must be"
    f' {_type_name(wanted)}, got {_written(value)}.'
  )


def _written(value) -> str:
  if isinstance(value, Reference):
    return f'@{value.name}' + ('()' if value.is_called else '')
  return f'{value!r} ({type(value).__name__})'


def _type_name(wanted) -> str:
  if typing.get_origin(wanted) is collections.abc.Callable:
    return 'a reference @name'
  return getattr(wanted, '__name__', str(wanted).replace('typing.', ''))


def _fits(value, wanted, macros) -> bool:
  """Whether a written value can be of the annotated type."""
  value, _ = _resolved(value, macros)
  origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
  if origin in (typing.Union, types.UnionType):
    return any(_fits(value, a, macros) for a in arguments)
  if wanted in (None, type(None)):
    return value is None
  if origin is collections.abc.Callable or wanted is collections.abc.Callable:
    return isinstance(value, Reference)
  if isinstance(value, Reference):
    return wanted not in (int, float, str, bool) and (
      value.is_called or not inspect.isclass(wanted)
    )
  if wanted is bool or isinstance(value, bool):
    return isinstance(value, bool) and wanted in (bool, typing.Any)
  if wanted is float:
    return isinstance(value, int | float)
  if wanted in (int, str):
    return isinstance(value, wanted)
  if origin in (tuple, list, collections.abc.Sequence):
    inner = [a for a in arguments if a is not Ellipsis]
    return isinstance(value, list | tuple) and all(
      not inner or _fits(v, inner[0], macros) for v in value
    )
  if origin is dict:
    return isinstance(value, dict)
  return not inspect.isclass(wanted) or isinstance(value, wanted)
