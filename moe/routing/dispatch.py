"""Packs tokens into rows by expert, and the experts' outputs back into tokens.

A dispatch gives every row of a plan a slot, or none where capacity ran out.
Slots of one expert lie together: [G, E * C] with capacity C, which the experts
see as [E, G * C], or one run of rows per expert where nothing is ever dropped.
Both directions, forward and backward, only gather.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe.routing.plan import RoutingPlan
from moe.types import Array


class Packed(NamedTuple):
  """Rows for the experts.

  Attributes:
    rows: [G, E, C, D] with capacity; [R', D], sorted by expert, without.
    expert_rows_E: int32 rows of each expert; None with capacity.
    slot_GR: int32 slot of each row of the plan, -1 where it has none.
    row_GS: int32 row of the plan in each slot, -1 where the slot is empty.
    dropped: float32 scalar, valid rows that found no slot.
  """

  rows: Array
  expert_rows_E: Array | None
  slot_GR: Array
  row_GS: Array
  dropped: Array


def _take(x_GND: Array, index_GK: Array) -> Array:
  """Rows of each group by index; zeros where the index is negative."""
  index_GK1 = jnp.maximum(index_GK, 0)[..., None]
  rows_GKD = jnp.take_along_axis(x_GND, index_GK1, axis=1, mode='clip')
  # where, not a product: an empty slot must stay 0 whatever row 0 holds.
  zero = jnp.zeros((), x_GND.dtype)
  return jnp.where((index_GK >= 0)[..., None], rows_GKD, zero)


def _compose(outer_GN: Array, index_GK: Array) -> Array:
  """outer[index], -1 where the index is negative."""
  picked_GK = jnp.take_along_axis(
    outer_GN, jnp.maximum(index_GK, 0), axis=1, mode='clip'
  )
  return jnp.where(index_GK >= 0, picked_GK, -1)


@jax.custom_vjp
def gather_rows(x_GMD: Array, token_GS: Array, slot_GMA: Array) -> Array:
  """x_GMD[token_GS]: the token of each slot, zeros in empty slots.

  Args:
    x_GMD: tokens.
    token_GS: int32 token of each slot, -1 where it is empty.
    slot_GMA: int32 slots of each token, -1 where dropped; the inverse of
      token_GS, by which the backward pass gathers instead of adding in
      scattered places.

  Returns:
    [G, S, D].
  """
  del slot_GMA
  return _take(x_GMD, token_GS)


def _gather_rows_fwd(x_GMD, token_GS, slot_GMA):
  return _take(x_GMD, token_GS), slot_GMA


def _gather_rows_bwd(slot_GMA, dy_GSD):
  A = slot_GMA.shape[-1]
  dx_GMD = sum(_take(dy_GSD, slot_GMA[..., a]) for a in range(A))
  return dx_GMD, None, None


gather_rows.defvjp(_gather_rows_fwd, _gather_rows_bwd)


@jax.custom_vjp
def combine_rows(
  out_GSD: Array, weight_GMA: Array, slot_GMA: Array, row_GS: Array
) -> Array:
  """Weighted sum over each token's slots.

  Args:
    out_GSD: outputs of the experts by slot.
    weight_GMA: float32 weight of each token's choices.
    slot_GMA: int32 slots of each token, -1 where dropped.
    row_GS: int32 place m * A + a in the flattened [M, A] that each slot serves,
      -1 where it is empty; the inverse of slot_GMA.

  Returns:
    [G, M, D] in the dtype of out_GSD, added up in float32.
  """
  del row_GS
  A = slot_GMA.shape[-1]
  y_GMD = sum(
    _take(out_GSD, slot_GMA[..., a]).astype(jnp.float32)
    * weight_GMA[..., a, None]
    for a in range(A)
  )
  return y_GMD.astype(out_GSD.dtype)


def _combine_rows_fwd(out_GSD, weight_GMA, slot_GMA, row_GS):
  y_GMD = combine_rows(out_GSD, weight_GMA, slot_GMA, row_GS)
  return y_GMD, (out_GSD, weight_GMA, slot_GMA, row_GS)


def _combine_rows_bwd(residuals, dy_GMD):
  out_GSD, weight_GMA, slot_GMA, row_GS = residuals
  G, M, A = slot_GMA.shape
  token_GS = jnp.where(row_GS >= 0, row_GS // A, -1)
  weight_GS = jnp.take_along_axis(
    weight_GMA.reshape(G, M * A), jnp.maximum(row_GS, 0), axis=1, mode='clip'
  )
  dy_GSD = _take(dy_GMD, token_GS).astype(jnp.float32)
  dout_GSD = (dy_GSD * weight_GS[..., None]).astype(out_GSD.dtype)
  # <output, gradient> is taken by slot, where both already lie, and the scalars
  # are gathered back to the tokens.
  dot_GS = jnp.sum(out_GSD.astype(jnp.float32) * dy_GSD, axis=-1)
  dot_GMA = jnp.take_along_axis(
    dot_GS[:, None], jnp.maximum(slot_GMA, 0), axis=2, mode='clip'
  )
  dweight_GMA = jnp.where(slot_GMA >= 0, dot_GMA, 0.0)
  return dout_GSD, dweight_GMA, None, None


combine_rows.defvjp(_combine_rows_fwd, _combine_rows_bwd)


def _choices(plan: RoutingPlan, a_GR: Array) -> Array:
  """A per-row array as [G, M, A], by token."""
  G, M, A = plan.rows_GMA.shape
  rows_GK = plan.rows_GMA.reshape(G, M * A)
  return jnp.take_along_axis(a_GR, rows_GK, axis=1).reshape(G, M, A)


def _flat_places(plan: RoutingPlan, row_GS: Array) -> Array:
  """Each slot's place in the flattened [M, A], -1 where the slot is empty."""
  G, M, A = plan.rows_GMA.shape
  rows_GK = plan.rows_GMA.reshape(G, M * A)
  places_K = jnp.arange(M * A, dtype=jnp.int32)
  # Position of row r in rows_GK; rows_GK is a permutation of the rows.
  inverse_GR = jax.vmap(
    lambda rows_K: jnp.zeros_like(rows_K).at[rows_K].set(places_K)
  )(rows_GK)
  return _compose(inverse_GR, row_GS)


def combine(out_GSD: Array, plan: RoutingPlan, packed: Packed) -> Array:
  """Outputs by slot [G, S, D] to outputs by token [G, M, D]."""
  return combine_rows(
    out_GSD,
    _choices(plan, plan.weight_GR),
    _choices(plan, packed.slot_GR),
    _flat_places(plan, packed.row_GS),
  )


def capacity(
  tokens: int, num_active: int, num_experts: int, factor: float
) -> int:
  """Slots per expert and group: factor times an even share, at least 1."""
  share = tokens * num_active / num_experts
  # Rounded first: 1.1 * 50 is a little more than 55 and would give 56 slots.
  return max(1, min(tokens, math.ceil(round(factor * share, 6))))


def _sorted_slots(
  plan: RoutingPlan, num_experts: int, C: int
) -> tuple[Array, Array, Array]:
  """Slots by a stable sort on the expert: (slot_GR, row_GS, dropped)."""
  R = plan.expert_GR.shape[1]
  E = num_experts
  # Rows that do not exist sort behind the last expert.
  key_GR = jnp.where(plan.valid_GR, plan.expert_GR, E)
  order_GR = jnp.argsort(key_GR, axis=1, stable=True).astype(jnp.int32)
  sorted_GR = jnp.take_along_axis(key_GR, order_GR, axis=1)
  bounds_E = jnp.arange(E + 1, dtype=jnp.int32)
  start_GE = jax.vmap(lambda s_R: jnp.searchsorted(s_R, bounds_E))(sorted_GR)
  start_GE = start_GE.astype(jnp.int32)
  count_GE = jnp.diff(start_GE, axis=1)
  place_C = jnp.arange(C, dtype=jnp.int32)
  row_GEC = start_GE[:, :E, None] + place_C
  filled_GEC = place_C < jnp.minimum(count_GE, C)[..., None]
  index_GS = jnp.where(filled_GEC, row_GEC, -1).reshape(-1, E * C)
  row_GS = _compose(order_GR, index_GS)
  rank_GR = jnp.arange(R, dtype=jnp.int32) - jnp.take_along_axis(
    start_GE, sorted_GR, axis=1
  )
  kept_GR = (rank_GR < C) & (sorted_GR < E)
  slot_sorted_GR = jnp.where(kept_GR, sorted_GR * C + rank_GR, -1)
  slot_GR = jax.vmap(
    lambda order_R, slot_R: jnp.zeros_like(slot_R).at[order_R].set(slot_R)
  )(order_GR, slot_sorted_GR)
  dropped = jnp.sum(jnp.maximum(count_GE - C, 0)).astype(jnp.float32)
  return slot_GR, row_GS, dropped


@dataclasses.dataclass(frozen=True)
class Sorted:
  """Fixed capacity; rows are sorted by expert and gathered.

  Attributes:
    capacity_factor: slots per expert over an even share.
  """

  capacity_factor: float = 1.25
  is_dropless = False

  def pack(
    self, x_GMD: Array, plan: RoutingPlan, num_experts: int, shards: int = 1
  ) -> Packed:
    """[G, E, C, D] rows; later rows of a full expert are dropped.

    Args:
      x_GMD: tokens.
      plan: who goes where.
      num_experts: experts to pack for.
      shards: parts of the layer's experts, of which these are one; the capacity
        is a share of all, however many are packed for here.
    """
    G, M, D = x_GMD.shape
    A, total = plan.rows_GMA.shape[-1], num_experts * shards
    C = capacity(M, A, total, self.capacity_factor)
    slot_GR, row_GS, dropped = _sorted_slots(plan, num_experts, C)
    token_GS = _compose(plan.token_GR, row_GS)
    rows = gather_rows(x_GMD, token_GS, _choices(plan, slot_GR))
    return Packed(
      rows.reshape(G, num_experts, C, D), None, slot_GR, row_GS, dropped
    )

  def unpack(self, out: Array, plan: RoutingPlan, packed: Packed) -> Array:
    """[G, E, C, D] outputs to [G, M, D]."""
    G, E, C, D = out.shape
    return combine(out.reshape(G, E * C, D), plan, packed)


@dataclasses.dataclass(frozen=True)
class Einsum:
  """Fixed capacity by one-hot products: slow, obvious, the reference.

  Attributes:
    capacity_factor: slots per expert over an even share.
  """

  capacity_factor: float = 1.25
  is_dropless = False

  def _mask(self, plan: RoutingPlan, M: int, E: int, C: int) -> Array:
    """float32 [G, R, E, C], 1 where a row has a slot."""
    valid_GR1 = plan.valid_GR[..., None].astype(jnp.float32)
    chosen_GRE = jax.nn.one_hot(plan.expert_GR, E) * valid_GR1
    rank_GRE = jnp.cumsum(chosen_GRE, axis=1) - chosen_GRE
    rank_GR = jnp.sum(rank_GRE * chosen_GRE, axis=-1).astype(jnp.int32)
    # one_hot is zero for ranks beyond the capacity.
    return chosen_GRE[..., None] * jax.nn.one_hot(rank_GR, C)[:, :, None]

  def pack(
    self, x_GMD: Array, plan: RoutingPlan, num_experts: int, shards: int = 1
  ) -> Packed:
    """[G, E, C, D] rows; later rows of a full expert are dropped."""
    G, M, _ = x_GMD.shape
    A, total = plan.rows_GMA.shape[-1], num_experts * shards
    C = capacity(M, A, total, self.capacity_factor)
    mask_GREC = self._mask(plan, M, num_experts, C)
    token_GRM = jax.nn.one_hot(plan.token_GR, M)
    rows_GECD = jnp.einsum(
      'GREC,GRM,GMD->GECD', mask_GREC, token_GRM, x_GMD.astype(jnp.float32)
    ).astype(x_GMD.dtype)
    dropped = plan.valid_GR.astype(jnp.float32).sum() - mask_GREC.sum()
    # unpack builds its own mask; slots are of no use here.
    none_GR = jnp.full_like(plan.expert_GR, -1)
    return Packed(rows_GECD, None, none_GR, none_GR, dropped)

  def unpack(self, out: Array, plan: RoutingPlan, packed: Packed) -> Array:
    """[G, E, C, D] outputs to [G, M, D]."""
    del packed
    _, E, C, _ = out.shape
    M = plan.rows_GMA.shape[1]
    mask_GREC = self._mask(plan, M, E, C) * plan.weight_GR[..., None, None]
    token_GRM = jax.nn.one_hot(plan.token_GR, M)
    return jnp.einsum(
      'GRM,GREC,GECD->GMD', token_GRM, mask_GREC, out.astype(jnp.float32)
    ).astype(out.dtype)


@dataclasses.dataclass(frozen=True)
class Dropless:
  """No capacity: all rows of all groups, sorted by expert, none ever dropped.

  Attributes:
    block: rows are padded to this multiple per expert, so that a block of rows
      has one expert; the product of a block is then an ordinary one.
  """

  block: int = 64
  is_dropless = True

  def pack(
    self, x_GMD: Array, plan: RoutingPlan, num_experts: int, shards: int = 1
  ) -> Packed:
    """[R', D] rows sorted by expert, the run of each padded to whole blocks."""
    del shards  # there is no capacity
    G, M, D = x_GMD.shape
    R, E, Q = plan.expert_GR.shape[1], num_experts, self.block
    key_R = jnp.where(plan.valid_GR, plan.expert_GR, E).reshape(G * R)
    order_R = jnp.argsort(key_R, stable=True).astype(jnp.int32)
    sorted_R = key_R[order_R]
    bounds_E = jnp.arange(E + 1, dtype=jnp.int32)
    start_E = jnp.searchsorted(sorted_R, bounds_E).astype(jnp.int32)
    padded_E = -(-jnp.diff(start_E) // Q) * Q
    end_E = jnp.cumsum(padded_E)
    first_E = jnp.concatenate([end_E - padded_E, end_E[-1:]])
    rank_R = jnp.arange(G * R, dtype=jnp.int32) - start_E[sorted_R]
    slots = -(-G * R // Q) * Q + E * Q  # whole blocks, one partial per expert
    slot_sorted_R = jnp.where(sorted_R < E, first_E[sorted_R] + rank_R, -1)
    slot_R = jnp.zeros_like(order_R).at[order_R].set(slot_sorted_R)
    # A slot's row: negative indices would wrap, so absent rows aim past it all.
    target_R = jnp.where(slot_R >= 0, slot_R, slots)
    row_S = jnp.full((slots,), -1, jnp.int32)
    row_S = row_S.at[target_R].set(
      jnp.arange(G * R, dtype=jnp.int32), mode='drop'
    )
    one = self._one_group(plan, M)
    token_1S = _compose(one.token_GR, row_S[None])
    rows_1SD = gather_rows(
      x_GMD.reshape(1, G * M, D), token_1S, _choices(one, slot_R[None])
    )
    dropped = jnp.zeros((), jnp.float32)
    return Packed(rows_1SD[0], padded_E, slot_R[None], row_S[None], dropped)

  def unpack(self, out: Array, plan: RoutingPlan, packed: Packed) -> Array:
    """[R', D] outputs to [G, M, D]."""
    G, M, _ = plan.rows_GMA.shape
    y_1ND = combine(out[None], self._one_group(plan, M), packed)
    return y_1ND.reshape(G, M, out.shape[-1])

  def _one_group(self, plan: RoutingPlan, M: int) -> RoutingPlan:
    """The plan with its groups joined into one of G * M tokens."""
    G, R = plan.expert_GR.shape
    A = plan.rows_GMA.shape[-1]
    groups_G1 = jnp.arange(G, dtype=jnp.int32)[:, None]
    return plan._replace(
      token_GR=(plan.token_GR + groups_G1 * M).reshape(1, G * R),
      expert_GR=plan.expert_GR.reshape(1, G * R),
      weight_GR=plan.weight_GR.reshape(1, G * R),
      valid_GR=plan.valid_GR.reshape(1, G * R),
      rows_GMA=(plan.rows_GMA + groups_G1[..., None] * R).reshape(1, G * M, A),
    )


def grouped_matmul(
  x_RD: Array, w_EDF: Array, expert_rows_E: Array, block: int
) -> Array:
  """Product of each run of rows with its expert's matrix.

  On a TPU `jax.lax.ragged_dot`, which its compiler turns into a grouped kernel;
  elsewhere products of whole blocks, since there `ragged_dot` multiplies every
  row by every expert. Chosen by the platform that the program is compiled for.

  Args:
    x_RD: rows sorted by expert.
    w_EDF: matrices of the experts.
    expert_rows_E: int32 rows of each expert, multiples of `block`; rows behind
      the last run give rows of no meaning.
    block: see `Dropless`.

  Returns:
    [R, F].
  """

  def blocks(x_RD, w_EDF, expert_rows_E):
    E, D, F = w_EDF.shape
    num_blocks = x_RD.shape[0] // block
    end_E = jnp.cumsum(expert_rows_E) // block
    expert_B = jnp.searchsorted(
      end_E, jnp.arange(num_blocks, dtype=end_E.dtype), side='right'
    )
    w_BDF = w_EDF[jnp.minimum(expert_B, E - 1)]
    x_BQD = x_RD.reshape(num_blocks, block, D)
    return jnp.einsum('BQD,BDF->BQF', x_BQD, w_BDF).reshape(-1, F)

  def ragged(x_RD, w_EDF, expert_rows_E):
    return jax.lax.ragged_dot(x_RD, w_EDF, expert_rows_E)

  return jax.lax.platform_dependent(
    x_RD, w_EDF, expert_rows_E, tpu=ragged, default=blocks
  )
