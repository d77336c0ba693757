"""Writes a configuration as one gin file that includes no other file."""

import inspect
import pprint
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from gin.config_parser import ConfigParser, ImportStatement

from launch.configs import gin_values
from launch.configs.bindings import Delegate
from launch.configs.reach import GIVEN
from launch.configs.tree import Tree

WIDTH = 100
_INDENT = 4
_RULE = '# ' + '=' * (WIDTH - 2)


class Section(NamedTuple):
  """Arguments of one class or function.

  Attributes:
    name: name of the class or function in the written file.
    arguments: argument -> value as written.
    scope: the macro whose value makes the object, directly or as an argument of
      another object; '' if no macro does.
  """

  name: str
  arguments: Mapping[str, object]
  scope: str = ''


def text(
  imports: Sequence[ImportStatement],
  macros: Mapping[str, object],
  sections: Sequence[Section],
) -> str:
  """The text of the file: imports, then macros, then arguments, each sorted."""
  lines = ['from __gin__ import dynamic_registration']
  lines += [statement.format() for statement in imports]
  if macros:
    lines += ['', '# Macros:', _RULE]
    for name in sorted(macros, key=str.lower):
      lines.append(_line(name, macros[name]))
  for section in sorted(sections, key=_order):
    scoped = '/'.join(filter(None, [section.scope, section.name]))
    lines += ['', f'# Parameters for {scoped}:', _RULE]
    lines += [
      _line(f'{scoped}.{argument}', section.arguments[argument])
      for argument in sorted(section.arguments)
    ] or ['# None.']
  return '\n'.join([*lines, ''])


def written(tree: Tree) -> tuple[Mapping[str, object], list[Section]]:
  """(macros, sections) of all bindings, including those that are not used."""
  return tree.macros, [
    Section(tree.names[key], bound)
    for key, (_, bound) in tree.arguments.items()
  ]


def operative(
  tree: Tree, root: Callable, unfollowed: Collection[tuple[Callable, str]]
) -> tuple[Mapping[str, object], list[Section]]:
  """(macros, sections) that the run uses, including default values.

  Args:
    tree: the configuration.
    root: the class of the run.
    unfollowed: (class or function, argument) pairs. References in the values of
      these arguments are not followed, since the run does not use the values.
  """
  used = _Used(tree, unfollowed)
  used.visit_target(root, root.__name__, '')
  return used.macros, list(used.sections.values())


class _Used:
  """Collects the macros and sections that references reach from the root."""

  def __init__(self, tree, unfollowed):
    self.macros, self.sections = {}, {}
    self._tree, self._unfollowed = tree, unfollowed

  def visit_target(self, target, name, scope) -> None:
    key = id(target), scope
    if key in self.sections:
      return
    arguments = _defaults(target) | self._tree.bound(target)
    for argument in GIVEN:
      arguments.pop(argument, None)
    name = self._tree.names.get(id(target), name)
    self.sections[key] = Section(name, arguments, scope)
    for argument, value in arguments.items():
      if (target, argument) not in self._unfollowed:
        self._visit(value, scope)

  def _visit(self, value, scope) -> None:
    if isinstance(value, gin_values.Macro):
      behind = self.macros[value.name] = self._tree.macros[value.name]
      self._visit(behind, value.name)
    elif isinstance(value, gin_values.Reference):
      # A reference without () is called later, outside the macro's scope.
      scope = scope if value.is_called else ''
      self.visit_target(value.target, value.name, scope)
    elif isinstance(value, list | tuple):
      for v in value:
        self._visit(v, scope)
    elif isinstance(value, dict):
      self._visit((*value.keys(), *value.values()), scope)


def _line(name: str, value: object) -> str:
  lines = pprint.pformat(value, width=WIDTH - _INDENT).split('\n')
  if len(lines) == 1 and len(name + lines[0]) <= WIDTH:
    return f'{name} = {lines[0]}'
  return '\n'.join([f'{name} = \\', *(' ' * _INDENT + line for line in lines)])


def _order(section: Section) -> tuple[list[str], str]:
  """Sort key: the name of the class or function, its module, then the scope."""
  return section.name.lower().split('.')[::-1], section.scope.lower()


def _defaults(target: Callable) -> dict[str, object]:
  """Argument -> default value, for defaults that a gin file can hold."""
  return {
    name: parameter.default
    for name, parameter in inspect.signature(target).parameters.items()
    if parameter.default is not parameter.empty and _is_value(parameter.default)
  }


def _is_value(default) -> bool:
  try:
    return bool(
      ConfigParser(repr(default), Delegate()).parse_value() == default
    )
  except (SyntaxError, ValueError):
    return False
