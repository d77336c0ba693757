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

# Logical axes of every matrix; an expert without a gate has no w_gate_EDF.
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
  """Matrices of E experts, kept in float32 and cast to a compute dtype.

  Args:
    module: layer whose parameters they are, by the names of `AXES`.
    num_experts: E.
    d_model: D.
    width: F.
    activation: 'swiglu' or 'gelu'.
    dtype: of the result.
    output_scale: factor of the initial values of w_down_EFD.
  """
  size = {axes.EXPERT: num_experts, axes.EMBED: d_model, axes.EXPERT_MLP: width}
  weights = {}
  # Initial values hang on this order: flax draws the keys one after another.
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
  piece: int | None = None,
) -> Array:
  """Outputs of the experts' rows, weighted in their hidden layer.

  A buffer for uneven loads is longer than a piece. Only pieces that hold rows
  are then computed, one at a time. A hidden layer is as long as a piece, not as
  the buffer, and the backward pass computes it again.

  Args:
    weights: of `params`, in the dtype of the rows.
    rows: [E, S, D], S rows for each expert; or [R, D] sorted by expert, zeros
      behind the last run.
    weight: float32 weight of each row; None for 1.
    count_E: int32 rows of each expert where rows are [R, D]; else None.
    activation: 'swiglu' or 'gelu'.
    piece: rows of a piece of [R, D], about: an even share; None for all.

  Returns:
    As rows; rows behind the last run have no meaning.
  """
  if count_E is not None and piece and len(rows) > piece:
    return _in_pieces(weights, rows, weight, count_E, activation, piece)
  if count_E is None:
    product = functools.partial(einsum, 'ESD,EDF->ESF')
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


def _in_pieces(
  weights: Weights,
  rows_RD: Array,
  weight_R: Array,
  count_E: Array,
  activation: str,
  piece: int,
) -> Array:
  """`apply` to pieces of equal length, about as long as asked for."""
  R = len(rows_RD)
  pieces = -(-R // piece)
  S = -(-R // pieces)
  fill = pieces * S - R
  if fill:
    rows_RD = jnp.pad(rows_RD, ((0, fill), (0, 0)))
    weight_R = jnp.pad(weight_R, (0, fill))
  return _pieces(activation, S, weights, rows_RD, weight_R, count_E)[:R]


def _cut(a_RD: Array, i: Array, S: int) -> Array:
  return lax.dynamic_slice_in_dim(a_RD, i * S, S)


def _put(a_RD: Array, a_SD: Array, i: Array) -> Array:
  return lax.dynamic_update_slice_in_dim(a_RD, a_SD, i * len(a_SD), 0)


def _counts(count_E: Array, i: Array, S: int) -> Array:
  """Rows of each run that lie in a piece of S."""
  end_E = jnp.cumsum(count_E, dtype=jnp.int32)
  inside = lambda row_E: jnp.clip(row_E - i * S, 0, S)
  return inside(end_E) - inside(end_E - count_E)


def _num_filled(count_E: Array, S: int) -> Array:
  return -(-jnp.sum(count_E, dtype=jnp.int32) // S)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _pieces(activation, S, weights, rows_RD, weight_R, count_E):
  """`apply` on S rows at a time."""

  def body(i, out_RD):
    rows_SD, weight_S = _cut(rows_RD, i, S), _cut(weight_R, i, S)
    count = _counts(count_E, i, S)
    out_SD = apply(weights, rows_SD, weight_S, count, activation)
    return _put(out_RD, out_SD, i)

  zeros_RD = jnp.zeros_like(rows_RD)
  return lax.fori_loop(0, _num_filled(count_E, S), body, zeros_RD)


def _pieces_fwd(activation, S, *arrays):
  return _pieces(activation, S, *arrays), arrays


def _pieces_bwd(activation, S, arrays, dy_RD):
  weights, rows_RD, weight_R, count_E = arrays

  def body(i, sums):
    d_weights, d_rows_RD, d_weight_R = sums
    count = _counts(count_E, i, S)
    run = lambda *arrays: apply(*arrays, count, activation)
    rows_SD, weight_S = _cut(rows_RD, i, S), _cut(weight_R, i, S)
    _, backward = jax.vjp(run, weights, rows_SD, weight_S)
    found, d_rows_SD, d_weight_S = backward(_cut(dy_RD, i, S))
    d_weights = {
      k: d + found[k].astype(jnp.float32) for k, d in d_weights.items()
    }
    return (
      d_weights,
      _put(d_rows_RD, d_rows_SD, i),
      _put(d_weight_R, d_weight_S, i),
    )

  zeros = (
    {k: jnp.zeros(w.shape, jnp.float32) for k, w in weights.items()},
    jnp.zeros_like(rows_RD),
    jnp.zeros_like(weight_R),
  )
  d_weights, d_rows_RD, d_weight_R = lax.fori_loop(
    0, _num_filled(count_E, S), body, zeros
  )
  d_weights = {k: d.astype(weights[k].dtype) for k, d in d_weights.items()}
  return d_weights, d_rows_RD, d_weight_R, None


_pieces.defvjp(_pieces_fwd, _pieces_bwd)
