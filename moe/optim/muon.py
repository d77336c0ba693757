"""Muon: an optimizer that makes the momentum of each matrix orthogonal."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding

from moe.optim import moments, rounding, storage
from moe.optim.matrices import Division, Matrix, division, matrix_of
from moe.types import Array, PyTree

# The number of Newton-Schulz steps, and the coefficients of their polynomial
# (Jordan 2024, https://kellerjordan.github.io/posts/muon).
STEPS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# The root mean square of a typical update of Adam (Liu et al. 2025, section
# 2.2, https://arxiv.org/abs/2502.16982).
_RMS = 0.2


class MuonState(NamedTuple):
  """Muon's stored momentum, in trees with the structure of its parameters.

  Attributes:
    count: int32 scalar, number of updates so far.
    mu: momentum: float32, bfloat16, or int8 codes.
    mu_scale: float32 scale of each block of int8 codes; () for other formats.
  """

  count: Array
  mu: PyTree
  mu_scale: PyTree


def orthogonalise(x: Array) -> Array:
  """Brings the singular values of each matrix near 1, by Newton-Schulz steps.

  A matrix U S V^T becomes U S' V^T. A singular value becomes one between 0.68
  and 1.21 if it is above 1 / 600 of the matrix's Frobenius norm. A smaller one
  may stay smaller. A matrix of zeros does not change.

  Args:
    x: stack of matrices [batch, rows, columns], float32, with rows <= columns.
  """
  a, b, c = _COEFFICIENTS
  norm = jnp.sqrt(jnp.sum(jnp.square(x), axis=(1, 2), keepdims=True))
  x = x / (norm + 1e-8)
  for _ in range(STEPS):
    gram = jnp.einsum('brc,bsc->brs', x, x)
    factor = b * gram + c * jnp.einsum('brs,bst->brt', gram, gram)
    x = a * x + jnp.einsum('brs,bsc->brc', factor, x)
  return x


def flops(matrix: Matrix, parts: tuple[int, int] = (1, 1)) -> int:
  """FLOPs of the matrix products in `orthogonalise` for a stack of matrices.

  Args:
    matrix: the stack of matrices.
    parts: into how many parts devices divide (matrices, columns). The result is
      for one device. All devices that have columns of a matrix compute the
      square of the product X X^T.
  """
  rows, columns = matrix.sides
  step = 4 * rows * rows * (columns // parts[1]) + 2 * rows**3
  return (matrix.batch // parts[0]) * STEPS * step


def _direction(
  momentum: Array, matrix: Matrix, shared: Division | None
) -> Array:
  """Turns the momentum of a parameter into its orthogonal update."""
  x = matrix.stack(momentum)
  steps = shared.steps() if shared else []
  for step in steps:
    x = jax.lax.with_sharding_constraint(x, step)
  x = orthogonalise(x)
  for step in reversed(steps):
    x = jax.lax.with_sharding_constraint(x, step)
  return matrix.unstack(x) * (_RMS * matrix.sides[1] ** 0.5)


def scale_by_muon(
  beta: float, moment_dtype: str = 'float32'
) -> optax.GradientTransformationExtraArgs:
  """Muon's direction for a tree of matrices.

  Jordan (2024), https://kellerjordan.github.io/posts/muon, with Nesterov
  momentum and its bias correction as in `optax.contrib.scale_by_muon`. The
  updates have about the same root mean square as Adam's, so that one learning
  rate serves both (Liu et al. 2025). Unlike in these sources, the momentum may
  be stored in few bits, and devices share the matrix products, see
  `moe.optim.matrices`.

  Args:
    beta: decay of the momentum.
    moment_dtype: format of the momentum: 'float32', 'bfloat16' or 'int8'.

  Returns:
    A transformation whose `update` also takes `shardings`: path of a parameter
    -> its sharding. Without `shardings`, XLA decides how devices share the
    products.
  """
  is_int8 = moment_dtype == 'int8'

  def init(params: PyTree) -> MuonState:
    dtype = jnp.dtype(moment_dtype)
    mu = jax.tree.map(lambda p: jnp.zeros(p.shape, dtype), params)
    mu_scale = moments.zero_scales(params) if is_int8 else ()
    return MuonState(jnp.zeros((), jnp.int32), mu, mu_scale)

  def momentum(
    index: int, count: Array, g: Array, mu: Array, scale: Array | None
  ) -> tuple[Array, Array, Array | None]:
    """Returns (new momentum in float32, the stored momentum, its scales)."""
    m = moments.decode_signed(mu, scale) if is_int8 else mu.astype(jnp.float32)
    m = beta * m + (1.0 - beta) * g
    if moment_dtype == 'float32':
      return m, m, None
    random = rounding.bits(g.shape, 0, count, index, rounding.MOMENTUM)
    return m, *moments.pack(m, is_int8, moments.encode_signed, random)

  def update(
    grads: PyTree,
    state: MuonState,
    params: PyTree | None = None,
    *,
    shardings: Mapping[str, NamedSharding] | None = None,
    **extra: PyTree,
  ) -> tuple[PyTree, MuonState]:
    del params, extra
    leaves, structure = jax.tree.flatten(grads)
    names = jax.tree.leaves(storage.names(grads))
    stored = structure.flatten_up_to(state.mu)
    scales = (
      structure.flatten_up_to(state.mu_scale)
      if is_int8
      else [None] * len(leaves)
    )
    done = (state.count + 1).astype(jnp.float32)
    updates, new_mu, new_scales = [], [], []
    for i, (name, g, mu, scale) in enumerate(
      zip(names, leaves, stored, scales, strict=True)
    ):
      matrix = matrix_of(name, g.shape)
      m, mu, scale = momentum(i, state.count, g, mu, scale)
      # Nesterov: about the momentum after one more step with the same gradient.
      # The corrections for the start at 0 are those of optax.
      ahead = beta * m / (1.0 - beta ** (done + 1.0))
      ahead += (1.0 - beta) * g / (1.0 - beta**done)
      shared = division(matrix, shardings[name]) if shardings else None
      updates.append(_direction(ahead, matrix, shared))
      new_mu.append(mu)
      new_scales.append(scale)
    new = MuonState(
      state.count + 1,
      structure.unflatten(new_mu),
      structure.unflatten(new_scales) if is_int8 else (),
    )
    return structure.unflatten(updates), new

  return optax.GradientTransformationExtraArgs(init, update)
