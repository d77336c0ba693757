"""Product of runs of rows with one matrix each, on whatever it is compiled for.

The kernel is chosen by the platform of the program, not of the machine: what is
compiled for a TPU on a machine without one holds the TPU's kernel.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from moe.types import Array


@jax.custom_vjp
def grouped_matmul(x_RD: Array, w_EDF: Array, count_E: Array) -> Array:
  """Rows of each run times the run's matrix.

  TPU: `jax.lax.ragged_dot`, for which its compiler has a grouped kernel.
  Elsewhere `ragged_dot` multiplies every row by every matrix, so there a loop
  walks over blocks of rows, as many as each run has.

  Args:
    x_RD: rows, the runs one after another.
    w_EDF: matrices, in the dtype of x_RD.
    count_E: int32 rows of each run, at most R in all.

  Returns:
    [R, F] in the dtype of x_RD; rows behind the last run have no meaning.
  """
  return lax.platform_dependent(
    x_RD, w_EDF, count_E, tpu=lax.ragged_dot, default=_by_blocks
  )


def _fwd(x_RD, w_EDF, count_E):
  return grouped_matmul(x_RD, w_EDF, count_E), (x_RD, w_EDF, count_E)


def _bwd(residuals, dy_RF):
  def ragged(x_RD, w_EDF, count_E, dy_RF):
    product = lambda x_RD, w_EDF: lax.ragged_dot(x_RD, w_EDF, count_E)
    return jax.vjp(product, x_RD, w_EDF)[1](dy_RF)

  def by_blocks(x_RD, w_EDF, count_E, dy_RF):
    dx_RD = _by_blocks(dy_RF, w_EDF, count_E, contract=1)
    return dx_RD, _weights_by_blocks(x_RD, dy_RF, count_E)

  dx_RD, dw_EDF = lax.platform_dependent(
    *residuals, dy_RF, tpu=ragged, default=by_blocks
  )
  return dx_RD, dw_EDF, None


grouped_matmul.defvjp(_fwd, _bwd)


def _block_size(rows: int, runs: int) -> int:
  """Rows of a block: half an even run or less, so that little is in vain."""
  even = max(16, min(1024, rows // runs))
  return min(rows, 1 << (even.bit_length() - 2))


def _runs(count_E: Array) -> tuple[Array, Array]:
  end_E = jnp.cumsum(count_E, dtype=jnp.int32)
  return end_E - count_E, end_E


def _by_blocks(
  x_RD: Array, w_EDF: Array, count_E: Array, contract: int = 0
) -> Array:
  """The product; `contract` is the dim of a matrix that is summed over.

  Runs come in order, so that the rows by which a run's last block reaches into
  the next run are written again by that one.
  """
  R, D = x_RD.shape
  E = w_EDF.shape[0]
  F = w_EDF.shape[2 - contract]
  Q = _block_size(R, E)
  start_E, end_E = _runs(count_E)
  rows_Q = jnp.arange(Q, dtype=jnp.int32)

  def run(e, out_RF):
    w = lax.dynamic_index_in_dim(w_EDF, e, keepdims=False)

    def block(carry):
      row, out_RF = carry
      at = jnp.minimum(row, R - Q)
      x_QD = lax.dynamic_slice(x_RD, (at, 0), (Q, D))
      y_QF = lax.dot_general(x_QD, w, (((1,), (contract,)), ((), ())))

      # A block at the very end lies over rows of runs that are done.
      def kept():
        old_QF = lax.dynamic_slice(out_RF, (at, 0), (Q, F))
        return jnp.where((at + rows_Q >= row)[:, None], y_QF, old_QF)

      y_QF = lax.cond(row > at, kept, lambda: y_QF)
      return row + Q, lax.dynamic_update_slice(out_RF, y_QF, (at, 0))

    more = lambda carry: carry[0] < end_E[e]
    return lax.while_loop(more, block, (start_E[e], out_RF))[1]

  return lax.fori_loop(0, E, run, jnp.zeros((R, F), x_RD.dtype))


def _weights_by_blocks(x_RD: Array, dy_RF: Array, count_E: Array) -> Array:
  """Gradient of the matrices: each run's rows by each run's gradients."""
  (R, D), F, E = x_RD.shape, dy_RF.shape[1], count_E.shape[0]
  Q = _block_size(R, E)
  start_E, end_E = _runs(count_E)
  rows_Q = jnp.arange(Q, dtype=jnp.int32)
  zero = jnp.zeros((), x_RD.dtype)

  def run(e, dw_EDF):
    def block(carry):
      row, sum_DF = carry
      at = jnp.minimum(row, R - Q)
      mine_Q = (at + rows_Q >= row) & (at + rows_Q < end_E[e])
      x_QD = lax.dynamic_slice(x_RD, (at, 0), (Q, D))
      x_QD = jnp.where(mine_Q[:, None], x_QD, zero)
      dy_QF = lax.dynamic_slice(dy_RF, (at, 0), (Q, F))
      product = functools.partial(
        lax.dot_general, preferred_element_type=jnp.float32
      )
      return row + Q, sum_DF + product(x_QD, dy_QF, (((0,), (0,)), ((), ())))

    more = lambda carry: carry[0] < end_E[e]
    start = start_E[e], jnp.zeros((D, F), jnp.float32)
    sum_DF = lax.while_loop(more, block, start)[1].astype(x_RD.dtype)
    return lax.dynamic_update_index_in_dim(dw_EDF, sum_DF, e, 0)

  return lax.fori_loop(0, E, run, jnp.zeros((E, D, F), x_RD.dtype))
