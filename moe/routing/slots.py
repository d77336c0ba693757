"""Which slot each row of a plan gets: a sort by expert, then counting."""

import math

import jax
import jax.numpy as jnp

from moe.routing.permutation import gather
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
