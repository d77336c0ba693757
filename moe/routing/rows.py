"""Rows from tokens and tokens from rows: gathers, forward and backward."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from moe.types import Array


def _gather(x_GND: Array, index_GK: Array) -> Array:
  """Rows of each group by index, any row where it is negative."""
  index_GK1 = jnp.maximum(index_GK, 0)[..., None]
  return jnp.take_along_axis(x_GND, index_GK1, axis=1, mode='clip')


def _kept(rows_GKD: Array, index_GK: Array) -> Array:
  """Rows, zeros where the index is negative."""
  # where, not a product: an empty slot must stay 0 whatever row 0 holds.
  zero = jnp.zeros((), rows_GKD.dtype)
  return jnp.where((index_GK >= 0)[..., None], rows_GKD, zero)


def take(x_GND: Array, index_GK: Array) -> Array:
  """Rows of each group by index; zeros where the index is negative."""
  return _kept(_gather(x_GND, index_GK), index_GK)


def compose(outer_GN: Array, index_GK: Array) -> Array:
  """outer[index], -1 where the index is negative."""
  picked_GK = jnp.take_along_axis(
    outer_GN, jnp.maximum(index_GK, 0), axis=1, mode='clip'
  )
  return jnp.where(index_GK >= 0, picked_GK, -1)


def by_token(a_GR: Array, rows_GMA: Array, absent) -> Array:
  """A per-row array as [G, M, A]; `absent` where a token has no row."""
  G, M, A = rows_GMA.shape
  rows_GK = rows_GMA.reshape(G, M * A)
  picked_GK = jnp.take_along_axis(
    a_GR, jnp.maximum(rows_GK, 0), axis=1, mode='clip'
  )
  return jnp.where(rows_GK >= 0, picked_GK, absent).reshape(G, M, A)


def _sum_over_choices(term, num_choices: int) -> Array:
  """term(0) + term(1) + ...

  Up to 16 are added in one pass over the result; each pass of a loop reads it
  and writes it again. More would take long to compile.
  """
  at_once = 16
  add = lambda first, n: functools.reduce(
    jnp.add, (term(first + a) for a in range(n))
  )
  passes, rest = divmod(num_choices, at_once)
  if not passes:
    return add(0, rest)
  total = lax.fori_loop(
    1, passes, lambda i, total: total + add(i * at_once, at_once),
    add(0, at_once),
  )  # fmt: skip
  return total + add(passes * at_once, rest) if rest else total


def collect_one_by_one(out_GSD: Array, slot_GMA: Array) -> Array:
  """The sum of each token's slots, in float32: one gather for each choice."""

  def choice(a):
    slot_GM = lax.dynamic_index_in_dim(slot_GMA, a, axis=2, keepdims=False)
    return take(out_GSD, slot_GM).astype(jnp.float32)

  return _sum_over_choices(choice, slot_GMA.shape[-1])


def collect_at_once(out_GSD: Array, slot_GMA: Array) -> Array:
  """The sum of each token's slots, in float32: one gather for all choices."""
  G, M, A = slot_GMA.shape
  slot_GAM = slot_GMA.swapaxes(1, 2)
  rows_GKD = _gather(out_GSD, slot_GAM.reshape(G, A * M))

  def choice(a):
    rows_GMD = lax.dynamic_slice_in_dim(rows_GKD, a * M, M, axis=1)
    slot_GM = lax.dynamic_index_in_dim(slot_GAM, a, axis=1, keepdims=False)
    return _kept(rows_GMD, slot_GM).astype(jnp.float32)

  return _sum_over_choices(choice, A)


def _collect(out_GSD: Array, slot_GMA: Array) -> Array:
  # TPUs gather on cores of their own, into memory: one long gather there is
  # what many short ones are, and begins once. Elsewhere gathers are fused with
  # the sum, and their rows never written.
  total_GMD = lax.platform_dependent(
    out_GSD, slot_GMA, tpu=collect_at_once, default=collect_one_by_one
  )
  return total_GMD.astype(out_GSD.dtype)


@jax.custom_vjp
def spread_rows(x_GMD: Array, token_GS: Array, slot_GMA: Array) -> Array:
  """The token of each slot, zeros in empty slots; undone by `collect_rows`.

  Args:
    x_GMD: tokens.
    token_GS: int32 token of each slot, -1 where it is empty.
    slot_GMA: int32 slots of each token, -1 where it has fewer; the inverse of
      token_GS, by which the backward pass gathers instead of adding in
      scattered places.

  Returns:
    [G, S, D].
  """
  del slot_GMA
  return take(x_GMD, token_GS)


spread_rows.defvjp(
  lambda x_GMD, token_GS, slot_GMA: (take(x_GMD, token_GS), slot_GMA),
  lambda slot_GMA, dy_GSD: (_collect(dy_GSD, slot_GMA), None, None),
)


@jax.custom_vjp
def collect_rows(out_GSD: Array, token_GS: Array, slot_GMA: Array) -> Array:
  """The sum of each token's slots, added up in float32.

  Args:
    out_GSD: outputs of the experts by slot, weighted.
    token_GS: int32 token of each slot, -1 where it is empty.
    slot_GMA: int32 slots of each token, -1 where it has fewer.

  Returns:
    [G, M, D] in the dtype of out_GSD.
  """
  del token_GS
  return _collect(out_GSD, slot_GMA)


collect_rows.defvjp(
  lambda out_GSD, token_GS, slot_GMA: (_collect(out_GSD, slot_GMA), token_GS),
  lambda token_GS, dy_GMD: (take(dy_GMD, token_GS), None, None),
)


def _pick(a_GN: Array, index_GK: Array) -> Array:
  picked_GK = jnp.take_along_axis(
    a_GN, jnp.maximum(index_GK, 0), axis=1, mode='clip'
  )
  return jnp.where(index_GK >= 0, picked_GK, 0.0)


@jax.custom_vjp
def spread_weights(weight_GR: Array, row_GS: Array, slot_GR: Array) -> Array:
  """The weight of each slot's row, 0 in empty slots; [G, S].

  Args:
    weight_GR: float32 weights by row.
    row_GS: int32 row of each slot, -1 where it is empty.
    slot_GR: int32 slot of each row, -1 where it has none; inverse of row_GS.
  """
  del slot_GR
  return _pick(weight_GR, row_GS)


spread_weights.defvjp(
  lambda weight_GR, row_GS, slot_GR: (_pick(weight_GR, row_GS), slot_GR),
  lambda slot_GR, d_GS: (_pick(d_GS, slot_GR), None, None),
)
