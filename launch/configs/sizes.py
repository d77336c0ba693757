"""Checks that the numbers of a run are in range, before the first compile.

The layers of a model check their own numbers when they are made. Normally that
happens late, while the model is traced. So this module makes them once, early.
"""

from collections.abc import Iterable, Iterator

from launch.configs.reach import InEffect
from moe import bounds
from moe.models import functional
from moe.models.anatomy import anatomy
from moe.parallel import rules
from moe.runs.run import Run, optimizer_of
from moe.types import Layout


def check(run: Run) -> None:
  """Raises ValueError at the first setting of a run that is out of range."""
  rules.table(run.rules)
  optimizer_of(run)
  anatomy(run.model)
  run.objective(
    functional.make_functional(run.model, (), Layout()), run.data.shape
  )


def placed(error: bounds.OutOfRange, in_effect: Iterable[InEffect]) -> str:
  """The message of an error, with the place where the wrong value was set.

  Args:
    error: error of a class or function that checked its own arguments. The
      error names an argument, or the macro that usually sets it.
    in_effect: the final values of all arguments.
  """
  name = error.name.lower()
  for bound in in_effect:
    names = bound.argument.lower(), bound.label.lower()
    if name in names and _is_in(error.value, bound.value):
      return f'{bound.place}: {bound.label}={error.value!r} {error.rule}'
  return str(error)


def _is_in(wanted: object, value: object) -> bool:
  """Whether `value` is `wanted`, or a list or tuple that contains it."""
  # `is` finds NaN, which does not equal itself. The types are compared because
  # 1 == True.
  return any(
    v is wanted or (type(v) is type(wanted) and v == wanted)
    for v in _leaves(value)
  )


def _leaves(value: object) -> Iterator[object]:
  if isinstance(value, list | tuple):
    for v in value:
      yield from _leaves(v)
  else:
    yield value
