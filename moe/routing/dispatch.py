"""Permutes tokens to rows sorted by expert, and outputs back to tokens.

A dispatch gives a valid row of a plan a slot if its expert has a free slot. The
row goes to the expert together with its weight. The expert multiplies its
hidden layer by the weight, so unpermuting is a plain sum. The slots of one
expert are adjacent. With capacity C, slots are [G, E * C], which the experts
read as [E, G * C]. Without capacity, each expert has one run of rows. Except in
the reference `Einsum`, forward and backward passes move rows only by gathers.
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
    rows: with capacity [E, G * C, D]; without it [U, D], sorted by expert.
    weight: float32 weight of each row; 0 in empty slots.
    count_E: int32 number of rows of each expert; None with capacity.
    dropped: float32 scalar, number of requested rows minus number of rows with
      a slot; spare rows are not requested, but may have a slot.
    slot_GMA: int32 slots of each token, padded with -1.
    token_GU: int32 token in each slot, -1 for an empty slot. Without capacity
      the groups are joined, so G = 1.
    row_GU: int32 place in `RoutingPlan` of the row in each slot, -1 for an
      empty slot; groups are joined as in token_GU.
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
  """Permutes tokens and weights, when each row's slot is known.

  The result has rows [G, U, D] and weights [G, U].

  Args:
    x_GMD: tokens.
    plan: the experts of each token.
    slot_GR: the slot of each row; -1 for no slot.
    row_GU: the row of each slot; -1 for an empty slot.
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
  """Base of the dispatches that give each expert C slots.

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
    """C, slots per expert and group, for groups of `tokens` tokens."""
    return slots.capacity(tokens, active, num_experts, self.capacity_factor)


@dataclasses.dataclass(frozen=True)
class Sorted(_WithCapacity):
  """Fixed capacity; rows are sorted by expert and moved by gathers.

  Attributes:
    capacity_factor: slots per expert, as a multiple of an even share.
    priority: which rows a full expert keeps. With 'position', earlier rows of
      the plan come first: if tokens choose, these are first choices before
      second choices, and then earlier tokens before later ones. With
      'probability', rows with larger weights come first. This is
      batch-prioritised routing (Riquelme et al., 2021, section 4,
      https://arxiv.org/abs/2106.05974), but by row and not by token. Rows of
      spare choices always come last.
  """

  priority: str = 'position'

  def permute(
    self, x_GMD: Array, plan: RoutingPlan, num_experts: int, capacity: int
  ) -> Permuted:
    """Makes rows [E, G * C, D]; drops rows beyond C per expert and group.

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
    """Adds up outputs [E, G * C, D] by token: [G, M, D]."""
    G, (E, _, D) = len(permuted.slot_GMA), out.shape
    out_GECD = out.reshape(E, G, -1, D).swapaxes(0, 1)
    return slots.unpermute(
      out_GECD.reshape(G, -1, D), permuted.token_GU, permuted.slot_GMA
    )


@dataclasses.dataclass(frozen=True)
class Einsum(_WithCapacity):
  """Fixed capacity by one-hot products: a simple and slow reference.

  The priority is 'position', see `Sorted`. Spare rows (`RoutingPlan.num_spare`)
  are ignored.

  Attributes:
    capacity_factor: slots per expert, as a multiple of an even share.
  """

  def _mask(self, plan: RoutingPlan, E: int, C: int) -> Array:
    """Float32 [G, R, E, C] with 1 for the slot of each row, else 0."""
    valid_GR1 = slots.requested_rows(plan)[..., None].astype(jnp.float32)
    chosen_GRE = jax.nn.one_hot(plan.expert_GR, E) * valid_GR1
    rank_GRE = jnp.cumsum(chosen_GRE, axis=1) - chosen_GRE
    rank_GR = jnp.sum(rank_GRE * chosen_GRE, axis=-1).astype(jnp.int32)
    # For a rank of at least C, one_hot gives zeros.
    return chosen_GRE[..., None] * jax.nn.one_hot(rank_GR, C)[:, :, None]

  def permute(
    self, x_GMD: Array, plan: RoutingPlan, num_experts: int, capacity: int
  ) -> Permuted:
    """Makes rows [E, G * C, D]; later rows of a full expert are dropped."""
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
    """Adds up outputs [E, G * C, D] by token: [G, M, D]."""
    token_GRM, mask_GREC = permuted.one_hots
    G, _, E, C = mask_GREC.shape
    out_GECD = out.reshape(E, G, C, -1).swapaxes(0, 1)
    return jnp.einsum(
      'GRM,GREC,GECD->GMD', token_GRM, mask_GREC, out_GECD.astype(jnp.float32)
    ).astype(out.dtype)


@dataclasses.dataclass(frozen=True)
class Dropless:
  """No capacity: each expert gets a run of all its rows.

  A run has rows of all groups. Spare rows are ignored.
  """

  is_dropless = True

  def capacity(self, tokens: int, active: float, num_experts: int) -> None:
    """None: the number of an expert's rows has no limit."""
    del tokens, active, num_experts

  def permute(
    self,
    x_GMD: Array,
    plan: RoutingPlan,
    num_experts: int,
    capacity: int | None = None,
  ) -> Permuted:
    """Makes rows [U, D] sorted by expert; zeros follow the last expert's rows.

    Args:
      x_GMD: tokens.
      plan: the experts of each token.
      num_experts: E of the plan.
      capacity: U, rows of the buffer; None or a larger number means the number
        of rows of the plan. If the buffer is too short, rows of the last
        experts are dropped and counted.
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
    """Adds up outputs [U, D] by token; returns [G, M, D]."""
    G, M, A = permuted.slot_GMA.shape
    slot_1MA = permuted.slot_GMA.reshape(1, G * M, A)
    y_1MD = slots.unpermute(out[None], permuted.token_GU, slot_1MA)
    return y_1MD.reshape(G, M, out.shape[-1])

  def _one_group(self, plan: RoutingPlan) -> RoutingPlan:
    """Joins the G groups of a plan to a single group of G * M tokens."""
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
