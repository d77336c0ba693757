"""Packs tokens into rows by expert, and the experts' outputs back into tokens.

A dispatch gives every row of a plan a slot, or none where capacity ran out.
Rows go to the experts with their weights, which these apply to their hidden
layer: it is narrower than their output, and unpacking is then a plain sum.
Slots of one expert lie together: [G, E * C] with capacity C, which the experts
see as [E, G * C], or one run of rows per expert where nothing is ever dropped.
Both directions, forward and backward, only gather.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe.routing import slots
from moe.routing.plan import RoutingPlan
from moe.routing.rows import (
  by_token,
  collect_rows,
  compose,
  spread_rows,
  spread_weights,
)
from moe.types import Array


class Packed(NamedTuple):
  """Rows for the experts.

  Attributes:
    rows: [G, E, C, D] with capacity; [R', D], sorted by expert, without.
    weight: float32 weight of each row, 0 in empty slots.
    expert_rows_E: int32 rows of each expert; None with capacity.
    slot_GR: int32 slot of each row of the plan, -1 where it has none.
    row_GS: int32 row of the plan in each slot, -1 where the slot is empty.
    dropped: float32 scalar, rows asked for that found no slot.
  """

  rows: Array
  weight: Array
  expert_rows_E: Array | None
  slot_GR: Array
  row_GS: Array
  dropped: Array


def _check_factor(factor: float) -> None:
  if not factor > 0:
    raise ValueError(
      f'CAPACITY_FACTOR={factor} must be positive: 1.0 is an even share of the'
      ' rows for each expert, 1.25 leaves room for uneven ones.'
    )


def _packed(
  x_GMD: Array, plan: RoutingPlan, slot_GR: Array, row_GS: Array
) -> tuple[Array, Array]:
  """([G, S, D], [G, S]): the token and the weight of each slot."""
  slot_GMA = by_token(slot_GR, plan.rows_GMA, -1)
  rows_GSD = spread_rows(x_GMD, compose(plan.token_GR, row_GS), slot_GMA)
  return rows_GSD, spread_weights(plan.weight_GR, row_GS, slot_GR)


def _unpacked(out_GSD: Array, plan: RoutingPlan, packed: Packed) -> Array:
  """Outputs by slot [G, S, D] to outputs by token [G, M, D]."""
  token_GS = compose(plan.token_GR, packed.row_GS)
  slot_GMA = by_token(packed.slot_GR, plan.rows_GMA, -1)
  return collect_rows(out_GSD, token_GS, slot_GMA)


def _count(mask: Array) -> Array:
  return jnp.sum(mask, dtype=jnp.float32)


@dataclasses.dataclass(frozen=True)
class Sorted:
  """Fixed capacity; rows are sorted by expert and gathered.

  Attributes:
    capacity_factor: slots per expert over an even share.
    priority: who is kept where an expert is full: 'position', first choices
      before second ones and then earlier tokens; or 'probability', the largest
      weights (batch-prioritised routing, Riquelme et al. (2021), section 4,
      https://arxiv.org/abs/2106.05974, by expert instead of by token). Rows
      that stand by in a plan are tried last (spill to the next choice).
  """

  capacity_factor: float = 1.25
  priority: str = 'position'
  is_dropless = False

  def __post_init__(self):
    _check_factor(self.capacity_factor)
    if self.priority not in slots.PRIORITIES:
      raise ValueError(
        f"dispatch.Sorted.priority='{self.priority}' must be one of"
        f' {slots.PRIORITIES}.'
      )

  def room(self, tokens: int, active: float, num_experts: int) -> int:
    """Slots per expert for each group of so many tokens."""
    return slots.capacity(tokens, active, num_experts, self.capacity_factor)

  def pack(
    self, x_GMD: Array, plan: RoutingPlan, num_experts: int, room: int
  ) -> Packed:
    """[G, E, C, D] rows, C = room; what a full expert cannot take is dropped.

    Args:
      x_GMD: tokens.
      plan: who goes where.
      num_experts: experts to pack for.
      room: slots per expert and group.
    """
    G, _, D = x_GMD.shape
    slot_GR, row_GS = slots.assign(plan, num_experts, room, self.priority)
    rows_GSD, weight_GS = _packed(x_GMD, plan, slot_GR, row_GS)
    dropped = _count(slots.asked_rows(plan)) - _count(slot_GR >= 0)
    return Packed(
      rows_GSD.reshape(G, num_experts, room, D),
      weight_GS.reshape(G, num_experts, room),
      None,
      slot_GR,
      row_GS,
      dropped,
    )

  def unpack(self, out: Array, plan: RoutingPlan, packed: Packed) -> Array:
    """[G, E, C, D] outputs to [G, M, D]."""
    G, E, C, D = out.shape
    return _unpacked(out.reshape(G, E * C, D), plan, packed)


@dataclasses.dataclass(frozen=True)
class Einsum:
  """Fixed capacity by one-hot products: slow, obvious, the reference.

  Keeps by position; rows that stand by in a plan are left out.

  Attributes:
    capacity_factor: slots per expert over an even share.
  """

  capacity_factor: float = 1.25
  is_dropless = False

  def __post_init__(self):
    _check_factor(self.capacity_factor)

  def room(self, tokens: int, active: float, num_experts: int) -> int:
    """Slots per expert for each group of so many tokens."""
    return slots.capacity(tokens, active, num_experts, self.capacity_factor)

  def _mask(self, plan: RoutingPlan, E: int, C: int) -> Array:
    """float32 [G, R, E, C], 1 where a row has a slot."""
    valid_GR1 = slots.asked_rows(plan)[..., None].astype(jnp.float32)
    chosen_GRE = jax.nn.one_hot(plan.expert_GR, E) * valid_GR1
    rank_GRE = jnp.cumsum(chosen_GRE, axis=1) - chosen_GRE
    rank_GR = jnp.sum(rank_GRE * chosen_GRE, axis=-1).astype(jnp.int32)
    # one_hot is zero for ranks beyond the capacity.
    return chosen_GRE[..., None] * jax.nn.one_hot(rank_GR, C)[:, :, None]

  def pack(
    self, x_GMD: Array, plan: RoutingPlan, num_experts: int, room: int
  ) -> Packed:
    """[G, E, C, D] rows, C = room; later rows of a full expert are dropped."""
    mask_GREC = self._mask(plan, num_experts, room)
    token_GRM = jax.nn.one_hot(plan.token_GR, x_GMD.shape[1])
    rows_GECD = jnp.einsum(
      'GREC,GRM,GMD->GECD', mask_GREC, token_GRM, x_GMD.astype(jnp.float32)
    ).astype(x_GMD.dtype)
    weight_GEC = jnp.einsum('GREC,GR->GEC', mask_GREC, plan.weight_GR)
    dropped = _count(slots.asked_rows(plan)) - mask_GREC.sum()
    # unpack builds its own mask; slots are of no use here.
    none_GR = jnp.full_like(plan.expert_GR, -1)
    return Packed(rows_GECD, weight_GEC, None, none_GR, none_GR, dropped)

  def unpack(self, out: Array, plan: RoutingPlan, packed: Packed) -> Array:
    """[G, E, C, D] outputs to [G, M, D]."""
    del packed
    _, E, C, _ = out.shape
    mask_GREC = self._mask(plan, E, C)
    token_GRM = jax.nn.one_hot(plan.token_GR, plan.rows_GMA.shape[1])
    return jnp.einsum(
      'GRM,GREC,GECD->GMD', token_GRM, mask_GREC, out.astype(jnp.float32)
    ).astype(out.dtype)


@dataclasses.dataclass(frozen=True)
class Dropless:
  """No capacity: the rows of all groups in one run per expert, none dropped.

  Rows that stand by in a plan are not needed.
  """

  is_dropless = True

  def room(self, tokens: int, active: float, num_experts: int) -> None:
    """No bound but the number of rows."""
    del tokens, active, num_experts

  def pack(
    self,
    x_GMD: Array,
    plan: RoutingPlan,
    num_experts: int,
    room: int | None = None,
  ) -> Packed:
    """[R', D] rows sorted by expert, zeros behind the last run.

    Args:
      x_GMD: tokens.
      plan: who goes where.
      num_experts: experts to pack for.
      room: R', rows of the buffer, where it is known that fewer exist than the
        plan has room for; where it is not, rows of the last experts that do
        not fit are dropped and counted. None for all of the plan.
    """
    G, M, D = x_GMD.shape
    N, E = plan.expert_GR.size, num_experts
    S = N if room is None else min(room, N)
    one = self._one_group(plan)
    sorted_1N, order_1N = slots.order(one, slots.asked_rows(one), E)
    start_E = jnp.minimum(slots.starts(sorted_1N, E)[0], S)
    filled_1S = jnp.arange(S, dtype=jnp.int32) < start_E[None, E:]
    row_1S = jnp.where(filled_1S, order_1N[:, :S], -1)
    slot_1N = slots.invert(order_1N)
    slot_1N = jnp.where(slot_1N < start_E[E], slot_1N, -1)
    x_1ND = x_GMD.reshape(1, G * M, D)
    rows_1SD, weight_1S = _packed(x_1ND, one, slot_1N, row_1S)
    dropped = _count(slots.asked_rows(one)) - start_E[E].astype(jnp.float32)
    count_E = jnp.diff(start_E)
    return Packed(rows_1SD[0], weight_1S[0], count_E, slot_1N, row_1S, dropped)

  def unpack(self, out: Array, plan: RoutingPlan, packed: Packed) -> Array:
    """[R', D] outputs to [G, M, D]."""
    G, M, _ = plan.rows_GMA.shape
    y_1ND = _unpacked(out[None], self._one_group(plan), packed)
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
