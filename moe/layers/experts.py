"""The experts of a sparse layer: many feed-forward networks of one shape."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from moe import axes
from moe.layers.product import activate, einsum
from moe.routing.grouped import grouped_matmul
from moe.types import Array

Weights = dict[str, Array]

# Logical axes of each matrix; an expert without a gate has no w_gate_EDF.
AXES = {
  'w_up_EDF': (axes.EXPERT, axes.EMBED, axes.EXPERT_MLP),
  'w_gate_EDF': (axes.EXPERT, axes.EMBED, axes.EXPERT_MLP),
  'w_down_EFD': (axes.EXPERT, axes.EXPERT_MLP, axes.EMBED),
}


def params(
  module: nn.Module,
  num_experts: int,
  d_model: int,
  width: int,
  activation: str,
  dtype: jnp.dtype,
  output_scale: float = 1.0,
) -> Weights:
  """Matrices of E experts, stored in float32 and cast to a compute dtype.

  Args:
    module: the layer that owns these parameters; `AXES` has their names.
    num_experts: E.
    d_model: D.
    width: F.
    activation: 'swiglu' or 'gelu'.
    dtype: dtype of the result.
    output_scale: factor of the initial values of w_down_EFD.
  """
  size = {axes.EXPERT: num_experts, axes.EMBED: d_model, axes.EXPERT_MLP: width}
  weights = {}
  # Initial values depend on this order, since flax draws one key after another.
  for name in ('w_up_EDF', 'w_down_EFD', 'w_gate_EDF'):
    if name == 'w_gate_EDF' and activation != 'swiglu':
      continue
    scale = output_scale if name == 'w_down_EFD' else 1.0
    init = nn.initializers.variance_scaling(
      scale**2,
      'fan_in',
      'truncated_normal',
      in_axis=-2,
      out_axis=-1,
      batch_axis=0,
    )
    init_fn = nn.with_logical_partitioning(init, AXES[name])
    shape = tuple(map(size.get, AXES[name]))
    w = module.param(name, init_fn, shape, jnp.float32)
    weights[name] = w.astype(dtype)
  return weights


def apply(
  weights: Weights,
  rows: Array,
  weight: Array | None,
  count_E: Array | None,
  activation: str,
  chunk: int | None = None,
) -> Array:
  """Outputs of the experts; each row's weight multiplies its hidden layer.

  A buffer for uneven loads is computed chunk by chunk, without the chunks that
  hold no rows. Hidden layers then need memory for one chunk, not for the whole
  buffer. The backward pass computes hidden layers again.

  Args:
    weights: matrices from `params`, in the dtype of the rows.
    rows: [E, U, D], U rows for each expert; or [R, D], sorted by expert, with
      zeros after the rows of the last expert.
    weight: float32 weight of each row; None means 1 and needs a single chunk.
    count_E: int32 rows of each expert if rows are [R, D]; else None.
    activation: 'swiglu' or 'gelu'.
    chunk: largest number of rows in a chunk of [R, D], such as an even share of
      the rows; None for one chunk.

  Returns:
    Outputs in the shape of rows. Outputs after the rows of the last expert have
    no meaning.
  """
  if count_E is not None and chunk and len(rows) > chunk:
    return _in_chunks(weights, rows, weight, count_E, activation, chunk)
  if count_E is None:
    product = functools.partial(einsum, 'EUD,EDF->EUF')
  else:
    product = lambda x_RD, w_EDF: grouped_matmul(x_RD, w_EDF, count_E)
  with jax.named_scope('experts'):
    products = {'up': product(rows, weights['w_up_EDF'])}
    if activation == 'swiglu':
      products['gate'] = product(rows, weights['w_gate_EDF'])
    hidden = activate(products, activation)
    if weight is not None:
      hidden = hidden.astype(jnp.float32) * weight[..., None]
    return product(hidden.astype(rows.dtype), weights['w_down_EFD'])


def _in_chunks(
  weights: Weights,
  rows_RD: Array,
  weight_R: Array,
  count_E: Array,
  activation: str,
  chunk: int,
) -> Array:
  """Calls `apply` on chunks of equal length, of at most `chunk` rows."""
  R = len(rows_RD)
  chunks = -(-R // chunk)
  W = -(-R // chunks)
  fill = chunks * W - R
  if fill:
    rows_RD = jnp.pad(rows_RD, ((0, fill), (0, 0)))
    weight_R = jnp.pad(weight_R, (0, fill))
  return _chunks(activation, W, weights, rows_RD, weight_R, count_E)[:R]


def _cut(a_RD: Array, i: Array, W: int) -> Array:
  return lax.dynamic_slice_in_dim(a_RD, i * W, W)


def _put(a_RD: Array, a_WD: Array, i: Array) -> Array:
  return lax.dynamic_update_slice_in_dim(a_RD, a_WD, i * len(a_WD), 0)


def _counts(count_E: Array, i: Array, W: int) -> Array:
  """How many rows of each expert lie in chunk i, which has W rows."""
  end_E = jnp.cumsum(count_E, dtype=jnp.int32)
  inside = lambda row_E: jnp.clip(row_E - i * W, 0, W)
  return inside(end_E) - inside(end_E - count_E)


def _num_filled(count_E: Array, W: int) -> Array:
  return -(-jnp.sum(count_E, dtype=jnp.int32) // W)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _chunks(activation, W, weights, rows_RD, weight_R, count_E):
  """Calls `apply` on W rows at a time."""

  def body(i, out_RD):
    rows_WD, weight_W = _cut(rows_RD, i, W), _cut(weight_R, i, W)
    count = _counts(count_E, i, W)
    out_WD = apply(weights, rows_WD, weight_W, count, activation)
    return _put(out_RD, out_WD, i)

  zeros_RD = jnp.zeros_like(rows_RD)
  return lax.fori_loop(0, _num_filled(count_E, W), body, zeros_RD)


def _chunks_fwd(activation, W, *arrays):
  return _chunks(activation, W, *arrays), arrays


def _chunks_bwd(activation, W, arrays, dy_RD):
  weights, rows_RD, weight_R, count_E = arrays

  def body(i, sums):
    d_weights, d_rows_RD, d_weight_R = sums
    count = _counts(count_E, i, W)
    run = lambda *arrays: apply(*arrays, count, activation)
    rows_WD, weight_W = _cut(rows_RD, i, W), _cut(weight_R, i, W)
    _, backward = jax.vjp(run, weights, rows_WD, weight_W)
    found, d_rows_WD, d_weight_W = backward(_cut(dy_RD, i, W))
    d_weights = {
      k: d + found[k].astype(jnp.float32) for k, d in d_weights.items()
    }
    return (
      d_weights,
      _put(d_rows_RD, d_rows_WD, i),
      _put(d_weight_R, d_weight_W, i),
    )

  zeros = (
    {k: jnp.zeros(w.shape, jnp.float32) for k, w in weights.items()},
    jnp.zeros_like(rows_RD),
    jnp.zeros_like(weight_R),
  )
  d_weights, d_rows_RD, d_weight_R = lax.fori_loop(
    0, _num_filled(count_E, W), body, zeros
  )
  d_weights = {k: d.astype(weights[k].dtype) for k, d in d_weights.items()}
  return d_weights, d_rows_RD, d_weight_R, None


_chunks.defvjp(_chunks_fwd, _chunks_bwd)
