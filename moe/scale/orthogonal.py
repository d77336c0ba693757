"""What Muon costs: products, memory and transfers, from shapes alone."""

import dataclasses
import math

import jax

from moe.optim import muon, storage
from moe.optim.matrices import Matrix, division, matrix_of
from moe.types import PyTree

# Bytes of a number: products are float32.
_FULL = 4


@dataclasses.dataclass(frozen=True)
class Transfer:
  """Bytes of a device that cross a mesh axis in an update.

  Attributes:
    kind: 'all-to-all' or 'all-reduce'.
    axis: the mesh axis.
    num_bytes: of a device, each time.
    times: in an update.
  """

  kind: str
  axis: str
  num_bytes: int
  times: int


@dataclasses.dataclass(frozen=True)
class Update:
  """What orthogonalisation asks of one device in an update.

  Attributes:
    flops: FLOPs of its products.
    working_bytes: the most that one parameter's products hold at a time.
    transfers: what crosses mesh axes.
  """

  flops: float
  working_bytes: int
  transfers: tuple[Transfer, ...]


def _matrices(opt_state: PyTree) -> list[Matrix]:
  """The matrices whose momentum is in an optimizer's state."""
  is_muon = lambda node: isinstance(node, muon.MuonState)
  found = []
  for state in jax.tree.leaves(opt_state, is_leaf=is_muon):
    if is_muon(state):
      names = jax.tree.leaves(storage.names(state.mu))
      for name, mu in zip(names, jax.tree.leaves(state.mu), strict=True):
        found.append(matrix_of(name, mu.shape))
  return found


def flops(opt_state: PyTree) -> int:
  """FLOPs of the products of one update, over all devices.

  They grow with all parameters, not with the active ones, and not with the
  tokens of a batch. An optimizer that works element by element has none.

  Args:
    opt_state: arrays or shapes.
  """
  return sum(muon.flops(matrix) for matrix in _matrices(opt_state))


def flops_with_muon(params: PyTree) -> int:
  """`flops` of a model that Muon would train.

  Args:
    params: arrays or shapes.
  """
  names = jax.tree.leaves(storage.names(params))
  found = (
    matrix_of(name, p.shape)
    for name, p in zip(names, jax.tree.leaves(params), strict=True)
  )
  return sum(muon.flops(matrix) for matrix in found if matrix)


def update(opt_state: PyTree, params: PyTree) -> Update:
  """The account of one update on one device.

  Args:
    opt_state: shapes.
    params: shapes with shardings.
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
    total += muon.flops(matrix) / shared.num_parts
    # The momentum as it lies, the matrix and the sum that follows it; the
    # product with the transpose, its square and their sum.
    working = max(working, _FULL * 3 * (own + gram))
    moved = [
      axis
      for before, after in zip(shared.stored, shared.used, strict=True)
      for axis in after
      if axis not in before and any(axis in axes for axes in shared.stored)
    ]
    transfers += [Transfer('all-to-all', a, _FULL * own, 2) for a in moved]
    transfers += [
      Transfer('all-reduce', a, _FULL * gram, muon.STEPS)
      for a in shared.used[2]
    ]
  return Update(total, working, tuple(transfers))
