"""Grouped matrix product: multiplies each run of rows by its own matrix.

The kernel depends on the platform for which the program is compiled. A program
for a TPU has the TPU's kernel, even if this machine has no TPU.
"""

import contextlib
import functools
import sys

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import Primitive
from jax.interpreters import mlir

from moe.types import Array

# The three products: rows times matrices, gradients of the rows, and gradients
# of the matrices. The ragged dim counts rows. It is a dim of the result of the
# first two products, and the contracted dim of the third.
_DIMS = {
  'forward': lax.RaggedDotDimensionNumbers((((1,), (1,)), ((), ())), [0], [0]),
  'rows': lax.RaggedDotDimensionNumbers((((1,), (2,)), ((), ())), [0], [0]),
  'matrices': lax.RaggedDotDimensionNumbers((((0,), (0,)), ((), ())), [0], []),
}


@jax.custom_vjp
def grouped_matmul(x_RD: Array, w_EDF: Array, count_E: Array) -> Array:
  """Multiplies each run of rows, such as those of one expert, by its matrix.

  TPUs use `jax.lax.ragged_dot`, for which their compiler has a grouped kernel.
  NVIDIA's GPUs use the kernels of tokamax. On CPUs a loop multiplies each run
  in blocks of rows. `ragged_dot` on CPUs would multiply every row by every
  matrix, as XLA's own program for GPUs does.

  Args:
    x_RD: rows, the runs one after another; zeros behind the last run.
    w_EDF: a matrix for each run, in the dtype of x_RD.
    count_E: int32 number of rows of each run; the sum is at most R.

  Returns:
    [R, F] in the dtype of x_RD; rows behind the last run have no meaning.

  Raises:
    ValueError: if the program is for an NVIDIA GPU, and tokamax is missing or
      has no kernel that takes the arrays.
  """
  return _product_p.bind(x_RD, w_EDF, count_E, kind='forward')


def _fwd(x_RD, w_EDF, count_E):
  return grouped_matmul(x_RD, w_EDF, count_E), (x_RD, w_EDF, count_E)


def _bwd(residuals, dy_RF):
  x_RD, w_EDF, count_E = residuals
  dx_RD = _product_p.bind(dy_RF, w_EDF, count_E, kind='rows')
  dw_EDF = _product_p.bind(x_RD, dy_RF, count_E, kind='matrices')
  return dx_RD, dw_EDF, None


grouped_matmul.defvjp(_fwd, _bwd)


def _shape(a, b, count_E, *, kind):
  R, D = a.shape
  shapes = {
    'forward': (R, b.shape[-1]),
    'rows': (R, b.shape[1]),
    'matrices': (count_E.shape[0], D, b.shape[1]),
  }
  return jax.core.ShapedArray(shapes[kind], a.dtype)


def _on_tpu(a, b, count_E, *, kind):
  return lax.ragged_dot_general(a, b, count_E, _DIMS[kind])


def _on_cpu(a, b, count_E, *, kind):
  if kind == 'matrices':
    return _weights_by_blocks(a, b, count_E)
  return _by_blocks(a, b, count_E, contract=int(kind == 'rows'))


@contextlib.contextmanager
def _without_flags():
  """Hides the command line from tokamax, which refuses unknown flags."""
  argv, sys.argv = sys.argv, sys.argv[:1]
  try:
    yield
  finally:
    sys.argv = argv


def _on_cuda(a, b, count_E, *, kind):
  """Computes a product by the first kernel of tokamax that takes the arrays."""
  try:
    # Imported here, since the import takes seconds.
    import tokamax
  except ImportError as error:
    raise ValueError(
      'grouped products on NVIDIA GPUs need the package tokamax: run pip'
      " install '.[cuda]', or use dispatch.Sorted, which does not need it."
    ) from error
  out, refusals = None, []
  for name in ('triton', 'mosaic_gpu'):
    if name == 'mosaic_gpu' and any(n % 128 for n in a.shape[1:] + b.shape[1:]):
      # The kernel multiplies whole blocks only, so a sum would lack its last
      # part.
      refusals.append(f'{name}: widths must be multiples of 128')
      continue
    try:
      with _without_flags():
        out = tokamax.ragged_dot_general(
          a, b, count_E, _DIMS[kind], implementation=name
        )
      break
    except (NotImplementedError, ValueError) as error:
      refusals.append(f'{name}: {error}')
  if out is None:
    raise ValueError(
      f'no kernel of tokamax takes {a.dtype}{a.shape} and {b.dtype}{b.shape}'
      f' on this GPU ({"; ".join(refusals)}): use dispatch.Sorted, or bfloat16'
      ' and widths that are multiples of 128.'
    )
  zero = jnp.zeros((), out.dtype)
  if kind == 'matrices':
    # For an empty run the kernel returns a sum over rows of the run before.
    return jnp.where((count_E > 0)[:, None, None], out, zero)
  # The kernel does not write the rows behind the last run. They may be NaN, so
  # multiplying by 0 does not clear them.
  row_R = jnp.arange(a.shape[0], dtype=jnp.int32)
  return jnp.where((row_R < jnp.sum(count_E))[:, None], out, zero)


# A primitive has one lowering for each platform. `lax.platform_dependent` would
# trace the programs of all platforms on every platform, so it would need the
# kernels of GPUs everywhere.
_product_p = Primitive('grouped_product')
_product_p.def_abstract_eval(_shape)
_product_p.def_impl(
  lambda *arrays, kind: jax.jit(functools.partial(_product_p.bind, kind=kind))(
    *arrays
  )
)
for _platform, _product in (
  (None, _on_cpu), ('tpu', _on_tpu), ('cuda', _on_cuda)
):  # fmt: skip
  mlir.register_lowering(
    _product_p,
    mlir.lower_fun(_product, multiple_results=False),
    platform=_platform,
  )


def _block_size(rows: int, runs: int) -> int:
  """Number of rows of a block: a power of two from 8 to 512, or all `rows`.

  If runs have at least 16 rows on average, it is at most half of this mean.
  """
  even = max(16, min(1024, rows // runs))
  return min(rows, 1 << (even.bit_length() - 2))


def _runs(count_E: Array) -> tuple[Array, Array]:
  """Returns (first row, row behind the last) of each run."""
  end_E = jnp.cumsum(count_E, dtype=jnp.int32)
  return end_E - count_E, end_E


def _by_blocks(
  x_RD: Array, w_EDF: Array, count_E: Array, contract: int = 0
) -> Array:
  """Multiplies in blocks; `contract` is the contracted dim of a matrix.

  The last block of an expert may include rows of the next expert. Experts are
  computed in order, so the next one overwrites these rows.
  """
  R, D = x_RD.shape
  E = w_EDF.shape[0]
  F = w_EDF.shape[2 - contract]
  W = _block_size(R, E)
  start_E, end_E = _runs(count_E)
  rows_W = jnp.arange(W, dtype=jnp.int32)

  def run(e, out_RF):
    w = lax.dynamic_index_in_dim(w_EDF, e, keepdims=False)

    def block(carry):
      row, out_RF = carry
      at = jnp.minimum(row, R - W)
      x_WD = lax.dynamic_slice(x_RD, (at, 0), (W, D))
      y_WF = lax.dot_general(x_WD, w, (((1,), (contract,)), ((), ())))

      # The block at the end of the array starts earlier, so that it fits. Rows
      # before `row` are already computed and stay the same.
      def kept():
        old_WF = lax.dynamic_slice(out_RF, (at, 0), (W, F))
        return jnp.where((at + rows_W >= row)[:, None], y_WF, old_WF)

      y_WF = lax.cond(row > at, kept, lambda: y_WF)
      return row + W, lax.dynamic_update_slice(out_RF, y_WF, (at, 0))

    more = lambda carry: carry[0] < end_E[e]
    return lax.while_loop(more, block, (start_E[e], out_RF))[1]

  return lax.fori_loop(0, E, run, jnp.zeros((R, F), x_RD.dtype))


def _weights_by_blocks(x_RD: Array, dy_RF: Array, count_E: Array) -> Array:
  """Gradients [E, D, F] of the matrices: x^T dy over each expert's rows."""
  (R, D), F, E = x_RD.shape, dy_RF.shape[1], count_E.shape[0]
  W = _block_size(R, E)
  start_E, end_E = _runs(count_E)
  rows_W = jnp.arange(W, dtype=jnp.int32)
  zero = jnp.zeros((), x_RD.dtype)

  def run(e, dw_EDF):
    def block(carry):
      row, sum_DF = carry
      at = jnp.minimum(row, R - W)
      mine_W = (at + rows_W >= row) & (at + rows_W < end_E[e])
      x_WD = lax.dynamic_slice(x_RD, (at, 0), (W, D))
      x_WD = jnp.where(mine_W[:, None], x_WD, zero)
      dy_WF = lax.dynamic_slice(dy_RF, (at, 0), (W, F))
      product = functools.partial(
        lax.dot_general, preferred_element_type=jnp.float32
      )
      return row + W, sum_DF + product(x_WD, dy_WF, (((0,), (0,)), ((), ())))

    more = lambda carry: carry[0] < end_E[e]
    start = start_E[e], jnp.zeros((D, F), jnp.float32)
    sum_DF = lax.while_loop(more, block, start)[1].astype(x_RD.dtype)
    return lax.dynamic_update_index_in_dim(dw_EDF, sum_DF, e, 0)

  return lax.fori_loop(0, E, run, jnp.zeros((E, D, F), x_RD.dtype))
