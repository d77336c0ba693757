"""Groups of parameters with their own learning rate and weight decay."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import optax

from moe.optim import storage
from moe.types import PyTree


class Factors(NamedTuple):
  """Factors of the learning rate and the weight decay for one parameter.

  Attributes:
    rate: factor of the learning rate. If weight decay is multiplied by the
      learning rate, it also has this factor.
    decay: factor of the weight decay; 0 for none. It has no effect on a
      parameter without weight decay, see `is_decayed`.
    rate_alone: further factor of the learning rate, which the weight decay does
      not have.
  """

  rate: float = 1.0
  decay: float = 1.0
  rate_alone: float = 1.0

  def times(self, other: 'Factors') -> 'Factors':
    """Multiplies the factors of both: rate by rate, decay by decay."""
    return Factors(
      self.rate * other.rate,
      self.decay * other.decay,
      self.rate_alone * other.rate_alone,
    )


# (regular expression, factor of the learning rate, factor of the decay).
Group = tuple[str, float, float]
# (path of a parameter, whether its update is orthogonal) -> its factors.
FactorsOf = Callable[[str, bool], Factors]


def factors_of(groups: Sequence[Group]) -> FactorsOf:
  """Returns a function from a parameter's path to the factors of its groups.

  A parameter is in a group if the regular expression matches its whole path
  'a/b/c'. The factors of all its groups are multiplied.

  Args:
    groups: (regular expression, factor of the learning rate, factor of the
      weight decay).

  Raises:
    ValueError: for a pattern that is not a regular expression, for a group
      without two factors, or for a negative factor.
  """
  check_patterns('GROUPS', [group[0] for group in groups])
  for pattern, *numbers in groups:
    if len(numbers) != 2 or min(numbers) < 0:
      raise ValueError(
        f"GROUPS entry ('{pattern}', {', '.join(map(str, numbers))}) must be"
        ' (regular expression, factor of the learning rate, factor of the'
        ' weight decay), the factors at least 0.'
      )

  def of(name: str, is_orthogonal: bool = False) -> Factors:
    del is_orthogonal
    found = Factors()
    for pattern, *numbers in groups:
      if re.fullmatch(pattern, name):
        found = found.times(Factors(*numbers))
    return found

  return of


def check_patterns(macro: str, patterns: Iterable[str]) -> None:
  """Raises ValueError for a pattern that is not a regular expression.

  Args:
    macro: name of the setting, for the message.
    patterns: the regular expressions of the setting.
  """
  for pattern in patterns:
    try:
      re.compile(pattern)
    except re.error as error:
      raise ValueError(
        f"{macro} pattern '{pattern}' must be a regular expression ({error})."
      ) from error


def check_matches(macro: str, patterns: Iterable[str], params: PyTree) -> None:
  """Raises ValueError for a pattern that matches no parameter.

  Args:
    macro: name of the setting, for the message.
    patterns: the regular expressions of the setting.
    params: arrays or shapes.
  """
  names = jax.tree.leaves(storage.names(params))
  for pattern in patterns:
    if not any(re.fullmatch(pattern, name) for name in names):
      raise ValueError(
        f"{macro} pattern '{pattern}' must match the path of a parameter in"
        ' full (see model.txt of a run), but matches none.'
      )


def is_decayed(name: str) -> bool:
  """Whether a parameter has weight decay; no group can change this.

  Routers, norm scales and biases have none, with any optimizer.

  Args:
    name: path of the parameter, 'a/b/c'.
  """
  return not re.search(r'(router|scale|bias)$', name)


def decay(decay_of: Callable[[str], float]) -> optax.GradientTransformation:
  """Weight decay: adds a fraction of each parameter to its update.

  Args:
    decay_of: path of a parameter -> the fraction.
  """

  def update(
    updates: PyTree, state: optax.EmptyState, params: PyTree
  ) -> tuple[PyTree, optax.EmptyState]:
    add = lambda name, u, p: u + decay_of(name) * p
    return jax.tree.map(add, storage.names(updates), updates, params), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)


def scale(rate_of: Callable[[str], float]) -> optax.GradientTransformation:
  """Multiplies the update of each parameter by a factor.

  Args:
    rate_of: path of a parameter -> the factor.
  """

  def update(
    updates: PyTree, state: optax.EmptyState, params: PyTree | None = None
  ) -> tuple[PyTree, optax.EmptyState]:
    del params
    times = lambda name, u: u * rate_of(name)
    return jax.tree.map(times, storage.names(updates), updates), state

  return optax.GradientTransformation(lambda _: optax.EmptyState(), update)
