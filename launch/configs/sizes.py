"""Which numbers make a run, checked by value before anything is built.

A gin file names the parts of a model, and they are made only where it is
traced. Here they are made at once, so that an error comes before the first
compile.
"""

from collections.abc import Iterable

from launch.configs.reach import InEffect
from moe.models.anatomy import anatomy
from moe.parallel import rules
from moe.runs.run import Run, optimizer_of

# Arguments of functions, which have no fields to look at afterwards: the least
# value, and what it means.
LEAST = {
  'learning_rate': (0, 'the peak of the schedule'),
  'weight_decay': (0, 'part of a matrix taken off, 0 for none'),
  'load_balance': (0, 'a factor of a loss that is made small'),
  'router_z': (0, 'a factor of a loss that is made small'),
  'ahead': (0, 'a factor of a loss that is made small'),
  'logits_z': (0, 'a factor of a loss that is made small'),
  'num_chunks': (1, 'pieces in which logits and loss are computed'),
}


def check_values(in_effect: Iterable[InEffect]) -> None:
  """Raises ValueError at the first argument out of range, with its place."""
  for bound in in_effect:
    least, meaning = LEAST.get(bound.argument, (0, ''))
    if not meaning or not isinstance(bound.value, int | float):
      continue
    if not bound.value >= least:  # NaN is none.
      raise ValueError(
        f'{bound.place}: {bound.label}={bound.value} must be at least {least}'
        f' ({meaning}): raise it.'
      )


def check(run: Run) -> None:
  """Raises ValueError at the first number of a run that is out of range.

  Every part is made once here, and checks itself.
  """
  rules.table(run.rules)
  optimizer_of(run)
  anatomy(run.model)
