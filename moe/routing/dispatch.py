"""Permutes tokens into rows sorted by expert, and outputs back into tokens.

A dispatch gives every row of a plan a slot, or none where capacity ran out.
Each row goes to its expert with its weight. The expert multiplies its hidden
layer by the weight, since that is narrower than its output. Unpermuting is then
a plain sum. The slots of one expert are adjacent: with capacity C they are
[G, E * C], which the experts read as [E, G * C]; without capacity there is one
run of rows per expert. Forward and backward passes only gather.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe import bounds
from moe.routing import slots
from moe.routing.plan import RoutingPlan
from moe.types import Array


class Permuted(NamedTuple):
  """Rows for the experts, and the indices that bring their outputs back.

  Attributes:
    rows: [E, G * C, D] with capacity; [R', D] sorted by expert without it.
    weight: float32 weight of each row, 0 in empty slots.
    count_E: int32 rows of each expert; None with capacity.
    dropped: float32 scalar, number of requested rows that found no slot.
    slot_GMA: int32 slots of each token, -1 where it has fewer.
    token_GU: int32 token in each slot, -1 where the slot is empty; without
      capacity the groups are joined: [1, R'].
    row_GU: int32 row of the plan in each slot, in the same form.
    one_hots: (token_GRM, mask_GREC) of `Einsum`, which has no indices.
  """

  rows: Array
  weight: Array
  count_E: Array | None
  dropped: Array
  slot_GMA: Array | None = None
  token_GU: Array | None = None
  row_GU: Array | None = None
  one_hots: tuple[Array, Array] | None = None


def _permuted(
  x_GMD: Array, plan: RoutingPlan, slot_GR: Array, row_GU: Array
) -> Permuted:
  """Permutes tokens and weights.

  The rows are [G, U, D] and the weights [G, U]. Only this function derives the
  slots of each token and the token of each slot.

  Args:
    x_GMD: tokens.
    plan: the experts of each token.
    slot_GR: the slot of each row, -1 for none.
    row_GU: the row of each slot, -1 for none.
  """
  token_GU = slots.gather(plan.token_GR, row_GU, -1)
  slot_GMA = slots.gather(slot_GR, plan.rows_GMA, -1)
  asked = jnp.sum(slots.requested_rows(plan), dtype=jnp.float32)
  return Permuted(
    slots.permute(x_GMD, token_GU, slot_GMA),
    slots.permute(plan.weight_GR, row_GU, slot_GR),
    None,
    asked - jnp.sum(slot_GR >= 0, dtype=jnp.float32),
    slot_GMA,
    token_GU,
    row_GU,
  )


@dataclasses.dataclass(frozen=True)
class _WithCapacity:
  """Base of the dispatches in which each expert has C slots.

  Attributes:
    capacity_factor: slots per expert, as a multiple of an even share.
  """

  capacity_factor: float = 1.25

  priority = 'position'
  is_dropless = False

  def __post_init__(self):
    bounds.within(
      'CAPACITY_FACTOR',
      self.capacity_factor,
      '1.0 gives each expert an even share of the rows, 1.25 allows for uneven'
      ' loads',
      above=0,
    )
    bounds.one_of('priority', self.priority, slots.PRIORITIES)

  def capacity(self, tokens: int, active: float, num_experts: int) -> int:
    """Slots per expert and group, for groups of `tokens` tokens."""
    return slots.capacity(tokens, active, num_experts, self.capacity_factor)


@dataclasses.dataclass(frozen=True)
class Sorted(_WithCapacity):
  """Fixed capacity; a sort by expert finds the rows, and gathers move them.

  Attributes:
    capacity_factor: slots per expert, as a multiple of an even share.
    priority: which rows a full expert keeps. 'position' keeps first choices
      before second ones, and then earlier tokens. 'probability' keeps the
      largest weights (batch-prioritised routing, Riquelme et al. (2021),
      section 4, https://arxiv.org/abs/2106.05974, per expert instead of per
      token). Spare rows come last (spill to the next choice).
  """

  priority: str = 'position'

  def permute(
    self, x_GMD: Array, plan: RoutingPlan, num_experts: int, capacity: int
  ) -> Permuted:
    """[E, G * C, D] rows; rows that a full expert cannot take are dropped.

    Args:
      x_GMD: tokens.
      plan: the experts of each token.
      num_experts: E of the plan.
      capacity: C, slots per expert and group.
    """
    E, C, R = num_experts, capacity, plan.expert_GR.shape[1]
    sorted_GR, order_GR, start_GE = slots.sort_by_expert(
      plan, slots.requested_rows(plan), E, self.priority
    )
    count_GE = jnp.diff(start_GE, axis=1)
    place_C = jnp.arange(C, dtype=jnp.int32)
    filled_GEC = place_C < jnp.minimum(count_GE, C)[..., None]
    index_GEC = jnp.where(filled_GEC, start_GE[:, :E, None] + place_C, -1)
    row_GU = slots.gather(order_GR, index_GEC.reshape(-1, E * C), -1)
    rank_GR = jnp.arange(R, dtype=jnp.int32) - jnp.take_along_axis(
      start_GE, sorted_GR, axis=1
    )
    kept_GR = (rank_GR < C) & (sorted_GR < E)
    slot_GR = jnp.where(kept_GR, sorted_GR * C + rank_GR, -1)
    slot_GR = jnp.take_along_axis(slot_GR, slots.invert(order_GR), axis=1)
    for a in range(plan.num_spare):
      slot_GR, row_GU = slots.spill(plan, a, C, slot_GR, row_GU)
    permuted = _permuted(x_GMD, plan, slot_GR, row_GU)
    G, _, D = x_GMD.shape
    rows_EGCD = permuted.rows.reshape(G, E, C, D).swapaxes(0, 1)
    weight_EGC = permuted.weight.reshape(G, E, C).swapaxes(0, 1)
    return permuted._replace(
      rows=rows_EGCD.reshape(E, G * C, D),
      weight=weight_EGC.reshape(E, G * C),
    )

  def unpermute(self, out: Array, permuted: Permuted) -> Array:
    """[E, G * C, D] outputs to [G, M, D]."""
    G, (E, _, D) = len(permuted.slot_GMA), out.shape
    out_GECD = out.reshape(E, G, -1, D).swapaxes(0, 1)
    return slots.unpermute(
      out_GECD.reshape(G, -1, D), permuted.token_GU, permuted.slot_GMA
    )


@dataclasses.dataclass(frozen=True)
class Einsum(_WithCapacity):
  """Fixed capacity by one-hot products: the reference, slow and simple.

  The priority is 'position', and spare rows are ignored.

  Attributes:
    capacity_factor: slots per expert, as a multiple of an even share.
  """

  def _mask(self, plan: RoutingPlan, E: int, C: int) -> Array:
    """float32 [G, R, E, C], 1 where a row has a slot."""
    valid_GR1 = slots.requested_rows(plan)[..., None].astype(jnp.float32)
    chosen_GRE = jax.nn.one_hot(plan.expert_GR, E) * valid_GR1
    rank_GRE = jnp.cumsum(chosen_GRE, axis=1) - chosen_GRE
    rank_GR = jnp.sum(rank_GRE * chosen_GRE, axis=-1).astype(jnp.int32)
    # one_hot is zero for ranks of C and more.
    return chosen_GRE[..., None] * jax.nn.one_hot(rank_GR, C)[:, :, None]

  def permute(
    self, x_GMD: Array, plan: RoutingPlan, num_experts: int, capacity: int
  ) -> Permuted:
    """[E, G * C, D] rows; later rows of a full expert are dropped."""
    mask_GREC = self._mask(plan, num_experts, capacity)
    token_GRM = jax.nn.one_hot(plan.token_GR, x_GMD.shape[1])
    rows_GECD = jnp.einsum(
      'GREC,GRM,GMD->GECD', mask_GREC, token_GRM, x_GMD.astype(jnp.float32)
    ).astype(x_GMD.dtype)
    weight_GEC = jnp.einsum('GREC,GR->GEC', mask_GREC, plan.weight_GR)
    asked = jnp.sum(slots.requested_rows(plan), dtype=jnp.float32)
    dropped = asked - mask_GREC.sum()
    G, E, C, D = rows_GECD.shape
    return Permuted(
      rows_GECD.swapaxes(0, 1).reshape(E, G * C, D),
      weight_GEC.swapaxes(0, 1).reshape(E, G * C),
      None,
      dropped,
      one_hots=(token_GRM, mask_GREC),
    )

  def unpermute(self, out: Array, permuted: Permuted) -> Array:
    """[E, G * C, D] outputs to [G, M, D]."""
    token_GRM, mask_GREC = permuted.one_hots
    G, _, E, C = mask_GREC.shape
    out_GECD = out.reshape(E, G, C, -1).swapaxes(0, 1)
    return jnp.einsum(
      'GRM,GREC,GECD->GMD', token_GRM, mask_GREC, out_GECD.astype(jnp.float32)
    ).astype(out.dtype)


@dataclasses.dataclass(frozen=True)
class Dropless:
  """No capacity: each expert gets one run of rows, and none is dropped.

  A run holds rows of all groups. Spare rows are ignored.
  """

  is_dropless = True

  def capacity(self, tokens: int, active: float, num_experts: int) -> None:
    """None, since only the number of rows bounds the load of an expert."""
    del tokens, active, num_experts

  def permute(
    self,
    x_GMD: Array,
    plan: RoutingPlan,
    num_experts: int,
    capacity: int | None = None,
  ) -> Permuted:
    """[R', D] rows sorted by expert, zeros behind the last run.

    Args:
      x_GMD: tokens.
      plan: the experts of each token.
      num_experts: E of the plan.
      capacity: R', rows of the buffer; None for all rows of the plan. If the
        buffer is too short, rows of the last experts are dropped and counted.
    """
    G, M, D = x_GMD.shape
    R, E = plan.expert_GR.size, num_experts
    U = R if capacity is None else min(capacity, R)
    one = self._one_group(plan)
    _, order_1R, start_1E = slots.sort_by_expert(
      one, slots.requested_rows(one), E
    )
    start_E = jnp.minimum(start_1E[0], U)
    filled_1U = jnp.arange(U, dtype=jnp.int32) < start_E[None, E:]
    row_1U = jnp.where(filled_1U, order_1R[:, :U], -1)
    slot_1R = slots.invert(order_1R)
    slot_1R = jnp.where(slot_1R < start_E[E], slot_1R, -1)
    permuted = _permuted(x_GMD.reshape(1, G * M, D), one, slot_1R, row_1U)
    return permuted._replace(
      rows=permuted.rows[0],
      weight=permuted.weight[0],
      count_E=jnp.diff(start_E),
      slot_GMA=permuted.slot_GMA.reshape(plan.rows_GMA.shape),
    )

  def unpermute(self, out: Array, permuted: Permuted) -> Array:
    """[R', D] outputs to [G, M, D]."""
    G, M, A = permuted.slot_GMA.shape
    slot_1MA = permuted.slot_GMA.reshape(1, G * M, A)
    y_1MD = slots.unpermute(out[None], permuted.token_GU, slot_1MA)
    return y_1MD.reshape(G, M, out.shape[-1])

  def _one_group(self, plan: RoutingPlan) -> RoutingPlan:
    """The plan with its groups joined into one of G * M tokens."""
    G, R = plan.expert_GR.shape
    M, A = plan.rows_GMA.shape[1:]
    groups_G1 = jnp.arange(G, dtype=jnp.int32)[:, None]
    rows_GMA = plan.rows_GMA + groups_G1[..., None] * R
    rows_GMA = jnp.where(plan.rows_GMA >= 0, rows_GMA, -1)
    return plan._replace(
      token_GR=(plan.token_GR + groups_G1 * M).reshape(1, G * R),
      expert_GR=plan.expert_GR.reshape(1, G * R),
      weight_GR=plan.weight_GR.reshape(1, G * R),
      valid_GR=plan.valid_GR.reshape(1, G * R),
      rows_GMA=rows_GMA.reshape(1, G * M, A),
    )


Dispatch = Sorted | Einsum | Dropless
