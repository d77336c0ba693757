"""Which slot each row of a plan gets: a sort by expert, then counting."""

import math

import jax
import jax.numpy as jnp

from moe.routing.plan import RoutingPlan
from moe.routing.rows import by_token, compose
from moe.types import Array

PRIORITIES = ('position', 'probability')


def capacity(
  tokens: int, active: float, num_experts: int, factor: float
) -> int:
  """Slots per expert and group: factor times an even share, at least 1."""
  share = tokens * active / num_experts
  # Rounded first: 1.1 * 50 is a little more than 55 and would give 56 slots.
  return max(1, min(tokens, math.ceil(round(factor * share, 6))))


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


def _sort(key_GR: Array, num_keys: int) -> tuple[Array, Array]:
  """(sorted keys, order), stable; keys are int32 in [0, num_keys)."""
  R = key_GR.shape[1]
  place_R = jnp.arange(R, dtype=jnp.int32)
  if num_keys * R < 2**31:
    # Key and place in one number: several times as fast as sorting pairs.
    both_GR = jnp.sort(key_GR * R + place_R, axis=1, stable=False)
    return both_GR // R, both_GR % R
  order_GR = jnp.argsort(key_GR, axis=1, stable=True).astype(jnp.int32)
  return jnp.take_along_axis(key_GR, order_GR, axis=1), order_GR


def invert(order_GR: Array) -> Array:
  """The inverse permutation of each group."""
  place_R = jnp.arange(order_GR.shape[1], dtype=jnp.int32)
  return jax.vmap(
    lambda order_R: (
      jnp.zeros_like(order_R).at[order_R].set(place_R, unique_indices=True)
    )
  )(order_GR)


def order(
  plan: RoutingPlan,
  valid_GR: Array,
  num_experts: int,
  priority: str = 'position',
) -> tuple[Array, Array]:
  """(experts sorted, rows in that order); rows left out come last, as E."""
  E = num_experts
  key_GR = jnp.where(valid_GR, plan.expert_GR, E)
  if priority == 'position':
    return _sort(key_GR, E + 1)
  by_weight_GR = jnp.argsort(-plan.weight_GR, axis=1, stable=True)
  by_weight_GR = by_weight_GR.astype(jnp.int32)
  key_GR = jnp.take_along_axis(key_GR, by_weight_GR, axis=1)
  sorted_GR, order_GR = _sort(key_GR, E + 1)
  return sorted_GR, jnp.take_along_axis(by_weight_GR, order_GR, axis=1)


def starts(sorted_GR: Array, num_keys: int) -> Array:
  """int32 [G, num_keys + 1]: where each key's run starts, and the last ends."""
  bounds_E = jnp.arange(num_keys + 1, dtype=jnp.int32)
  start_GE = jax.vmap(lambda s_R: jnp.searchsorted(s_R, bounds_E))(sorted_GR)
  return start_GE.astype(jnp.int32)


def assign(
  plan: RoutingPlan, num_experts: int, C: int, priority: str
) -> tuple[Array, Array]:
  """Slots by a sort on the expert: (slot_GR, row_GS), -1 for none."""
  E = num_experts
  R = plan.expert_GR.shape[1]
  sorted_GR, order_GR = order(plan, asked_rows(plan), E, priority)
  start_GE = starts(sorted_GR, E)
  count_GE = jnp.diff(start_GE, axis=1)
  place_C = jnp.arange(C, dtype=jnp.int32)
  filled_GEC = place_C < jnp.minimum(count_GE, C)[..., None]
  index_GEC = jnp.where(filled_GEC, start_GE[:, :E, None] + place_C, -1)
  row_GS = compose(order_GR, index_GEC.reshape(-1, E * C))
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
  """Gives rows that stand by the slots still free, to tokens that lack one.

  Args:
    plan: who goes where.
    a: which of the choices that stand by.
    C: slots per expert and group.
    slot_GR: slots given so far, to be added to.
    row_GS: the same, by slot.
  """
  G, S = row_GS.shape
  E, R = S // C, slot_GR.shape[1]
  A = plan.rows_GMA.shape[-1]
  k = A - plan.num_spare
  held_GM = jnp.sum(by_token(slot_GR, plan.rows_GMA, -1) >= 0, axis=-1)
  wanted_GM = jnp.sum(
    by_token(asked_rows(plan), plan.rows_GMA, False)[..., :k], axis=-1
  )
  lacks_GM = held_GM < wanted_GM
  this = range(k + a, k + a + 1)
  valid_GR = plan.valid_GR & _is_choice(plan, this)
  valid_GR &= jnp.take_along_axis(lacks_GM, plan.token_GR, axis=1)
  sorted_GR, order_GR = order(plan, valid_GR, E)
  start_GE = starts(sorted_GR, E)
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
