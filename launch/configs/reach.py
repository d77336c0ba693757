"""Checks bindings: each must be read, and its value must have the right type.

The check follows references and macros from the root of a configuration. It is
an error if nobody reads a binding, if nothing defines a macro, or if a value
has the wrong type. The message has the place, and perhaps a similar name.
"""

import math
import os
import typing

from launch.configs import gin_values
from launch.configs.bindings import Binding, files_that_define
from launch.configs.names import nearest, parameters

# argument -> reason why binding it has no effect: the calling code always
# passes it. The reason also says what a user can set instead.
GIVEN = {
  'num_active': 'its layer tells a router how many experts a token sees; bind'
  " 'moe_layer.MoE.top_k', or set TOP_K",
  'output_scale': 'the stack gives it to its layers; set OUTPUT_INIT',
  'residual_scale': 'the model gives it to its blocks; set PARAMETRISATION',
  'router_scale': 'the model gives it to its layers; set PARAMETRISATION',
  'returns_maps': 'a folding model gives it to its trunk; set READS_ATTENTION',
}


class InEffect(typing.NamedTuple):
  """The final value of an argument, after all overrides.

  Attributes:
    argument: name of the argument.
    value: the value after macros are replaced.
    label: what the user sets: a macro, or 'target.argument'.
    place: file and line, or flag, that set the value.
  """

  argument: str
  value: object
  label: str
  place: str


def check(bindings: list[Binding], root: object) -> list[InEffect]:
  """Raises ValueError for unread bindings, undefined macros and wrong types.

  A binding is read if references and macros lead from the root to its target.
  It also counts as read if they did so before a later binding changed one of
  them. So a user who chooses another optimizer in a later line need not delete
  the bindings of the first optimizer.

  Args:
    bindings: as `bindings.read` returns them.
    root: the class or function that is called first.

  Returns:
    The final values of the arguments that are read.
  """
  reach = _Reach(bindings)
  reach.visit_target(root)
  for b in bindings:
    if b.may_be_unread:
      continue
    if b.target is not None and b.argument in GIVEN:
      name = f'{b.target.__name__}.{b.argument}'
      raise ValueError(
        f"{b.place}: nobody reads '{name}': {GIVEN[b.argument]}."
      )
    if reach.is_read(b):
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
    macros: macro name -> its last binding, which is the one in effect.
    limits: macro name or id of a target -> infinity if it is read. If it was
      read only by a binding that was overridden later, the limit is the index
      of the overriding binding; see `is_read`.
    in_effect: the final values of arguments. Their types have been checked.
  """

  def __init__(self, bindings: list[Binding]):
    self.macros = {b.argument: b for b in bindings if b.target is None}
    self.limits = {}
    self.in_effect = []
    self._references = {}
    in_files = [b for b in bindings if not b.place.startswith('--gin.')]
    # All bindings of the command line share one index, so none of them is later
    # than another.
    self._order = {id(b): min(i, len(in_files)) for i, b in enumerate(bindings)}
    self._bound = {}
    for b in bindings:
      arguments = self._bound.setdefault(self._key(b), {})
      arguments.setdefault(b.argument, []).append(b)

  def _key(self, b: Binding):
    return b.argument if b.target is None else id(b.target)

  def is_read(self, b: Binding) -> bool:
    """Whether the root leads to the binding.

    It also counts as read if the root led to it before a later binding changed
    a reference or macro on the way.
    """
    return self._order[id(b)] < self.limits.get(self._key(b), -1)

  def replacement(self, macro: str) -> str:
    """A hint what to bind instead of a macro that is no longer read.

    The macro is the value of an argument of a class that the run does not use.
    If a class that the run uses has an argument of the same name, the hint
    names this argument.
    """
    wanted = {
      b.argument
      for histories in self._bound.values()
      for history in histories.values()
      for b in history
      if b.target is not None and b.value == gin_values.Macro(macro)
    }
    for name, target in self._references.items():
      is_used = self.limits.get(id(target)) == math.inf
      for argument in wanted & parameters(target).keys() if is_used else ():
        return f"; bind '{name}.{argument}' instead."
    return '; delete the line.'

  def visit_target(self, target, limit: float = math.inf) -> None:
    """Follows the bindings of all arguments of a class or function."""
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
    """Follows the last binding of an argument, and the overridden ones."""
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
        return  # Only overridden bindings use the macro; nobody evaluates them.
      hint = _definition(name) or nearest(name, self.macros)
      hint = hint or f'; set --gin.{name}=VALUE.'
      raise ValueError(f"{place}: '%{name}' is defined nowhere{hint}")
    if self._enter(name, limit):
      self._visit_history(self._bound[name][name], limit, (*chain, name))


def _definition(macro: str) -> str:
  """A hint with the files of gin_configs that define a macro; '' if none do."""
  files = files_that_define(macro)
  if not files:
    return ''
  if len(files) > 3:
    files = sorted({f'{os.path.dirname(name)}/*.gin' for name in files})
  return f'; include {" or ".join(files)}, or set --gin.{macro}=VALUE.'


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
    hint = gin_values.how_to_refer(value, wanted, macros)
    raise ValueError(
      f"{place}: '{label}' must be {gin_values.type_name(wanted)}, got"
      f' {gin_values.written(value)}{hint}.'
    )
  return InEffect(binding.argument, value, label, place)
