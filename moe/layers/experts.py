"""The experts of a sparse layer: many feed-forward networks of one shape."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from moe import axes
from moe.layers.feed_forward import activate
from moe.layers.product import einsum
from moe.routing.grouped import grouped_matmul
from moe.types import Array

Weights = dict[str, Array]


def params(
  module: nn.Module, num_experts: int, d_model: int, width: int, activation: str
) -> Weights:
  """Float32 matrices of E experts: w_up (and w_gate) EDF, w_down EFD."""
  shapes = {
    'w_up_EDF': (axes.EXPERT, axes.EMBED, axes.EXPERT_MLP),
    'w_down_EFD': (axes.EXPERT, axes.EXPERT_MLP, axes.EMBED),
  }
  if activation == 'swiglu':
    shapes['w_gate_EDF'] = shapes['w_up_EDF']
  size = {
    axes.EXPERT: num_experts,
    axes.EMBED: d_model,
    axes.EXPERT_MLP: width,
  }
  init = nn.initializers.variance_scaling(
    1.0, 'fan_in', 'truncated_normal', in_axis=-2, out_axis=-1, batch_axis=0
  )
  return {
    name: module.param(
      name,
      nn.with_logical_partitioning(init, names),
      tuple(size[n] for n in names),
      jnp.float32,
    )
    for name, names in shapes.items()
  }


def slots(
  weights: Weights, rows_ESD: Array, weight_ES: Array | None, activation: str
) -> Array:
  """Outputs of E experts for S rows each, weighted in their hidden layer.

  Args:
    weights: of `params`, in the dtype of the rows.
    rows_ESD: rows.
    weight_ES: float32 weight of each row; None for 1.
    activation: 'swiglu' or 'gelu'.

  Returns:
    [E, S, D].
  """
  product = lambda x, w: einsum('ESD,EDF->ESF', x, w)
  return _network(weights, rows_ESD, weight_ES, activation, product)


def runs(
  weights: Weights,
  rows_RD: Array,
  weight_R: Array,
  count_E: Array,
  activation: str,
  piece: int,
) -> Array:
  """Outputs of experts for runs of rows, weighted in their hidden layer.

  A buffer longer than a piece, as one for uneven loads is, is worked off piece
  by piece, as many as hold rows. Hidden layers are then as long as a piece, not
  as the buffer, and the backward pass computes them again.

  Args:
    weights: of `params`, in the dtype of the rows.
    rows_RD: rows sorted by expert, zeros behind the last run.
    weight_R: float32 weight of each row.
    count_E: int32 rows of each expert.
    activation: 'swiglu' or 'gelu'.
    piece: rows of a piece, about; an even share of the rows.

  Returns:
    [R, D]; rows behind the last run have no meaning.
  """
  R = rows_RD.shape[0]
  pieces = -(-R // piece)
  if pieces <= 1:
    return _run(activation, count_E, weights, rows_RD, weight_R)
  S = -(-R // pieces)
  fill = pieces * S - R
  if fill:
    rows_RD = jnp.pad(rows_RD, ((0, fill), (0, 0)))
    weight_R = jnp.pad(weight_R, (0, fill))
  return _pieces(activation, S, weights, rows_RD, weight_R, count_E)[:R]


@jax.named_scope('experts')
def _network(weights, rows, weight, activation, product):
  products = {'up': product(rows, weights['w_up_EDF'])}
  if activation == 'swiglu':
    products['gate'] = product(rows, weights['w_gate_EDF'])
  hidden = activate(products, activation)
  if weight is not None:
    hidden = hidden.astype(jnp.float32) * weight[..., None]
  return product(hidden.astype(rows.dtype), weights['w_down_EFD'])


def _run(activation, count_E, weights, rows_RD, weight_R):
  product = lambda x, w: grouped_matmul(x, w, count_E)
  return _network(weights, rows_RD, weight_R, activation, product)


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
  """`_run` on S rows at a time."""

  def body(i, out_RD):
    rows_SD, weight_S = _cut(rows_RD, i, S), _cut(weight_R, i, S)
    count = _counts(count_E, i, S)
    return _put(out_RD, _run(activation, count, weights, rows_SD, weight_S), i)

  zeros_RD = jnp.zeros_like(rows_RD)
  return lax.fori_loop(0, _num_filled(count_E, S), body, zeros_RD)


def _pieces_fwd(activation, S, *arrays):
  return _pieces(activation, S, *arrays), arrays


def _pieces_bwd(activation, S, arrays, dy_RD):
  weights, rows_RD, weight_R, count_E = arrays

  def body(i, sums):
    d_weights, d_rows_RD, d_weight_R = sums
    run = functools.partial(_run, activation, _counts(count_E, i, S))
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
