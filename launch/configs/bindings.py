"""Reads gin files before gin does, and finds what gin lets pass.

A misspelt macro, a binding nobody reads and a value of the wrong type are
errors here, with file, line and the nearest right name, before anything is
imported that takes time or any device is touched.
"""

import collections.abc
import dataclasses
import difflib
import importlib
import inspect
import math
import os
import pathlib
import pkgutil
import re
import tokenize
import typing

from gin import config_parser

from launch.configs import gin_values

_ROOT = str(pathlib.Path(__file__).parents[2])
SEARCH_PATHS = (
  '',
  os.path.join(_ROOT, 'gin_configs'),
  _ROOT,
)


class Delegate(config_parser.ParserDelegate):
  """Keeps references and macros as they are written."""

  def configurable_reference(self, scoped_configurable_name, evaluate):
    """@name or @name()."""
    return gin_values.Reference(
      scoped_configurable_name.split('/')[-1], evaluate
    )

  def macro(self, macro_name):
    """%NAME."""
    return gin_values.Macro(macro_name.split('/')[-1])


# First line of a configuration that a run has written down. What it bound for
# choices that were overridden is in there as well.
WRITTEN = '# The whole configuration of a run.\n'


@dataclasses.dataclass(frozen=True)
class Binding:
  """One line 'target.argument = value', or 'NAME = value' with target None.

  Attributes:
    target: class or function.
    argument: of the target, or name of the macro.
    value: as written.
    place: file and line, or the flag.
    may_be_unread: whether nobody has to read it.
  """

  target: object
  argument: str
  value: object
  place: str
  may_be_unread: bool = False


class InEffect(typing.NamedTuple):
  """A value that an argument gets.

  Attributes:
    argument: its name.
    value: behind all macros.
    label: what the user sets: a macro, or 'target.argument'.
    place: where it was set last.
  """

  argument: str
  value: object
  label: str
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
  hint = nearest(name, known)
  raise ValueError(
    f"gin file '{name}' must exist, here or in gin_configs{hint}"
  )


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


class _Names:
  """What the import statements of one file make known."""

  def __init__(self):
    self.modules, self.statements = {}, {}

  def update(self, other: '_Names') -> None:
    self.modules.update(other.modules)
    self.statements.update(other.statements)

  def add(self, statement, place: str) -> None:
    if statement.module.startswith('__gin__'):
      return
    module, name = _import(statement.module, place), statement.bound_name()
    self.statements[name] = statement.format()
    if not statement.is_from and not statement.alias:
      # 'import moe.routing.gates' makes 'moe' known, as in Python.
      module = importlib.import_module(name)
      self.statements[statement.module] = self.statements.pop(name)
    self.modules[name] = module

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
    if not callable(found):
      raise ValueError(
        f"{place}: '{selector}' must be a class or a function, got a"
        f' {type(found).__name__}: name what is in it.'
      )
    return found

  def resolve_value(self, value, place: str):
    """The value with every reference's target filled in."""
    if isinstance(value, gin_values.Reference):
      return dataclasses.replace(value, target=self.resolve(value.name, place))
    if isinstance(value, list | tuple):
      return type(value)(self.resolve_value(v, place) for v in value)
    if isinstance(value, dict):
      return {
        self.resolve_value(k, place): self.resolve_value(v, place)
        for k, v in value.items()
      }
    return value


def read(
  files: list[str], command_line: list[str]
) -> tuple[list[Binding], str]:
  """All bindings of the files and of the command line, in their order.

  Returns:
    (bindings, all of it as one text for gin, that imports first and includes
    nothing). gin's own search for included files takes a folder of the same
    name in the current directory, such as runs/, for a Python package.

  Raises:
    ValueError: for syntax, missing files, and names that do not exist.
  """
  bindings, everything = [], _Names()
  texts = [
    _read_file(find_file(name), bindings, everything, ()) for name in files
  ]
  for text in command_line:
    place = f'--gin.{text}'
    if '=' not in text:
      raise ValueError(f'{place}: write --gin.NAME=VALUE.')
    for statement in _statements(text, place, None):
      _add_binding(statement, place, everything, bindings)
  imports = ['from __gin__ import dynamic_registration']
  imports += everything.statements.values()
  return bindings, '\n'.join([*imports, *texts, *command_line, ''])


def _statements(source, name: str, path: str | None):
  try:
    return list(config_parser.ConfigParser(source, Delegate()))
  except (SyntaxError, tokenize.TokenError) as error:
    reason, location = error.args
    # (file, line, ...) of a SyntaxError, (line, column) of the other.
    line = location[1 if isinstance(error, SyntaxError) else 0]
    where = f'{path}:{line}' if path else name
    token = re.search("Failed to parse token '(.*)'", reason)
    reason = f'{token.group(1)} is no value' if token else reason.rstrip('.')
    raise ValueError(
      f'{where}: cannot be read as gin ({reason}); text values need quotes:'
      ' NAME=\'"text"\'.'
    ) from error


def read_written(text: str, path: str) -> dict[str, object]:
  """Values of a configuration that a run has written, by NAME or target.name.

  Nothing that it names is imported.

  Raises:
    ValueError: if it cannot be read.
  """
  return {
    f'{s.selector}.{s.arg_name}' if s.arg_name else s.selector: s.value
    for s in _statements(text, path, path)
    if isinstance(s, config_parser.BindingStatement)
  }


def _read_file(
  path: str, bindings: list[Binding], everything: _Names, including: tuple
) -> str:
  """Adds a file's bindings and names; returns its text, includes filled in."""
  if path in including:
    raise ValueError(f'{path}: includes itself.')
  names = _Names()
  try:
    with open(path, encoding='utf-8') as f:
      text = f.read()
  except UnicodeDecodeError as error:
    raise ValueError(f'{path}: must be UTF-8 text ({error}).') from error
  lines, first = text.split('\n'), len(bindings)
  for statement in _statements(text, path, path):
    number = statement.location.line_num
    place = f'{path}:{number}'
    if isinstance(statement, config_parser.ImportStatement):
      names.add(statement, place)
      everything.update(names)
      lines[number - 1] = ''
    elif isinstance(statement, config_parser.IncludeStatement):
      try:
        included = find_file(statement.filename)
      except ValueError as error:
        raise ValueError(f'{place}: {error}') from error
      lines[number - 1] = _read_file(
        included, bindings, everything, (*including, path)
      )
    elif isinstance(statement, config_parser.BindingStatement):
      _add_binding(statement, place, names, bindings)
  if text.startswith(WRITTEN):
    bindings[first:] = [
      dataclasses.replace(b, may_be_unread=True) for b in bindings[first:]
    ]
  return '\n'.join(lines)


def _add_binding(statement, place, names, bindings) -> None:
  value = names.resolve_value(statement.value, place)
  if statement.selector == 'gin.macro':
    bindings.append(Binding(None, statement.scope, value, place))
    return
  if statement.scope:
    raise ValueError(
      f"{place}: the scope '{statement.scope}/' is entered nowhere: bind"
      f" '{statement.selector}' without it."
    )
  if not statement.arg_name:
    bindings.append(Binding(None, statement.selector, value, place))
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


def check(bindings: list[Binding], root: object) -> list[InEffect]:
  """Raises ValueError for what nobody reads and for values of a wrong type.

  Args:
    bindings: as `read` returns them.
    root: what is called first; a binding counts as read if the target can be
      reached from it through references and macros, or could be before a later
      binding overrode one on the way: choosing another optimizer in one line
      need not take back what the files say about the first one.

  Returns:
    The values that arguments get.
  """
  reach = _Reach(bindings)
  reach.visit_target(root)
  for b in bindings:
    if b.may_be_unread or reach.is_read(b):
      continue
    if b.target is None and b.argument in reach.limits:
      hint = reach.replacement(b.argument)
      raise ValueError(
        f"{b.place}: nobody reads '{b.argument}' any more, since what did is"
        f' replaced{hint}'
      )
    if b.target is None:
      read = [n for n in reach.limits if isinstance(n, str)]
      hint = nearest(b.argument, read)
      raise ValueError(f"{b.place}: nobody reads '{b.argument}'{hint}")
    name = getattr(b.target, '__name__', str(b.target))
    raise ValueError(
      f"{b.place}: nobody reads '{name}.{b.argument}': nothing in use refers"
      f' to @{name}; refer to it, or delete the line.'
    )
  return reach.in_effect


class _Reach:
  """Follows references and macros from the root.

  Attributes:
    macros: the binding of each macro that counts.
    limits: macro name or id of a target -> infinity if it is read; else the
      place in the order of bindings up to which it was, before an override.
    in_effect: values that arguments get, of the right types.
  """

  def __init__(self, bindings: list[Binding]):
    self.macros = {b.argument: b for b in bindings if b.target is None}
    self.limits = {}
    self.in_effect = []
    self._references = {}
    in_files = [b for b in bindings if not b.place.startswith('--gin.')]
    # What the command line says is said at once: all of it has to be read.
    self._order = {id(b): min(i, len(in_files)) for i, b in enumerate(bindings)}
    self._bound = {}
    for b in bindings:
      arguments = self._bound.setdefault(self._key(b), {})
      arguments.setdefault(b.argument, []).append(b)

  def _key(self, b: Binding):
    return b.argument if b.target is None else id(b.target)

  def is_read(self, b: Binding) -> bool:
    """Whether the binding is of use, or was where it stands."""
    return self._order[id(b)] < self.limits.get(self._key(b), -1)

  def replacement(self, macro: str) -> str:
    """What takes the same argument as what once read a macro, as a hint."""
    wanted = {
      b.argument
      for histories in self._bound.values()
      for history in histories.values()
      for b in history
      if b.target is not None and b.value == gin_values.Macro(macro)
    }
    for name, target in self._references.items():
      is_used = self.limits.get(id(target)) == math.inf
      for argument in wanted & _parameters(target).keys() if is_used else ():
        return f"; bind '{name}.{argument}' instead."
    return '; delete the line.'

  def visit_target(self, target, limit: float = math.inf) -> None:
    """Follows all that is bound for a class or function."""
    if self._enter(id(target), limit):
      for history in self._bound.get(id(target), {}).values():
        self._visit_history(history, limit, ())
        if limit == math.inf:
          self.in_effect.append(_check_type(history[-1], self.macros))

  def _enter(self, key, limit: float) -> bool:
    if self.limits.get(key, -1) >= limit:
      return False
    self.limits[key] = limit
    return True

  def _visit_history(self, history: list[Binding], limit, chain) -> None:
    """Follows the binding that counts, and those that it overrode."""
    *old, last = history
    self._visit(last.value, last.place, limit, chain)
    for b, after in zip(old, history[1:], strict=True):
      until = min(limit, self._order[id(after)])
      self._visit(b.value, b.place, until, chain)

  def _visit(self, value, place: str, limit, chain) -> None:
    if isinstance(value, gin_values.Macro):
      self._visit_macro(value.name, place, limit, chain)
    elif isinstance(value, gin_values.Reference):
      self._references[value.name] = value.target
      self.visit_target(value.target, limit)
    elif isinstance(value, list | tuple):
      for v in value:
        self._visit(v, place, limit, chain)
    elif isinstance(value, dict):
      for v in (*value.keys(), *value.values()):
        self._visit(v, place, limit, chain)

  def _visit_macro(self, name: str, place: str, limit, chain) -> None:
    if limit == math.inf and name in chain:
      raise ValueError(f"{place}: '%{name}' must not be defined by itself.")
    if name not in self.macros:
      if limit < math.inf:
        return  # of something that a later line replaced: never evaluated
      hint = nearest(name, self.macros) or f'; set --gin.{name}=VALUE.'
      raise ValueError(f"{place}: '%{name}' is defined nowhere{hint}")
    if self._enter(name, limit):
      self._visit_history(self._bound[name][name], limit, (*chain, name))


def _check_type(binding: Binding, macros: dict[str, Binding]) -> InEffect:
  target = binding.target
  value, macro_place = gin_values.resolved(binding.value, macros)
  name = getattr(target, '__name__', str(target))
  label = binding.value.name if macro_place else f'{name}.{binding.argument}'
  place = macro_place or binding.place
  try:
    wanted = typing.get_type_hints(target).get(binding.argument)
  except (NameError, TypeError):
    wanted = None
  if wanted is not None and not gin_values.fits(value, wanted, macros):
    raise ValueError(
      f"{place}: '{label}' must be {gin_values.type_name(wanted)}, got"
      f' {gin_values.written(value)}.'
    )
  return InEffect(binding.argument, value, label, place)
