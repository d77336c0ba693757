"""Permutes tokens into slots and back: gathers, forward and backward.

An index of -1 means that there is nothing: no slot for a row, no row in a slot.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from moe.types import Array


def gather(a: Array, index: Array, fill: float | bool = 0) -> Array:
  """Entries of each group by index; `fill` where the index is negative.

  Args:
    a: [G, N] or [G, N, D].
    index: int32 [G, ...] below N.
    fill: what stands where there is nothing. It is chosen, not multiplied in,
      so that an empty slot stays 0 whatever entry 0 holds.

  Returns:
    [G, ...] or [G, ..., D], in the dtype of a.
  """
  index_GK = index.reshape(index.shape[0], -1)
  if a.ndim == 3:
    index_GK = index_GK[..., None]
  found = jnp.take_along_axis(a, jnp.maximum(index_GK, 0), axis=1, mode='clip')
  found = jnp.where(index_GK >= 0, found, jnp.asarray(fill, a.dtype))
  return found.reshape(*index.shape, *a.shape[2:])


def sum_of_slots(out_GSD: Array, slot_GMA: Array, at_once: bool) -> Array:
  """The sum of each token's slots, in float32.

  Args:
    out_GSD: outputs by slot.
    slot_GMA: int32 slots of each token, -1 where it has fewer.
    at_once: whether one gather reads the slots of all choices, or one gather
      for each choice is fused with the sum.
  """
  G, M, A = slot_GMA.shape
  slot_GAM = slot_GMA.swapaxes(1, 2)
  if at_once:
    index_GK1 = jnp.maximum(slot_GAM.reshape(G, A * M), 0)[..., None]
    rows_GKD = jnp.take_along_axis(out_GSD, index_GK1, axis=1, mode='clip')
    zero = jnp.zeros((), out_GSD.dtype)

  def add(first, num):
    """The sum of so many choices from the first one on."""
    total_GMD = None
    for a in range(num):
      slot_GM = lax.dynamic_index_in_dim(
        slot_GAM, first + a, axis=1, keepdims=False
      )
      if at_once:
        rows_GMD = lax.dynamic_slice_in_dim(
          rows_GKD, (first + a) * M, M, axis=1
        )
        rows_GMD = jnp.where((slot_GM >= 0)[..., None], rows_GMD, zero)
      else:
        rows_GMD = gather(out_GSD, slot_GM)
      rows_GMD = rows_GMD.astype(jnp.float32)
      total_GMD = total_GMD + rows_GMD if a else rows_GMD
    return total_GMD

  # Up to 16 choices are added in one pass over the result, since each pass of a
  # loop reads the result and writes it again. More would take long to compile.
  passes, rest = divmod(A, 16)
  if not passes:
    return add(0, rest)
  total_GMD = lax.fori_loop(
    1, passes, lambda i, total_GMD: total_GMD + add(i * 16, 16), add(0, 16)
  )
  return total_GMD + add(passes * 16, rest) if rest else total_GMD


def _combine(out_GSD: Array, slot_GMA: Array) -> Array:
  # TPUs gather on cores of their own, into memory. One long gather takes as
  # long there as many short ones, and starts once. Elsewhere gathers are fused
  # with the sum, and their rows are never written.
  total_GMD = lax.platform_dependent(
    out_GSD,
    slot_GMA,
    tpu=functools.partial(sum_of_slots, at_once=True),
    default=functools.partial(sum_of_slots, at_once=False),
  )
  return total_GMD.astype(out_GSD.dtype)


@jax.custom_vjp
def permute(x_GMD: Array, token_GS: Array, slot_GMA: Array) -> Array:
  """The token of each slot, zeros in empty slots; `unpermute` is its inverse.

  Args:
    x_GMD: tokens.
    token_GS: int32 token of each slot, -1 where it is empty.
    slot_GMA: int32 slots of each token, -1 where it has fewer. It is the
      inverse of token_GS, so the backward pass gathers where it would add in
      scattered places.

  Returns:
    [G, S, D].
  """
  del slot_GMA
  return gather(x_GMD, token_GS)


permute.defvjp(
  lambda x_GMD, token_GS, slot_GMA: (gather(x_GMD, token_GS), slot_GMA),
  lambda slot_GMA, dy_GSD: (_combine(dy_GSD, slot_GMA), None, None),
)


@jax.custom_vjp
def unpermute(out_GSD: Array, token_GS: Array, slot_GMA: Array) -> Array:
  """The sum of each token's slots, added up in float32.

  Args:
    out_GSD: outputs of the experts by slot, weighted.
    token_GS: int32 token of each slot, -1 where it is empty.
    slot_GMA: int32 slots of each token, -1 where it has fewer.

  Returns:
    [G, M, D] in the dtype of out_GSD.
  """
  del token_GS
  return _combine(out_GSD, slot_GMA)


unpermute.defvjp(
  lambda out_GSD, token_GS, slot_GMA: (_combine(out_GSD, slot_GMA), token_GS),
  lambda token_GS, dy_GMD: (gather(dy_GMD, token_GS), None, None),
)


@jax.custom_vjp
def permute_weights(weight_GR: Array, row_GS: Array, slot_GR: Array) -> Array:
  """The weight of each slot's row, 0 in empty slots; [G, S].

  Args:
    weight_GR: float32 weights by row.
    row_GS: int32 row of each slot, -1 where it is empty.
    slot_GR: int32 slot of each row, -1 where it has none; inverse of row_GS.
  """
  del slot_GR
  return gather(weight_GR, row_GS)


permute_weights.defvjp(
  lambda weight_GR, row_GS, slot_GR: (gather(weight_GR, row_GS), slot_GR),
  lambda slot_GR, d_GS: (gather(d_GS, slot_GR), None, None),
)
