"""Objectives: what a run can be trained for, and how that is scored."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from moe import axes
from moe.types import Array, Batch, Pair, PyTree

Facts = Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Measure:
  """A number that people are shown and that ranks checkpoints.

  Attributes:
    name: name of the number in the logs, such as 'bits_per_char'.
    unit: unit that people are shown, such as 'bits/char'.
    value: (sums, facts) -> the number, or None if the facts do not suffice.
      `sums` is name -> (sum, weight) of the terms and metrics, on the host.
      `facts` are properties of the whole data, such as the number of
      characters.
    is_higher_better: whether a larger number is better.
  """

  name: str
  unit: str
  value: Callable[[dict[str, Pair], Facts], float | None]
  is_higher_better: bool = False


@dataclasses.dataclass(frozen=True)
class Objective:
  """A goal of training, as pure functions.

  The loss is the sum over terms of coefficient x sum / weight, where sum and
  weight are added over all microbatches and devices before they are divided.

  Attributes:
    init: (key, shapes of a batch) -> (params, state, logical_axes).
    fields: () -> tree of `Field`s, the arrays of a batch.
    loss: (params, state, batch, key, train) -> (sums, state, metrics); sums is
      name -> sum of each term, metrics is name -> (sum, weight).
    weights: batch -> {name: weight of each term}. The weights depend on the
      batch alone, since those of the whole batch are needed before its
      microbatches are computed.
    coefficients: name -> factor of each term.
    score: the measure that is shown at each step and ranks checkpoints.
    update: state -> state, called once per step, after all microbatches.
    unit: unit in which progress is counted, such as 'tokens'.
    count: batch on the host -> number of these units in it; None counts rows.
    rows_together: how many neighbouring rows of a batch must stay in the same
      microbatch, because one routing group may span them.
  """

  init: Callable[[Array, Batch], tuple[PyTree, PyTree, PyTree]]
  fields: Callable[[], PyTree]
  loss: Callable[..., tuple[dict[str, Array], PyTree, dict[str, Pair]]]
  weights: Callable[[Batch], dict[str, Array]]
  coefficients: dict[str, float]
  score: Measure
  update: Callable[[PyTree], PyTree] = lambda state: state
  unit: str = 'rows'
  count: Callable[[Batch], int] | None = None
  rows_together: int = 1

  def total(self, terms: dict[str, Pair]) -> Array:
    """The loss: the sum of factor times mean, over terms with a factor.

    Args:
      terms: name -> (sum, weight) of each term; other names are ignored.
    """
    return sum(
      self.coefficients[name] * s / jnp.maximum(weight, 1.0)
      for name, (s, weight) in terms.items()
      if self.coefficients.get(name)  # A zero term needs no backward pass.
    )

  def amount(self, batch: Batch) -> int:
    """Number of units in a batch on the host; see `unit`."""
    return self.count(batch) if self.count else num_rows(batch)

  def shapes(self) -> Batch:
    """Shapes of a batch.

    Raises:
      ValueError: if the first dim of a field does not count the rows, or if a
        field does not have as many axes as dims.
    """
    fields = self.fields()
    leaves = jax.tree.leaves(fields)
    for field in leaves:
      begins_with_rows = field.axes[:1] == (axes.BATCH,)
      if not begins_with_rows or field.shape[0] != leaves[0].shape[0]:
        raise ValueError(
          f"Every field of a batch must begin with the dim '{axes.BATCH}', of"
          f' the same size in all fields, got {field}: change the fields of the'
          ' objective.'
        )
      if len(field.axes) != len(field.shape):
        raise ValueError(
          f'A field must have a logical axis or None for each dim, got {field}.'
        )
    return shapes_of(fields)


def shapes_of(fields: PyTree) -> Batch:
  """Shapes of the arrays that a tree of `Field`s declares."""
  return jax.tree.map(lambda f: jax.ShapeDtypeStruct(f.shape, f.dtype), fields)


def num_rows(batch: Batch) -> int:
  """Number of rows of a batch, or of a tree of shapes."""
  return jax.tree.leaves(batch)[0].shape[0]


def weighted(
  sums: dict[str, Array], weights: dict[str, Array]
) -> dict[str, Pair]:
  """(sum, weight) of each term.

  Raises:
    ValueError: if a term has no weight.
  """
  missing = sorted(set(sums) - set(weights))
  if missing:
    raise ValueError(
      f'Every term of the loss needs a weight, got none for {missing}: add them'
      ' to `weights` of the objective.'
    )
  return {name: (total, weights[name]) for name, total in sums.items()}
