"""The values that a gin file can hold, and checks whether they fit a type."""

import collections.abc
import dataclasses
import inspect
import re
import types
import typing


@dataclasses.dataclass(frozen=True, repr=False)
class Reference:
  """A reference @name or @name() to a class or function."""

  name: str
  is_called: bool
  target: object = None

  def __repr__(self):
    return f'@{self.name}' + ('()' if self.is_called else '')


@dataclasses.dataclass(frozen=True, repr=False)
class Macro:
  """A use of a macro, %NAME."""

  name: str

  def __repr__(self):
    return f'%{self.name}'


def map_references(function: collections.abc.Callable, value: object) -> object:
  """Copies a value; `function` gives the replacement of every reference."""
  if isinstance(value, Reference):
    return function(value)
  if isinstance(value, list | tuple):
    return type(value)(map_references(function, v) for v in value)
  if isinstance(value, dict):
    return {
      map_references(function, k): map_references(function, v)
      for k, v in value.items()
    }
  return value


def resolved(
  value: object, macros: collections.abc.Mapping
) -> tuple[object, str | None]:
  """Follows macros; returns (final value, place of the last macro or None)."""
  place = None
  while isinstance(value, Macro):
    place = macros[value.name].place
    value = macros[value.name].value
  return value, place


def written(value: object) -> str:
  """The text of a value for messages: '3 (int)', '@name' or '%NAME'."""
  if isinstance(value, Reference | Macro):
    return repr(value)
  return f'{value!r} ({type(value).__name__})'


def type_name(wanted: object) -> str:
  """Names an annotated type for an error message, in a short form."""
  if _is_callable(wanted):
    made = [
      t.__name__
      for t in _alternatives(_returned(wanted))
      if inspect.isclass(t) and t.__module__.split('.')[0] in ('moe', 'optax')
    ]
    if not made:
      return 'a function'
    return f'a reference @name, without (), to what makes {" or ".join(made)}'
  if typing.get_args(wanted):
    return re.sub(r'(typing|collections\.abc)\.', '', str(wanted))
  return getattr(wanted, '__name__', str(wanted).replace('typing.', ''))


def fits(
  value: object, wanted: object, macros: collections.abc.Mapping
) -> bool:
  """Whether a value in a gin file can have the annotated type."""
  value, _ = resolved(value, macros)
  origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
  if origin in (typing.Union, types.UnionType):
    return any(fits(value, a, macros) for a in arguments)
  if wanted in (None, type(None)):
    return value is None
  if isinstance(value, Reference):
    return _reference_fits(value, wanted)
  if _is_callable(wanted):
    return False
  if wanted is bool or isinstance(value, bool):
    return isinstance(value, bool) and wanted in (bool, typing.Any)
  if wanted is float:
    return isinstance(value, int | float)
  if wanted in (int, str):
    return isinstance(value, wanted)
  if origin in (tuple, list, collections.abc.Sequence):
    return _sequence_fits(value, origin, arguments, macros)
  if origin is dict:
    return isinstance(value, dict)
  return not inspect.isclass(wanted) or isinstance(value, wanted)


def how_to_refer(
  value: object, wanted: object, macros: collections.abc.Mapping
) -> str:
  """A hint if adding or dropping () makes a value fit; '' otherwise."""
  other = map_references(
    lambda r: dataclasses.replace(r, is_called=not r.is_called), value
  )
  if other == value or not fits(other, wanted, macros):
    return ''
  references = []
  map_references(references.append, other)
  with_or_without = 'with' if references[0].is_called else 'without'
  return f': write {references[0]!r}, {with_or_without} ()'


def _sequence_fits(value, origin, arguments, macros) -> bool:
  if not isinstance(value, list | tuple):
    return False
  if origin is not tuple or Ellipsis in arguments:
    arguments = (arguments[0],) * len(value)
  return len(value) == len(arguments) and all(
    fits(v, a, macros) for v, a in zip(value, arguments, strict=True)
  )


def _reference_fits(reference: Reference, wanted) -> bool:
  made = _made_by(reference.target)
  if reference.is_called:
    # A function without a return annotation may return anything, so it is
    # accepted, except where a plain value is wanted.
    is_plain = wanted in (int, float, str, bool)
    return _may_be(made, wanted) and not (made is None and is_plain)
  if wanted is typing.Any:
    return True
  return _is_callable(wanted) and _may_be(made, _returned(wanted))


def _is_callable(wanted) -> bool:
  origin = typing.get_origin(wanted)
  return collections.abc.Callable in (wanted, origin)


def _returned(wanted):
  """The type R in Callable[..., R]; None for a bare Callable."""
  return (typing.get_args(wanted) or (None,))[-1]


def _alternatives(wanted) -> tuple:
  """The members of a union, or the type itself."""
  is_union = typing.get_origin(wanted) in (typing.Union, types.UnionType)
  return typing.get_args(wanted) if is_union else (wanted,)


def _made_by(target):
  """The annotated type that a call of the target returns, or None."""
  if inspect.isclass(target):
    return target
  try:
    return typing.get_type_hints(target).get('return')
  except (NameError, TypeError):
    return None


def _may_be(made, wanted) -> bool:
  """Whether an object of type `made` may be given for the annotation `wanted`.

  If the wanted class itself defines public methods or properties, a class that
  has all of them also fits, without inheritance. So a user's layer need not
  inherit from the layer that it replaces.
  """
  if made is None or wanted in (None, typing.Any):
    return True
  if len(_alternatives(made)) > 1:
    return any(_may_be(m, wanted) for m in _alternatives(made))
  if len(_alternatives(wanted)) > 1:
    return any(_may_be(made, w) for w in _alternatives(wanted))
  if _is_callable(wanted):
    if _is_callable(made):
      return _may_be(_returned(made), _returned(wanted))
    call = inspect.getattr_static(
      typing.get_origin(made) or made, '__call__', None
    )
    return inspect.isfunction(call) and _may_be(
      _made_by(call), _returned(wanted)
    )
  if _is_callable(made):
    return False
  made, wanted = (typing.get_origin(t) or t for t in (made, wanted))
  if not (inspect.isclass(made) and inspect.isclass(wanted)):
    return True
  methods = [n for n, v in vars(wanted).items() if _is_public_method(n, v)]
  return issubclass(made, wanted) or (
    bool(methods) and all(hasattr(made, name) for name in methods)
  )


def _is_public_method(name: str, value: object) -> bool:
  is_method = inspect.isfunction(value) or isinstance(value, property)
  return is_method and not name.startswith('_')
