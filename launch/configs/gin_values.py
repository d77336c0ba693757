"""What a gin file can say, and of which types it can be."""

import collections.abc
import dataclasses
import inspect
import re
import types
import typing


@dataclasses.dataclass(frozen=True, repr=False)
class Reference:
  """@name or @name()."""

  name: str
  is_called: bool
  target: object = None

  def __repr__(self):
    return f'@{self.name}' + ('()' if self.is_called else '')


@dataclasses.dataclass(frozen=True, repr=False)
class Macro:
  """%NAME."""

  name: str

  def __repr__(self):
    return f'%{self.name}'


def map_references(function: collections.abc.Callable, value: object) -> object:
  """The value with every reference in it replaced by what `function` gives."""
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
  """The value behind macros, and the place of the last one, None for none."""
  place = None
  while isinstance(value, Macro):
    place = macros[value.name].place
    value = macros[value.name].value
  return value, place


def written(value: object) -> str:
  """A value as the user knows it, for a message."""
  if isinstance(value, Reference | Macro):
    return repr(value)
  return f'{value!r} ({type(value).__name__})'


def type_name(wanted: object) -> str:
  """An annotated type, for a message."""
  if typing.get_origin(wanted) is collections.abc.Callable:
    return 'a reference @name'
  if typing.get_args(wanted):
    return re.sub(r'(typing|collections\.abc)\.', '', str(wanted))
  return getattr(wanted, '__name__', str(wanted).replace('typing.', ''))


def fits(
  value: object, wanted: object, macros: collections.abc.Mapping
) -> bool:
  """Whether a written value can be of the annotated type."""
  value, _ = resolved(value, macros)
  origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
  if origin in (typing.Union, types.UnionType):
    return any(fits(value, a, macros) for a in arguments)
  if wanted in (None, type(None)):
    return value is None
  if origin is collections.abc.Callable or wanted is collections.abc.Callable:
    return isinstance(value, Reference)
  if isinstance(value, Reference):
    return _reference_fits(value, wanted)
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


def _sequence_fits(value, origin, arguments, macros) -> bool:
  if not isinstance(value, list | tuple):
    return False
  if origin is not tuple or Ellipsis in arguments:
    arguments = (arguments[0],) * len(value)
  return len(value) == len(arguments) and all(
    fits(v, a, macros) for v, a in zip(value, arguments, strict=True)
  )


def _reference_fits(reference: Reference, wanted) -> bool:
  if wanted in (int, float, str, bool):
    return False
  if not inspect.isclass(wanted):
    return True
  if not reference.is_called:
    return False
  made = reference.target
  return not inspect.isclass(made) or issubclass(made, wanted)
