"""Finds slots for rows by sorting, and gathers tokens into slots and back.

A slot is a place for one row in the buffer of an expert. An index of -1 stands
for a row without a slot, or for an empty slot.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

from moe.routing.plan import RoutingPlan
from moe.types import Array

PRIORITIES = ('position', 'probability')
# A sort key and the index of its row fit one int32 together if the number of
# possible pairs is below this limit.
INT32_LIMIT = 2**31


def capacity(
  tokens: int, active: float, num_experts: int, factor: float
) -> int:
  """Slots per expert and group: `factor` times an even share of the rows.

  The number is at least 1 and at most `tokens`.
  """
  share = tokens * active / num_experts
  # Without rounding, 1.1 * 50 is slightly more than 55 and would give 56 slots.
  return max(1, min(tokens, math.ceil(round(factor * share, 6))))


def gather(a: Array, index: Array, fill: float | bool = 0) -> Array:
  """Gathers entries of each group; `fill` for a negative index.

  Args:
    a: [G, N] or [G, N, D].
    index: int32 [G, ...] below N.
    fill: the value for negative indices. `where` inserts it; a product with 0
      would keep NaN.

  Returns:
    [G, ...] or [G, ..., D], in the dtype of a.
  """
  index_GR = index.reshape(index.shape[0], -1)
  if a.ndim == 3:
    index_GR = index_GR[..., None]
  found = jnp.take_along_axis(a, jnp.maximum(index_GR, 0), axis=1, mode='clip')
  found = jnp.where(index_GR >= 0, found, jnp.asarray(fill, a.dtype))
  return found.reshape(*index.shape, *a.shape[2:])


def requested_rows(plan: RoutingPlan) -> Array:
  """Bool [G, R]: whether each row is valid and not spare."""
  if not plan.num_spare:
    return plan.valid_GR
  A = plan.rows_GMA.shape[-1]
  return plan.valid_GR & ~_is_choice(plan, range(A - plan.num_spare, A))


def _is_choice(plan: RoutingPlan, choices: range) -> Array:
  """Bool [G, R]: whether each row is one of these choices of its token."""
  G, R = plan.valid_GR.shape
  rows_GR = plan.rows_GMA[..., choices.start : choices.stop].reshape(G, -1)
  # The index -1 of a missing row would mean the last row, so it is replaced by
  # R, which `drop` ignores.
  rows_GR = jnp.where(rows_GR >= 0, rows_GR, R)
  return jax.vmap(
    lambda rows_R: jnp.zeros(R, bool).at[rows_R].set(True, mode='drop')
  )(rows_GR)


def sort_by_expert(
  plan: RoutingPlan,
  valid_GR: Array,
  num_experts: int,
  priority: str = 'position',
) -> tuple[Array, Array, Array]:
  """Sorts rows by expert, and the rows of one expert by priority.

  Args:
    plan: the experts of each token.
    valid_GR: bool, rows to sort. All other rows come last, as if for expert E.
    num_experts: E.
    priority: one of `PRIORITIES`.

  Returns:
    (sorted_GR, order_GR, start_GE). order_GR has the indices of the sorted
    rows, and sorted_GR has their experts. start_GE has E + 1 columns: the place
    where the run of each expert starts, and the place where the last run ends.
  """
  E, R = num_experts, valid_GR.shape[1]
  key_GR = jnp.where(valid_GR, plan.expert_GR, E)
  by_weight_GR = None
  if priority == 'probability':
    by_weight_GR = jnp.argsort(-plan.weight_GR, axis=1, stable=True)
    by_weight_GR = by_weight_GR.astype(jnp.int32)
    key_GR = jnp.take_along_axis(key_GR, by_weight_GR, axis=1)
  if (E + 1) * R < INT32_LIMIT:
    # Sorting numbers that contain key and index is several times as fast as
    # sorting pairs of them.
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
  """Inverts the permutation of each group, [G, R]."""
  place_R = jnp.arange(order_R.shape[0], dtype=jnp.int32)
  inverse_R = jnp.zeros_like(order_R)
  return inverse_R.at[order_R].set(place_R, unique_indices=True)


def spill(
  plan: RoutingPlan, a: int, C: int, slot_GR: Array, row_GU: Array
) -> tuple[Array, Array]:
  """Gives free slots to spare rows (spill to the next choice).

  A spare row gets a slot only if its token has fewer slots than rows that
  `requested_rows` counts.

  Args:
    plan: the experts of each token.
    a: index of the spare choice, from 0.
    C: slots per expert and group.
    slot_GR: slot of each row so far.
    row_GU: row of each slot so far.

  Returns:
    (slot_GR, row_GU) with the new slots.
  """
  G, U = row_GU.shape
  E, R = U // C, slot_GR.shape[1]
  A = plan.rows_GMA.shape[-1]
  k = A - plan.num_spare
  held_GM = jnp.sum(gather(slot_GR, plan.rows_GMA, -1) >= 0, axis=-1)
  wanted_GM = jnp.sum(
    gather(requested_rows(plan), plan.rows_GMA, False)[..., :k], axis=-1
  )
  lacks_GM = held_GM < wanted_GM
  this = range(k + a, k + a + 1)
  valid_GR = plan.valid_GR & _is_choice(plan, this)
  valid_GR &= jnp.take_along_axis(lacks_GM, plan.token_GR, axis=1)
  sorted_GR, order_GR, start_GE = sort_by_expert(plan, valid_GR, E)
  rank_GR = jnp.arange(R, dtype=jnp.int32) - jnp.take_along_axis(
    start_GE, sorted_GR, axis=1
  )
  used_GE = jnp.sum(row_GU.reshape(G, E, C) >= 0, axis=-1, dtype=jnp.int32)
  used_GE = jnp.pad(used_GE, ((0, 0), (0, 1)))
  place_GR = rank_GR + jnp.take_along_axis(used_GE, sorted_GR, axis=1)
  fits_GR = (sorted_GR < E) & (place_GR < C)
  new_GR = jnp.where(fits_GR, sorted_GR * C + place_GR, -1)
  new_GR = jnp.take_along_axis(new_GR, invert(order_GR), axis=1)
  slot_GR = jnp.where(new_GR >= 0, new_GR, slot_GR)
  rows_R = jnp.arange(R, dtype=jnp.int32)
  row_GU = jax.vmap(
    lambda row_U, new_R: row_U.at[jnp.where(new_R >= 0, new_R, U)].set(
      rows_R, mode='drop'
    )
  )(row_GU, new_GR)
  return slot_GR, row_GU


def sum_of_slots(out_GUD: Array, slot_GMA: Array, at_once: bool) -> Array:
  """Adds up the slots of each token, in float32: [G, M, D].

  Args:
    out_GUD: outputs by slot.
    slot_GMA: int32 slots of each token, -1 if the token has fewer than A.
    at_once: whether one gather reads the slots of all choices. Otherwise each
      choice has its own gather, and XLA fuses these gathers with the sum.
  """
  G, M, A = slot_GMA.shape
  slot_GAM = slot_GMA.swapaxes(1, 2)
  if at_once:
    index_GR1 = jnp.maximum(slot_GAM.reshape(G, A * M), 0)[..., None]
    rows_GRD = jnp.take_along_axis(out_GUD, index_GR1, axis=1, mode='clip')
    zero = jnp.zeros((), out_GUD.dtype)

  def add(first, num):
    """Sums over `num` choices, from the choice `first` on."""
    total_GMD = None
    for a in range(num):
      slot_GM = lax.dynamic_index_in_dim(
        slot_GAM, first + a, axis=1, keepdims=False
      )
      if at_once:
        rows_GMD = lax.dynamic_slice_in_dim(
          rows_GRD, (first + a) * M, M, axis=1
        )
        rows_GMD = jnp.where((slot_GM >= 0)[..., None], rows_GMD, zero)
      else:
        rows_GMD = gather(out_GUD, slot_GM)
      rows_GMD = rows_GMD.astype(jnp.float32)
      total_GMD = total_GMD + rows_GMD if a else rows_GMD
    return total_GMD

  # Each pass reads and writes the whole result, so we want few passes. But more
  # than 16 choices per pass would take long to compile.
  passes, rest = divmod(A, 16)
  if not passes:
    return add(0, rest)
  total_GMD = lax.fori_loop(
    1, passes, lambda i, total_GMD: total_GMD + add(i * 16, 16), add(0, 16)
  )
  return total_GMD + add(passes * 16, rest) if rest else total_GMD


@jax.custom_vjp
def permute(a: Array, index_GU: Array, inverse: Array) -> Array:
  """Copies entries into slots; empty slots become 0. See also `unpermute`.

  The backward pass gathers by `inverse` and does not scatter.

  Args:
    a: tokens [G, M, D], or numbers [G, R] for the rows of a plan.
    index_GU: int32 index of each slot's entry; -1 for an empty slot.
    inverse: int32 slots of each token, [G, M, A], padded with -1; or the slot
      of each row, [G, R], -1 for no slot.

  Returns:
    [G, U, D] or [G, U].
  """
  del inverse
  return gather(a, index_GU)


def _permute_bwd(
  residuals: tuple[Array, Array], dy: Array
) -> tuple[Array, None, None]:
  index_GU, inverse = residuals
  if inverse.ndim == 3:
    return unpermute(dy, index_GU, inverse), None, None
  return gather(dy, inverse), None, None


permute.defvjp(
  lambda a, index_GU, inverse: (gather(a, index_GU), (index_GU, inverse)),
  _permute_bwd,
)


@jax.custom_vjp
def unpermute(out_GUD: Array, token_GU: Array, slot_GMA: Array) -> Array:
  """Adds up the slots of each token in float32; the counterpart of `permute`.

  Args:
    out_GUD: weighted outputs of the experts by slot.
    token_GU: int32 token of each slot; -1 for an empty slot.
    slot_GMA: int32 slots of each token, -1 if the token has fewer than A.

  Returns:
    [G, M, D] in the dtype of out_GUD.
  """
  del token_GU
  # TPUs gather on separate cores, which write the rows to memory. There one
  # long gather is faster than many short gathers, since it starts only once. On
  # other platforms XLA fuses gathers with the sum and never writes the gathered
  # rows.
  total_GMD = lax.platform_dependent(
    out_GUD,
    slot_GMA,
    tpu=functools.partial(sum_of_slots, at_once=True),
    default=functools.partial(sum_of_slots, at_once=False),
  )
  return total_GMD.astype(out_GUD.dtype)


unpermute.defvjp(
  lambda out_GUD, token_GU, slot_GMA: (
    unpermute(out_GUD, token_GU, slot_GMA),
    token_GU,
  ),
  lambda token_GU, dy_GMD: (gather(dy_GMD, token_GU), None, None),
)
