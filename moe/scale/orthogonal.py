"""Counts Muon's cost from shapes alone: products, memory and transfers."""

import dataclasses
import math

import jax

from moe.optim import muon, storage
from moe.optim.matrices import Matrix, division, matrix_of
from moe.parallel.mesh import DATA
from moe.types import PyTree

# Bytes of one number in Muon's products, which use float32.
_FULL = 4


@dataclasses.dataclass(frozen=True)
class Transfer:
  """A collective of an update.

  Attributes:
    kind: 'all-to-all', 'all-reduce' or 'all-gather'.
    axis: the mesh axis over which it runs.
    num_bytes: bytes of a device's operand; for an all-gather, bytes of the
      result.
    times: how often it runs in an update.
  """

  kind: str
  axis: str
  num_bytes: int
  times: int


@dataclasses.dataclass(frozen=True)
class Update:
  """The cost of orthogonalisation in an update, for one device.

  Attributes:
    flops: FLOPs of the products.
    working_bytes: the largest number of bytes that the products of one
      parameter need at a time.
    transfers: the collectives.
  """

  flops: float
  working_bytes: int
  transfers: tuple[Transfer, ...]


def _matrices(opt_state: PyTree) -> list[Matrix]:
  """The matrices that Muon updates: those with a `MuonState` in the state."""
  is_muon = lambda node: isinstance(node, muon.MuonState)
  found = []
  for state in jax.tree.leaves(opt_state, is_leaf=is_muon):
    if is_muon(state):
      names = jax.tree.leaves(storage.names(state.mu))
      for name, mu in zip(names, jax.tree.leaves(state.mu), strict=True):
        found.append(matrix_of(name, mu.shape))
  return found


def flops(opt_state: PyTree) -> int:
  """FLOPs of Muon's products in one update, summed over all devices.

  The FLOPs depend on all parameters, not only on the active ones. They do not
  depend on the number of tokens. An elementwise optimizer has no products.

  Args:
    opt_state: arrays or shapes of the optimizer's state.
  """
  return sum(muon.flops(matrix) for matrix in _matrices(opt_state))


def flops_with_muon(params: PyTree) -> int:
  """The result of `flops` if Muon trained the given parameters.

  Args:
    params: arrays or shapes of the parameters.
  """
  names = jax.tree.leaves(storage.names(params))
  found = (
    matrix_of(name, p.shape)
    for name, p in zip(names, jax.tree.leaves(params), strict=True)
  )
  return sum(muon.flops(matrix) for matrix in found if matrix)


def update(opt_state: PyTree, params: PyTree) -> Update:
  """Counts the cost of one update on one device.

  Args:
    opt_state: shapes of the optimizer's state.
    params: shapes of the parameters, with shardings.
  """
  names = jax.tree.leaves(storage.names(params))
  shardings = {
    name: p.sharding
    for name, p in zip(names, jax.tree.leaves(params), strict=True)
  }
  total, working, transfers = 0.0, 0, []
  for matrix in _matrices(opt_state):
    shared = division(matrix, shardings[matrix.name])
    sizes = shared.mesh.shape
    parts = [math.prod(sizes[a] for a in axes) for axes in shared.used]
    batch, rows = matrix.batch // parts[0], matrix.sides[0]
    own = batch * rows * (matrix.sides[1] // parts[2])
    gram = batch * rows * rows
    total += muon.flops(matrix, (parts[0], parts[2]))
    # Three arrays have the size of the matrix X: the stored momentum, X, and
    # the next X. Three have the size of X X^T: this product, its square, and
    # the weighted sum of both.
    working = max(working, _FULL * 3 * (own + gram))
    moved = [
      axis
      for before, after in zip(shared.stored, shared.used, strict=True)
      for axis in after
      if axis not in before and any(axis in axes for axes in shared.stored)
    ]
    stored = {axis for axes in shared.stored for axis in axes}
    copies = [axis for axis in shared.used[0] if axis not in stored]
    exchanged = own * math.prod(sizes[axis] for axis in copies)
    transfers += [
      Transfer('all-to-all', a, _FULL * exchanged, 2) for a in moved
    ]
    transfers += [
      Transfer('all-reduce', a, _FULL * gram, muon.STEPS)
      for a in shared.used[2]
    ]
    # Devices along the axes `copies` store the same part of the parameter. Each
    # of them updates only some of its matrices, so it must get the updates of
    # the others. The gather over 'data' is left out, since each optimizer has
    # it.
    for axis in reversed(copies):
      own *= sizes[axis]
      if axis != DATA:
        transfers.append(Transfer('all-gather', axis, _FULL * own, 1))
  return Update(total, working, tuple(transfers))
