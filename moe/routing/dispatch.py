"""Permutes tokens into rows by expert, and the experts' outputs back.

A dispatch gives every row of a plan a slot, or none where capacity ran out.
Rows go to the experts with their weights, which the experts apply to their
hidden layer: it is narrower than their output, and unpermuting is then a plain
sum. Slots of one expert lie together: [G, E * C] with capacity C, which the
experts see as [E, G * C], or one run of rows per expert where nothing is ever
dropped. Both directions, forward and backward, only gather.
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
  """Rows for the experts, and what brings their outputs back.

  Attributes:
    rows: [E, G * C, D] with capacity; [R', D], sorted by expert, without.
    weight: float32 weight of each row, 0 in empty slots.
    count_E: int32 rows of each expert; None with capacity.
    dropped: float32 scalar, rows asked for that found no slot.
    slot_GMA: int32 slots of each token, -1 where it has fewer.
    token_GS: int32 token in each slot, -1 where the slot is empty; without
      capacity the groups are joined: [1, R'].
    row_GS: the same for the row of the plan.
    one_hots: of `Einsum`, which has no indices: the products of its plan.
  """

  rows: Array
  weight: Array
  count_E: Array | None
  dropped: Array
  slot_GMA: Array | None = None
  token_GS: Array | None = None
  row_GS: Array | None = None
  one_hots: tuple[Array, Array] | None = None


def _permuted(
  x_GMD: Array, plan: RoutingPlan, slot_GR: Array, row_GS: Array
) -> Permuted:
  """[G, S, D] rows and [G, S] weights, by the slot of each row and its inverse.

  This is the one place where slots by token and tokens by slot are derived.
  """
  token_GS = slots.gather(plan.token_GR, row_GS, -1)
  slot_GMA = slots.gather(slot_GR, plan.rows_GMA, -1)
  asked = jnp.sum(slots.asked_rows(plan), dtype=jnp.float32)
  return Permuted(
    slots.permute(x_GMD, token_GS, slot_GMA),
    slots.permute(plan.weight_GR, row_GS, slot_GR),
    None,
    asked - jnp.sum(slot_GR >= 0, dtype=jnp.float32),
    slot_GMA,
    token_GS,
    row_GS,
  )


@dataclasses.dataclass(frozen=True)
class _WithCapacity:
  """Base of the dispatches in which each expert has C slots.

  Attributes:
    capacity_factor: slots per expert over an even share.
  """

  capacity_factor: float = 1.25

  priority = 'position'
  is_dropless = False

  def __post_init__(self):
    bounds.within(
      'CAPACITY_FACTOR',
      self.capacity_factor,
      '1.0 gives each expert an even share of the rows, 1.25 leaves some room',
      above=0,
    )
    bounds.one_of('priority', self.priority, slots.PRIORITIES)

  def room(self, tokens: int, active: float, num_experts: int) -> int:
    """Slots per expert for each group of so many tokens."""
    return slots.capacity(tokens, active, num_experts, self.capacity_factor)


@dataclasses.dataclass(frozen=True)
class Sorted(_WithCapacity):
  """Fixed capacity; rows are sorted by expert and gathered.

  Attributes:
    capacity_factor: slots per expert over an even share.
    priority: who is kept where an expert is full: 'position', first choices
      before second ones and then earlier tokens; or 'probability', the largest
      weights (batch-prioritised routing, Riquelme et al. (2021), section 4,
      https://arxiv.org/abs/2106.05974, by expert instead of by token). Rows
      that stand by in a plan are tried last (spill to the next choice).
  """

  priority: str = 'position'

  def permute(
    self, x_GMD: Array, plan: RoutingPlan, num_experts: int, room: int
  ) -> Permuted:
    """[E, G * C, D] rows; what a full expert cannot take is dropped.

    Args:
      x_GMD: tokens.
      plan: who goes where.
      num_experts: E, experts that the plan knows.
      room: C, slots per expert and group.
    """
    slot_GR, row_GS = slots.assign(plan, num_experts, room, self.priority)
    permuted = _permuted(x_GMD, plan, slot_GR, row_GS)
    G, _, D = x_GMD.shape
    E, C = num_experts, room
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
      out_GECD.reshape(G, -1, D), permuted.token_GS, permuted.slot_GMA
    )


@dataclasses.dataclass(frozen=True)
class Einsum(_WithCapacity):
  """Fixed capacity by one-hot products: slow, obvious, the reference.

  It keeps by position and leaves out rows that stand by in a plan.

  Attributes:
    capacity_factor: slots per expert over an even share.
  """

  def _mask(self, plan: RoutingPlan, E: int, C: int) -> Array:
    """float32 [G, R, E, C], 1 where a row has a slot."""
    valid_GR1 = slots.asked_rows(plan)[..., None].astype(jnp.float32)
    chosen_GRE = jax.nn.one_hot(plan.expert_GR, E) * valid_GR1
    rank_GRE = jnp.cumsum(chosen_GRE, axis=1) - chosen_GRE
    rank_GR = jnp.sum(rank_GRE * chosen_GRE, axis=-1).astype(jnp.int32)
    # one_hot is zero for ranks beyond the capacity.
    return chosen_GRE[..., None] * jax.nn.one_hot(rank_GR, C)[:, :, None]

  def permute(
    self, x_GMD: Array, plan: RoutingPlan, num_experts: int, room: int
  ) -> Permuted:
    """[E, G * C, D] rows, C = room; later rows of a full expert are dropped."""
    mask_GREC = self._mask(plan, num_experts, room)
    token_GRM = jax.nn.one_hot(plan.token_GR, x_GMD.shape[1])
    rows_GECD = jnp.einsum(
      'GREC,GRM,GMD->GECD', mask_GREC, token_GRM, x_GMD.astype(jnp.float32)
    ).astype(x_GMD.dtype)
    weight_GEC = jnp.einsum('GREC,GR->GEC', mask_GREC, plan.weight_GR)
    asked = jnp.sum(slots.asked_rows(plan), dtype=jnp.float32)
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
  """No capacity: the rows of all groups in one run per expert, none dropped.

  It leaves out rows that stand by in a plan.
  """

  is_dropless = True

  def room(self, tokens: int, active: float, num_experts: int) -> None:
    """No bound but the number of rows."""
    del tokens, active, num_experts

  def permute(
    self,
    x_GMD: Array,
    plan: RoutingPlan,
    num_experts: int,
    room: int | None = None,
  ) -> Permuted:
    """[R', D] rows sorted by expert, zeros behind the last run.

    Args:
      x_GMD: tokens.
      plan: who goes where.
      num_experts: E, experts that the plan knows.
      room: R', rows of the buffer, where fewer exist than the plan has room
        for. Rows of the last experts that do not fit are dropped and counted.
        None for all of the plan.
    """
    G, M, D = x_GMD.shape
    N, E = plan.expert_GR.size, num_experts
    S = N if room is None else min(room, N)
    one = self._one_group(plan)
    _, order_1N, start_1E = slots.sort_by_expert(one, slots.asked_rows(one), E)
    start_E = jnp.minimum(start_1E[0], S)
    filled_1S = jnp.arange(S, dtype=jnp.int32) < start_E[None, E:]
    row_1S = jnp.where(filled_1S, order_1N[:, :S], -1)
    slot_1N = slots.invert(order_1N)
    slot_1N = jnp.where(slot_1N < start_E[E], slot_1N, -1)
    permuted = _permuted(x_GMD.reshape(1, G * M, D), one, slot_1N, row_1S)
    return permuted._replace(
      rows=permuted.rows[0],
      weight=permuted.weight[0],
      count_E=jnp.diff(start_E),
      slot_GMA=permuted.slot_GMA.reshape(plan.rows_GMA.shape),
    )

  def unpermute(self, out: Array, permuted: Permuted) -> Array:
    """[R', D] outputs to [G, M, D]."""
    G, M, A = permuted.slot_GMA.shape
    slot_1NA = permuted.slot_GMA.reshape(1, G * M, A)
    y_1ND = slots.unpermute(out[None], permuted.token_GS, slot_1NA)
    return y_1ND.reshape(G, M, out.shape[-1])

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
