"""What can be trained: the form that every objective has."""

import dataclasses
from collections.abc import Callable

from moe.types import Array, Batch, Pair, PyTree


@dataclasses.dataclass(frozen=True)
class Objective:
  """A thing to train, as pure functions.

  The loss is the sum over terms of coefficient x sum / weight, where sum and
  weight are added over all microbatches and devices before they are divided.

  Attributes:
    init: (key, batch_shapes) -> (params, state, logical_axes).
    loss_fn: (params, state, batch, key, train) -> (terms, state, metrics);
      terms and metrics are name -> (sum, weight).
    weights_fn: batch -> name -> weight of each term, known from the batch
      alone: microbatches are scaled by the weight of the whole batch.
    coefficients: name -> factor of each term.
    update_fn: state -> state, once a step, after all microbatches.
    rows_together: so many neighbouring rows of a batch stay in one microbatch:
      those of a routing group that spans several.
  """

  init: Callable[[Array, Batch], tuple[PyTree, PyTree, PyTree]]
  loss_fn: Callable[..., tuple[dict[str, Pair], PyTree, dict[str, Pair]]]
  weights_fn: Callable[[Batch], dict[str, Array]]
  coefficients: dict[str, float]
  update_fn: Callable[[PyTree], PyTree] = lambda state: state
  rows_together: int = 1
