"""How rows travel between devices that hold tokens and those that hold experts.

An exchange runs inside `shard_map`. It is given packed rows and a function of
the experts held here, and brings the outputs back to where the rows came from.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from moe.routing.plan import RoutingPlan
from moe.types import Array

# (rows, rows of each expert or None) -> outputs, for the experts held here.
ExpertsFn = Callable[[Array, Array | None], Array]


def _through_experts(rows_GECD: Array, experts_fn: ExpertsFn) -> Array:
  """[G, E, C, D] through experts that see [E, G * C, D]."""
  G, E, C, D = rows_GECD.shape
  rows_ESD = rows_GECD.swapaxes(0, 1).reshape(E, G * C, D)
  out_ESD = experts_fn(rows_ESD, None)
  return out_ESD.reshape(E, G, C, D).swapaxes(0, 1)


def _here(
  x_GMD: Array,
  plan: RoutingPlan,
  dispatch,
  num_experts: int,
  shards: int,
  experts_fn: ExpertsFn,
) -> tuple[Array, Array]:
  """Tokens of this device through the experts held here."""
  packed = dispatch.pack(x_GMD, plan, num_experts, shards)
  if packed.expert_rows_E is None:
    out = _through_experts(packed.rows, experts_fn)
  else:
    out = experts_fn(packed.rows, packed.expert_rows_E)
  return dispatch.unpack(out, plan, packed), packed.dropped


@dataclasses.dataclass(frozen=True)
class AllToAll:
  """Each device sends every expert its rows; capacity fixes the shape.

  On an expert axis of one device nothing travels.
  """

  def apply(
    self,
    x_GMD: Array,
    plan: RoutingPlan,
    dispatch,
    num_experts: int,
    expert_axes: tuple[str, ...],
    experts_fn: ExpertsFn,
  ) -> tuple[Array, Array]:
    """Tokens through their experts: ([G, M, D], rows dropped).

    Raises:
      ValueError: if rows must travel and their number is not fixed.
    """
    if not expert_axes:
      return _here(x_GMD, plan, dispatch, num_experts, 1, experts_fn)
    if dispatch.is_dropless:
      raise ValueError(
        'exchange.AllToAll needs a dispatch with capacity where experts are'
        ' divided, got dispatch.Dropless: use dispatch.Sorted, or'
        ' exchange.AllGather.'
      )
    packed = dispatch.pack(x_GMD, plan, num_experts)
    G, E, C, D = packed.rows.shape
    n = jax.lax.axis_size(expert_axes)
    rows_ESD = packed.rows.swapaxes(0, 1).reshape(n, E // n, G * C, D)
    received = jax.lax.all_to_all(rows_ESD, expert_axes, 0, 0)  # by sender
    rows_ESD = received.swapaxes(0, 1).reshape(E // n, n * G * C, D)
    out = experts_fn(rows_ESD, None).reshape(E // n, n, G * C, D)
    out = jax.lax.all_to_all(out.swapaxes(0, 1), expert_axes, 0, 0)
    out_GECD = out.reshape(E, G, C, D).swapaxes(0, 1)
    return dispatch.unpack(out_GECD, plan, packed), packed.dropped


@dataclasses.dataclass(frozen=True)
class AllGather:
  """Every device sees the tokens of its expert axis and runs its own experts.

  Outputs are summed back by reduce-scatter. Costs the bytes of all tokens,
  whatever the routing, so it suits dropless evaluation and small decode
  batches.
  """

  def apply(
    self,
    x_GMD: Array,
    plan: RoutingPlan,
    dispatch,
    num_experts: int,
    expert_axes: tuple[str, ...],
    experts_fn: ExpertsFn,
  ) -> tuple[Array, Array]:
    """Tokens through their experts: ([G, M, D], rows dropped)."""
    if not expert_axes:
      return _here(x_GMD, plan, dispatch, num_experts, 1, experts_fn)
    gather = lambda a: jax.lax.all_gather(a, expert_axes, axis=0, tiled=True)
    plan = plan._replace(
      token_GR=gather(plan.token_GR),
      expert_GR=gather(plan.expert_GR),
      weight_GR=gather(plan.weight_GR),
      valid_GR=gather(plan.valid_GR),
      rows_GMA=gather(plan.rows_GMA),
    )
    shards = jax.lax.axis_size(expert_axes)
    here = num_experts // shards
    first = jax.lax.axis_index(expert_axes).astype(jnp.int32) * here
    mine_GR = (plan.expert_GR >= first) & (plan.expert_GR < first + here)
    plan = plan._replace(
      expert_GR=jnp.where(mine_GR, plan.expert_GR - first, 0),
      valid_GR=plan.valid_GR & mine_GR,
    )
    y_GMD, dropped = _here(
      gather(x_GMD), plan, dispatch, here, shards, experts_fn
    )
    y_GMD = jax.lax.psum_scatter(
      y_GMD, expert_axes, scatter_dimension=0, tiled=True
    )
    # Each device counted the rows of its own experts, for all senders.
    return y_GMD, dropped
