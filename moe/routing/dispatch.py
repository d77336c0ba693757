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

from moe.routing import permutation, slots
from moe.routing.plan import RoutingPlan
from moe.types import Array


class Permuted(NamedTuple):
  """Rows for the experts, and what brings their outputs back.

  Attributes:
    rows: [G, E, C, D] with capacity; [R', D], sorted by expert, without.
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


def _check_factor(factor: float) -> None:
  if not factor > 0:
    raise ValueError(
      f'CAPACITY_FACTOR={factor} must be positive: 1.0 is an even share of the'
      ' rows for each expert, 1.25 leaves room for uneven ones.'
    )


def _permuted(
  x_GMD: Array, plan: RoutingPlan, slot_GR: Array, row_GS: Array
) -> Permuted:
  """[G, S, D] rows and [G, S] weights, by the slot of each row and its inverse.

  This is the one place where slots by token and tokens by slot are derived.
  """
  token_GS = permutation.gather(plan.token_GR, row_GS, -1)
  slot_GMA = permutation.gather(slot_GR, plan.rows_GMA, -1)
  asked = jnp.sum(slots.asked_rows(plan), dtype=jnp.float32)
  return Permuted(
    permutation.permute(x_GMD, token_GS, slot_GMA),
    permutation.permute_weights(plan.weight_GR, row_GS, slot_GR),
    None,
    asked - jnp.sum(slot_GR >= 0, dtype=jnp.float32),
    slot_GMA,
    token_GS,
    row_GS,
  )


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

  def permute(
    self, x_GMD: Array, plan: RoutingPlan, num_experts: int, room: int
  ) -> Permuted:
    """[G, E, C, D] rows, C = room; what a full expert cannot take is dropped.

    Args:
      x_GMD: tokens.
      plan: who goes where.
      num_experts: E, experts that the plan knows.
      room: slots per expert and group.
    """
    slot_GR, row_GS = slots.assign(plan, num_experts, room, self.priority)
    permuted = _permuted(x_GMD, plan, slot_GR, row_GS)
    shape = len(x_GMD), num_experts, room
    return permuted._replace(
      rows=permuted.rows.reshape(*shape, x_GMD.shape[-1]),
      weight=permuted.weight.reshape(shape),
    )

  def unpermute(self, out: Array, permuted: Permuted) -> Array:
    """[G, E, C, D] outputs to [G, M, D]."""
    G, E, C, D = out.shape
    return permutation.unpermute(
      out.reshape(G, E * C, D), permuted.token_GS, permuted.slot_GMA
    )


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

  def permute(
    self, x_GMD: Array, plan: RoutingPlan, num_experts: int, room: int
  ) -> Permuted:
    """[G, E, C, D] rows, C = room; later rows of a full expert are dropped."""
    mask_GREC = self._mask(plan, num_experts, room)
    token_GRM = jax.nn.one_hot(plan.token_GR, x_GMD.shape[1])
    rows_GECD = jnp.einsum(
      'GREC,GRM,GMD->GECD', mask_GREC, token_GRM, x_GMD.astype(jnp.float32)
    ).astype(x_GMD.dtype)
    weight_GEC = jnp.einsum('GREC,GR->GEC', mask_GREC, plan.weight_GR)
    asked = jnp.sum(slots.asked_rows(plan), dtype=jnp.float32)
    dropped = asked - mask_GREC.sum()
    one_hots = token_GRM, mask_GREC
    return Permuted(rows_GECD, weight_GEC, None, dropped, one_hots=one_hots)

  def unpermute(self, out: Array, permuted: Permuted) -> Array:
    """[G, E, C, D] outputs to [G, M, D]."""
    return jnp.einsum(
      'GRM,GREC,GECD->GMD', *permuted.one_hots, out.astype(jnp.float32)
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
    y_1ND = permutation.unpermute(out[None], permuted.token_GS, slot_1NA)
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
