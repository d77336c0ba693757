"""The arrays that training passes from step to step."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from moe.optim import storage
from moe.optim.optimizers import Optimizer
from moe.train import spikes
from moe.types import Array, PyTree


class TrainState(NamedTuple):
  """Everything that a step reads and writes, and that a checkpoint holds.

  Attributes:
    step: int32 scalar, steps done.
    params: the trained parameters.
    opt_state: state of the optimizer.
    state: arrays of the model that each step updates by a rule instead of
      gradients, such as the bias of a router.
  """

  step: Array
  params: PyTree
  opt_state: optax.OptState
  state: PyTree


class WatchedState(NamedTuple):
  """A `TrainState` of a run with a rule for spikes of the gradient.

  Attributes:
    step, params, opt_state, state: as in `TrainState`.
    norms: statistics of the gradient norms.
  """

  step: Array
  params: PyTree
  opt_state: optax.OptState
  state: PyTree
  norms: spikes.Norms


def create(params: PyTree, state: PyTree, optimizer: Optimizer) -> TrainState:
  """The state before the first step, in the formats of `optimizer.storage`."""
  step = jnp.zeros((), jnp.int32)
  opt_state = optimizer.init(params)
  params = storage.cast(params, optimizer.storage.params)
  return TrainState(step, params, opt_state, state)


def count(tree: PyTree) -> int:
  """The number of entries of all arrays or shapes in a tree."""
  return sum(int(leaf.size) for leaf in jax.tree.leaves(tree))
