"""Slots: which one each row of a plan gets, and gathers into them and back.

Rows are sorted by expert and counted. An index of -1 means that there is
nothing: no slot for a row, no row in a slot.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from moe.routing.plan import RoutingPlan
from moe.types import Array

PRIORITIES = ('position', 'probability')
# Keys below it are sorted as one int32 with the place of their row.
INT32_LIMIT = 2**31


def capacity(
  tokens: int, active: float, num_experts: int, factor: float
) -> int:
  """Slots per expert and group: factor times an even share, at least 1."""
  share = tokens * active / num_experts
  # Rounded first: 1.1 * 50 is a little more than 55 and would give 56 slots.
  return max(1, min(tokens, math.ceil(round(factor * share, 6))))


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


def asked_rows(plan: RoutingPlan) -> Array:
  """Rows that exist and do not stand by."""
  if not plan.num_spare:
    return plan.valid_GR
  A = plan.rows_GMA.shape[-1]
  return plan.valid_GR & ~_is_choice(plan, range(A - plan.num_spare, A))


def _is_choice(plan: RoutingPlan, choices: range) -> Array:
  """Rows that are one of these choices of their token."""
  G, R = plan.valid_GR.shape
  rows_GK = plan.rows_GMA[..., choices.start : choices.stop].reshape(G, -1)
  # Absent rows are -1 and would wrap: they aim past the end and are left out.
  rows_GK = jnp.where(rows_GK >= 0, rows_GK, R)
  return jax.vmap(
    lambda rows_K: jnp.zeros(R, bool).at[rows_K].set(True, mode='drop')
  )(rows_GK)


def sort_by_expert(
  plan: RoutingPlan,
  valid_GR: Array,
  num_experts: int,
  priority: str = 'position',
) -> tuple[Array, Array, Array]:
  """Rows in the order of their experts; of one expert, by priority.

  Args:
    plan: who goes where.
    valid_GR: bool, rows that take part; the others come last, as expert E.
    num_experts: E.
    priority: one of `PRIORITIES`.

  Returns:
    sorted_GR, the expert of each place; order_GR, its row; and start_GE of
    E + 1 columns, where each expert's run of rows starts and the last one ends.
  """
  E, R = num_experts, valid_GR.shape[1]
  key_GR = jnp.where(valid_GR, plan.expert_GR, E)
  by_weight_GR = None
  if priority == 'probability':
    by_weight_GR = jnp.argsort(-plan.weight_GR, axis=1, stable=True)
    by_weight_GR = by_weight_GR.astype(jnp.int32)
    key_GR = jnp.take_along_axis(key_GR, by_weight_GR, axis=1)
  if (E + 1) * R < INT32_LIMIT:
    # Key and place in one number: several times as fast as sorting pairs.
    place_R = jnp.arange(R, dtype=jnp.int32)
    both_GR = jnp.sort(key_GR * R + place_R, axis=1, stable=False)
    sorted_GR, order_GR = both_GR // R, both_GR % R
  else:
    order_GR = jnp.argsort(key_GR, axis=1, stable=True).astype(jnp.int32)
    sorted_GR = jnp.take_along_axis(key_GR, order_GR, axis=1)
  if by_weight_GR is not None:
    order_GR = jnp.take_along_axis(by_weight_GR, order_GR, axis=1)
  bounds_E = jnp.arange(E + 1, dtype=jnp.int32)
  find = jax.vmap(jnp.searchsorted, in_axes=(0, None))
  return sorted_GR, order_GR, find(sorted_GR, bounds_E).astype(jnp.int32)


@jax.vmap
def invert(order_R: Array) -> Array:
  """The inverse permutation of each group: [G, R] to [G, R]."""
  place_R = jnp.arange(order_R.shape[0], dtype=jnp.int32)
  inverse_R = jnp.zeros_like(order_R)
  return inverse_R.at[order_R].set(place_R, unique_indices=True)


def assign(
  plan: RoutingPlan, num_experts: int, C: int, priority: str
) -> tuple[Array, Array]:
  """Slots of the rows, C for each expert, by a sort on the expert.

  Returns:
    slot_GR, the slot of each row, and row_GS, the row of each slot; -1 where
    there is none.
  """
  E = num_experts
  R = plan.expert_GR.shape[1]
  sorted_GR, order_GR, start_GE = sort_by_expert(
    plan, asked_rows(plan), E, priority
  )
  count_GE = jnp.diff(start_GE, axis=1)
  place_C = jnp.arange(C, dtype=jnp.int32)
  filled_GEC = place_C < jnp.minimum(count_GE, C)[..., None]
  index_GEC = jnp.where(filled_GEC, start_GE[:, :E, None] + place_C, -1)
  row_GS = gather(order_GR, index_GEC.reshape(-1, E * C), -1)
  rank_GR = jnp.arange(R, dtype=jnp.int32) - jnp.take_along_axis(
    start_GE, sorted_GR, axis=1
  )
  kept_GR = (rank_GR < C) & (sorted_GR < E)
  slot_GR = jnp.where(kept_GR, sorted_GR * C + rank_GR, -1)
  slot_GR = jnp.take_along_axis(slot_GR, invert(order_GR), axis=1)
  for a in range(plan.num_spare):
    slot_GR, row_GS = _spill(plan, a, C, slot_GR, row_GS)
  return slot_GR, row_GS


def _spill(
  plan: RoutingPlan, a: int, C: int, slot_GR: Array, row_GS: Array
) -> tuple[Array, Array]:
  """Gives slots that are still free to rows that stand by.

  Only tokens that lack a row get one (spill to the next choice).

  Args:
    plan: who goes where.
    a: which of the choices that stand by.
    C: slots per expert and group.
    slot_GR: slots given so far.
    row_GS: the same, by slot.

  Returns:
    slot_GR and row_GS with the new ones.
  """
  G, S = row_GS.shape
  E, R = S // C, slot_GR.shape[1]
  A = plan.rows_GMA.shape[-1]
  k = A - plan.num_spare
  held_GM = jnp.sum(gather(slot_GR, plan.rows_GMA, -1) >= 0, axis=-1)
  wanted_GM = jnp.sum(
    gather(asked_rows(plan), plan.rows_GMA, False)[..., :k], axis=-1
  )
  lacks_GM = held_GM < wanted_GM
  this = range(k + a, k + a + 1)
  valid_GR = plan.valid_GR & _is_choice(plan, this)
  valid_GR &= jnp.take_along_axis(lacks_GM, plan.token_GR, axis=1)
  sorted_GR, order_GR, start_GE = sort_by_expert(plan, valid_GR, E)
  rank_GR = jnp.arange(R, dtype=jnp.int32) - jnp.take_along_axis(
    start_GE, sorted_GR, axis=1
  )
  used_GE = jnp.sum(row_GS.reshape(G, E, C) >= 0, axis=-1, dtype=jnp.int32)
  used_GE = jnp.pad(used_GE, ((0, 0), (0, 1)))
  place_GR = rank_GR + jnp.take_along_axis(used_GE, sorted_GR, axis=1)
  fits_GR = (sorted_GR < E) & (place_GR < C)
  new_GR = jnp.where(fits_GR, sorted_GR * C + place_GR, -1)
  new_GR = jnp.take_along_axis(new_GR, invert(order_GR), axis=1)
  slot_GR = jnp.where(new_GR >= 0, new_GR, slot_GR)
  rows_R = jnp.arange(R, dtype=jnp.int32)
  row_GS = jax.vmap(
    lambda row_S, new_R: row_S.at[jnp.where(new_R >= 0, new_R, S)].set(
      rows_R, mode='drop'
    )
  )(row_GS, new_GR)
  return slot_GR, row_GS


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
def permute(a: Array, index_GS: Array, inverse: Array) -> Array:
  """The entry of each slot, zeros in empty slots; `unpermute` is its inverse.

  The backward pass gathers by the inverse, so it does not add in scattered
  places.

  Args:
    a: [G, M, D] tokens, or [G, R] numbers, one for each row of a plan.
    index_GS: int32 entry of each slot, -1 where it is empty.
    inverse: int32 [G, M, A] slots of each token, -1 where it has fewer; or
      [G, R], the slot of each row, -1 where it has none.

  Returns:
    [G, S, D] or [G, S].
  """
  del inverse
  return gather(a, index_GS)


def _permute_bwd(inverse, dy):
  back = _combine if inverse.ndim == 3 else gather
  return back(dy, inverse), None, None


permute.defvjp(
  lambda a, index_GS, inverse: (gather(a, index_GS), inverse), _permute_bwd
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
