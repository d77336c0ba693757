"""How rows travel between devices that hold tokens and those that hold experts.

An exchange runs inside `shard_map`. It is given tokens, their plan, a dispatch
and the experts held here, and gives the tokens' outputs with what it counted:

  dropped           rows that no expert saw, wherever they were lost
  dropped_receiver  of these, rows lost for want of room where they arrived
  bytes_exchanged   bytes that one device sends to others, there and back: rows
                    and all that goes with them, as TPUs send them
"""

import dataclasses
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from moe.routing import slots, transport
from moe.routing.dispatch import Dropless, Packed
from moe.routing.plan import RoutingPlan, rows_of_choices
from moe.routing.rows import by_token, spread_rows
from moe.types import Array, Pair

# Names by which a remat policy may keep what has travelled: rows that arrived
# at their experts, and outputs that came back.
ARRIVED, RETURNED = 'moe_packed', 'moe_out'


class Experts(NamedTuple):
  """The experts of a layer, as one device sees them.

  Attributes:
    num: E, in all.
    active: rows per token when experts are used evenly.
    axes: mesh axes that divide the experts; empty if all are here.
    apply: (rows, weights, rows of each expert or None) -> weighted outputs, of
      the experts held here; rows [E, S, D] and weights [E, S], or [R, D] and
      [R] sorted by expert with counts.
  """

  num: int
  active: float
  axes: tuple[str, ...]
  apply: Callable[[Array, Array, Array | None], Array]

  @property
  def devices(self) -> int:
    """Devices that the experts are divided over."""
    return jax.lax.axis_size(self.axes) if self.axes else 1


def _zero() -> Array:
  return jnp.zeros((), jnp.float32)


def _bytes(*arrays: Array) -> float:
  return float(sum(a.size * a.dtype.itemsize for a in arrays))


def _traffic(
  plan: RoutingPlan, dropped: Array, received: Array, sent: Array | float
) -> dict[str, Pair]:
  # A choice that the router took out itself was asked for and is not served.
  rows = jnp.sum(slots.asked_rows(plan), dtype=jnp.float32) + plan.dropped
  return {
    'dropped': (dropped + plan.dropped, rows),
    'dropped_receiver': (received, rows),
    'bytes_exchanged': (jnp.float32(sent), jnp.float32(1.0)),
  }


def _through(packed: Packed, experts: Experts) -> Array:
  """Packed rows through the experts held here."""
  if packed.expert_rows_E is not None:
    return experts.apply(packed.rows, packed.weight, packed.expert_rows_E)
  G, E, C, D = packed.rows.shape
  rows_ESD = packed.rows.swapaxes(0, 1).reshape(E, G * C, D)
  weight_ES = packed.weight.swapaxes(0, 1).reshape(E, G * C)
  out_ESD = experts.apply(rows_ESD, weight_ES, None)
  return out_ESD.reshape(E, G, C, D).swapaxes(0, 1)


def _here(
  x_GMD: Array,
  plan: RoutingPlan,
  dispatch,
  experts: Experts,
  here: int,
  room: int | None,
) -> tuple[Array, Array]:
  """Tokens of this device through the experts held here: (y, rows dropped)."""
  packed = dispatch.pack(x_GMD, plan, here, room)
  return dispatch.unpack(
    _through(packed, experts), plan, packed
  ), packed.dropped


def _all_here(x_GMD, plan, dispatch, experts):
  """The exchange of experts that are not divided: nothing travels."""
  room = dispatch.room(x_GMD.shape[1], experts.active, experts.num)
  y_GMD, dropped = _here(x_GMD, plan, dispatch, experts, experts.num, room)
  return y_GMD, _traffic(plan, dropped, _zero(), 0.0)


def _check_spares(plan: RoutingPlan, dispatch) -> None:
  if plan.num_spare and not dispatch.is_dropless:
    raise ValueError(
      f'num_spare={plan.num_spare} needs exchange.AllToAll where experts are'
      ' divided: whether a choice that stands by is wanted is known only where'
      ' all experts of a token are seen; use it, or set num_spare = 0.'
    )


def _mine(plan: RoutingPlan, experts: Experts) -> RoutingPlan:
  """The plan with the rows of experts held elsewhere taken out."""
  here = experts.num // experts.devices
  first = jax.lax.axis_index(experts.axes).astype(jnp.int32) * here
  mine_GR = (plan.expert_GR >= first) & (plan.expert_GR < first + here)
  return plan._replace(
    expert_GR=jnp.where(mine_GR, plan.expert_GR - first, 0),
    valid_GR=plan.valid_GR & mine_GR,
  )


def _room_for_all(x_GMD, plan, dispatch, experts: Experts) -> int | None:
  """Room for every row that these tokens can have for the experts here."""
  G, M, A = plan.rows_GMA.shape
  here = experts.num // experts.devices
  if dispatch.is_dropless:
    return G * M * min(A, here)
  return dispatch.room(M, experts.active, experts.num)


@dataclasses.dataclass(frozen=True)
class AllToAll:
  """Each device sends every expert its rows; capacity fixes the shape.

  On an expert axis of one device nothing travels.
  """

  def apply(
    self, x_GMD: Array, plan: RoutingPlan, dispatch, experts: Experts
  ) -> tuple[Array, dict[str, Pair]]:
    """Tokens through their experts: ([G, M, D], traffic).

    Raises:
      ValueError: if rows must travel and their number is not fixed.
    """
    if not experts.axes:
      return _all_here(x_GMD, plan, dispatch, experts)
    if dispatch.is_dropless:
      raise ValueError(
        'exchange.AllToAll needs a dispatch with capacity where experts are'
        ' divided, got dispatch.Dropless: use dispatch.Sorted, or'
        ' exchange.Ragged or exchange.AllGather.'
      )
    room = dispatch.room(x_GMD.shape[1], experts.active, experts.num)
    packed = dispatch.pack(x_GMD, plan, experts.num, room)
    G, E, C, D = packed.rows.shape
    n = experts.devices

    def received(a_GEC):  # [E / n, n, G, C, ...]: by expert here, then sender
      a_EGC = a_GEC.swapaxes(0, 1).reshape(n, E // n, G, *a_GEC.shape[2:])
      a_nEGC = jax.lax.all_to_all(a_EGC, experts.axes, 0, 0)
      return checkpoint_name(a_nEGC.swapaxes(0, 1), ARRIVED)

    rows_ESD = received(packed.rows).reshape(E // n, n * G * C, D)
    weight_ES = received(packed.weight).reshape(E // n, n * G * C)
    out = experts.apply(rows_ESD, weight_ES, None)
    out = out.reshape(E // n, n, G * C, D)
    out = jax.lax.all_to_all(out.swapaxes(0, 1), experts.axes, 0, 0)
    out = checkpoint_name(out, RETURNED)
    out_GECD = out.reshape(E, G, C, D).swapaxes(0, 1)
    sent = _bytes(packed.rows, packed.weight, out_GECD) * (n - 1) / n
    return dispatch.unpack(out_GECD, plan, packed), _traffic(
      plan, packed.dropped, _zero(), sent
    )


@dataclasses.dataclass(frozen=True)
class Ragged:
  """A token travels once to each device that holds an expert of its.

  There its row is copied to each of its experts, their weighted outputs are
  added, and one row travels back: k rows become at most min(k, devices). With
  `dispatch.Sorted` the capacity of an expert is pooled over all tokens of the
  expert axis; with `dispatch.Dropless` nothing but the buffer bounds it. Of
  equal choices the receiver takes one of each sender in turn, so that no device
  of the axis comes before the others.

  Attributes:
    buffer_factor: room of a device for arriving rows, over an even share
      (tokens x min(k, devices)); what does not fit is dropped and counted.
      0 is room for the worst case, every token of the expert axis: with
      `dispatch.Dropless` nothing can be dropped then. It costs rows, not
      hidden layers: see `experts.runs`.
  """

  buffer_factor: float = 2.0

  def __post_init__(self):
    if self.buffer_factor and self.buffer_factor < 1:
      raise ValueError(
        f'exchange.Ragged.buffer_factor={self.buffer_factor} must be at least'
        ' 1, an even share of the rows, or 0 for room for the worst case.'
      )

  def apply(
    self, x_GMD: Array, plan: RoutingPlan, dispatch, experts: Experts
  ) -> tuple[Array, dict[str, Pair]]:
    """Tokens through their experts: ([G, M, D], traffic)."""
    if not experts.axes:
      return _all_here(x_GMD, plan, dispatch, experts)
    _check_spares(plan, dispatch)
    G, M, D = x_GMD.shape
    N, n = G * M, experts.devices
    x_1ND = x_GMD.reshape(1, N, D)
    expert_1NA, weight_1NA, valid_1NA = _by_token(plan)
    A = expert_1NA.shape[-1]
    visits = _visits(expert_1NA // (experts.num // n), valid_1NA)
    # Rows by device: those are the "experts" of this first dispatch.
    first = Dropless()
    packed = first.pack(x_1ND, visits, n, N * min(A, n))
    notes = _notes(expert_1NA, weight_1NA, valid_1NA, visits, packed, experts)
    counts_nn = jax.lax.all_gather(packed.expert_rows_E, experts.axes)
    room = self._arrivals(N, experts)
    me = jax.lax.axis_index(experts.axes)
    pieces = transport.plan_pieces(counts_nn, room, me)
    arrived = transport.move(packed.rows, pieces, room, experts.axes, N)
    arrived = checkpoint_name(arrived, ARRIVED)
    notes = transport.move(notes, pieces, room, experts.axes, N)
    here = _plan_of_notes(notes, pieces)
    y_1SD, over = _here(
      arrived[None],
      here,
      dispatch,
      experts,
      experts.num // n,
      self._rows(dispatch, N, A, experts),
    )
    back = transport.move(
      y_1SD[0], pieces.reversed(), packed.rows.shape[0], experts.axes, N
    )
    back = checkpoint_name(back, RETURNED)
    y_1ND = first.unpack(back, visits, packed)
    asked = jnp.sum(valid_1NA, dtype=jnp.float32)
    came = jnp.sum(here.valid_GR, dtype=jnp.float32)
    # Summed over the devices of the axis this is right; here alone it is not,
    # since `came` counts what others sent.
    lost = asked - came + over
    to_others = lambda count_n: (jnp.sum(count_n) - count_n[me]).astype(
      jnp.float32
    )
    row, note = D * x_GMD.dtype.itemsize, 2 * A * notes.dtype.itemsize
    sent = to_others(pieces.send_count) * (row + note)
    sent += to_others(pieces.recv_count) * row + (n - 1) * _bytes(counts_nn[0])
    return y_1ND.reshape(G, M, D), _traffic(plan, lost, lost, sent)

  def _arrivals(self, N: int, experts: Experts) -> int:
    """Rows, one per visiting token, that a device has room for."""
    n = experts.devices
    if not self.buffer_factor:
      return n * N
    even = N * min(experts.active, n)
    # n more, by which `plan_pieces` stays under the room when it cuts.
    return min(n * N, math.ceil(self.buffer_factor * even) + n)

  def _rows(self, dispatch, N: int, A: int, experts: Experts) -> int:
    """Room for the rows of the experts here; see `pack` of the dispatch."""
    n = experts.devices
    if not dispatch.is_dropless:
      return dispatch.room(n * N, experts.active, experts.num)
    most = self._arrivals(N, experts) * min(A, experts.num // n)
    if not self.buffer_factor:
      return most
    return min(most, math.ceil(self.buffer_factor * N * experts.active))


def _by_token(plan: RoutingPlan) -> tuple[Array, Array, Array]:
  """(experts, weights, whether asked for), each [1, G * M, A], no spares."""
  G, M, A = plan.rows_GMA.shape
  A -= plan.num_spare
  rows_GMA = plan.rows_GMA[..., :A]
  each = lambda a_GR, absent: by_token(a_GR, rows_GMA, absent).reshape(
    1, G * M, A
  )
  return (
    each(plan.expert_GR, 0),
    each(plan.weight_GR, 0.0),
    each(plan.valid_GR, False),
  )


def _visits(device_1NA: Array, valid_1NA: Array) -> RoutingPlan:
  """Plan of tokens that visit devices, each device once."""
  A = device_1NA.shape[-1]
  same_1NAA = device_1NA[..., :, None] == device_1NA[..., None, :]
  earlier_AA = jnp.tri(A, k=-1, dtype=bool)
  seen_1NA = jnp.any(same_1NAA & valid_1NA[..., None, :] & earlier_AA, axis=-1)
  ones_1NA = jnp.ones(device_1NA.shape, jnp.float32)
  rows = rows_of_choices(device_1NA, ones_1NA, valid_1NA & ~seen_1NA)
  return RoutingPlan(*rows, {}, {})


def _notes(
  expert_1NA: Array,
  weight_1NA: Array,
  valid_1NA: Array,
  visits: RoutingPlan,
  packed: Packed,
  experts: Experts,
) -> Array:
  """What travels with each row: weights, and 1 + expert there or 0; [S, 2A].

  Float32 holds expert numbers exactly, and lets weights have gradients.
  """
  here = experts.num // experts.devices
  row_1S = packed.row_GS
  token_1S = jnp.where(row_1S >= 0, row_1S % expert_1NA.shape[1], -1)
  slot_1NA = by_token(packed.slot_GR, visits.rows_GMA, -1)
  notes = lambda a_1NA: spread_rows(a_1NA, token_1S, slot_1NA)[0]
  device_S = jnp.take_along_axis(
    visits.expert_GR, jnp.maximum(row_1S, 0), axis=1
  )[0]
  number_1NA = jnp.where(valid_1NA, expert_1NA + 1, 0).astype(jnp.float32)
  first_S1 = (device_S * here)[:, None].astype(jnp.float32)
  number_SA = jax.lax.stop_gradient(notes(number_1NA)) - first_S1
  is_there = (number_SA > 0) & (number_SA <= here)
  return jnp.concatenate(
    [notes(weight_1NA), jnp.where(is_there, number_SA, 0.0)], axis=1
  )


def _turns(pieces: transport.Pieces, S: int) -> Array:
  """int32 [S]: the place of each row that arrived if senders take turns."""
  row_S = jnp.arange(S, dtype=jnp.int32)
  source_S = jnp.searchsorted(pieces.recv_start, row_S, side='right') - 1
  place_S1 = (row_S - pieces.recv_start[source_S])[:, None]
  senders_n = jnp.arange(len(pieces.recv_count), dtype=source_S.dtype)
  # Rows of each sender in the rounds before, and in this one before its turn.
  is_earlier_Sn = (senders_n < source_S[:, None]).astype(jnp.int32)
  before_Sn = jnp.minimum(pieces.recv_count, place_S1 + is_earlier_Sn)
  return jnp.where(
    row_S < pieces.recv_count.sum(), before_Sn.sum(axis=1), row_S
  )


def _plan_of_notes(notes: Array, pieces: transport.Pieces) -> RoutingPlan:
  """The plan of the rows that arrived, one group of them, senders in turn."""
  S, A = notes.shape[0], notes.shape[1] // 2
  turn_1S = _turns(pieces, S)[None]
  row_1S = slots.invert(turn_1S)
  inturn_1SA = spread_rows(notes[None], row_1S, turn_1S[..., None])
  number_1SA = inturn_1SA[..., A:].astype(jnp.int32)
  rows = rows_of_choices(
    jnp.maximum(number_1SA - 1, 0), inturn_1SA[..., :A], number_1SA > 0
  )
  plan = RoutingPlan(*rows, {}, {})
  return plan._replace(
    token_GR=jnp.tile(row_1S, A),
    rows_GMA=jnp.take_along_axis(plan.rows_GMA, turn_1S[..., None], axis=1),
  )


@dataclasses.dataclass(frozen=True)
class AllGather:
  """Every device sees the tokens of its expert axis and runs its own experts.

  Outputs are summed back by reduce-scatter. Costs the bytes of all tokens,
  whatever the routing, so it suits dropless evaluation and small axes.
  """

  def apply(
    self, x_GMD: Array, plan: RoutingPlan, dispatch, experts: Experts
  ) -> tuple[Array, dict[str, Pair]]:
    """Tokens through their experts: ([G, M, D], traffic)."""
    if not experts.axes:
      return _all_here(x_GMD, plan, dispatch, experts)
    _check_spares(plan, dispatch)
    gather = lambda a: jax.lax.all_gather(a, experts.axes, axis=0, tiled=True)
    names = ('token_GR', 'expert_GR', 'weight_GR', 'valid_GR', 'rows_GMA')
    held = {name: getattr(plan, name) for name in names}
    everyone = _mine(plan._replace(**jax.tree.map(gather, held)), experts)
    n = experts.devices
    all_GMD = gather(x_GMD)
    room = _room_for_all(all_GMD, everyone, dispatch, experts)
    y_GMD, dropped = _here(
      all_GMD, everyone, dispatch, experts, experts.num // n, room
    )
    y_GMD = jax.lax.psum_scatter(
      y_GMD, experts.axes, scatter_dimension=0, tiled=True
    )
    # Each device counted the rows of its own experts, for all senders.
    sent = (n - 1) * _bytes(x_GMD, y_GMD, *held.values())
    return y_GMD, _traffic(plan, dropped, _zero(), sent)


@dataclasses.dataclass(frozen=True)
class Replicated:
  """Every device of the expert axis holds the same tokens and sums outputs.

  For batches too small to divide, as in decoding; a layer refuses it in
  training where the axis divides the batch. Its counts are of the whole axis,
  the same on each of its devices.
  """

  def apply(
    self, x_GMD: Array, plan: RoutingPlan, dispatch, experts: Experts
  ) -> tuple[Array, dict[str, Pair]]:
    """Tokens through their experts: ([G, M, D], traffic)."""
    if not experts.axes:
      return _all_here(x_GMD, plan, dispatch, experts)
    _check_spares(plan, dispatch)
    mine = _mine(plan, experts)
    n = experts.devices
    room = _room_for_all(x_GMD, mine, dispatch, experts)
    y_GMD, dropped = _here(
      x_GMD, mine, dispatch, experts, experts.num // n, room
    )
    sent = 2.0 * (n - 1) / n * _bytes(y_GMD)
    return jax.lax.psum(y_GMD, experts.axes), _traffic(
      plan, jax.lax.psum(dropped, experts.axes), _zero(), sent
    )
