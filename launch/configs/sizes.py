"""Whether the numbers of a run are in range, checked before anything is built.

A gin file names the parts of a model, and they are made only where it is
traced. Here they are made at once, so that an error comes before the first
compile.
"""

from collections.abc import Iterable, Iterator

from launch.configs.reach import InEffect
from moe import bounds
from moe.models import functional
from moe.models.anatomy import anatomy
from moe.parallel import rules
from moe.runs.run import Run
from moe.types import Layout


def check(run: Run) -> None:
  """Raises ValueError at the first number of a run that is out of range.

  Every part is made once here, and checks itself.
  """
  rules.table(run.rules)
  run.optimizer(run.schedule)
  anatomy(run.model)
  run.objective(functional.placed(run.model, (), Layout()), run.data.shape)


def placed(error: bounds.OutOfRange, in_effect: Iterable[InEffect]) -> str:
  """The message of an error, with the place where the value was set.

  Args:
    error: of a class or function that checked its own arguments; it names an
      argument, or the macro that usually sets it.
    in_effect: the values that arguments get.
  """
  name = error.name.lower()
  for bound in in_effect:
    names = bound.argument.lower(), bound.label.lower()
    if name in names and _is_in(error.value, bound.value):
      return f'{bound.place}: {bound.label}={error.value!r} {error.rule}'
  return str(error)


def _is_in(wanted: object, value: object) -> bool:
  """Whether a value is the wanted one, or a list that holds it."""
  # NaN equals nothing, and 1 equals True.
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
