"""How rows travel between devices that hold tokens and those that hold experts.

An exchange runs inside `shard_map`. `send` is given tokens, their plan and a
dispatch, and brings each row to the device of its expert; `collect` brings the
experts' outputs back and adds them up by token. What `send` counted:

  dropped           rows that no expert sees, wherever they were lost
  dropped_receiver  of these, rows lost for want of room where they arrived
  bytes_exchanged   bytes that one device sends to others, there and back: rows
                    and all that goes with them, as TPUs send them
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from moe import bounds
from moe.routing import slots, transport, visits
from moe.routing.dispatch import Dispatch, Dropless, Permuted
from moe.routing.plan import RoutingPlan
from moe.types import Array, Pair

# Names by which a remat policy may keep what has travelled: rows that arrived
# at their experts, and outputs that came back.
ARRIVED, RETURNED = 'moe_packed', 'moe_out'


class Experts(NamedTuple):
  """Where the experts of a layer are.

  Attributes:
    num: E, in all.
    active: rows per token when experts are used evenly.
    axes: mesh axes that divide the experts; empty if all are here.
    devices: devices that the experts are divided over.
  """

  num: int
  active: float
  axes: tuple[str, ...] = ()
  devices: int = 1


class Arrived(NamedTuple):
  """Rows at the experts held here, and what brings their outputs back.

  Attributes:
    rows: [E', S, D] for E' experts held here, or [R', D] sorted by expert.
    weight: float32 weight of each row; the experts apply it.
    count_E: int32 rows of each expert held here; None if each has S.
    permuted: the rows as the dispatch ordered them last.
    dispatch: the dispatch that ordered them.
    experts: where the experts are.
    traffic: what the exchange counted, by name.
    visit: how tokens came here, under `Ragged`.
  """

  rows: Array
  weight: Array
  count_E: Array | None
  permuted: Permuted
  dispatch: Dispatch
  experts: Experts
  traffic: dict[str, Pair]
  visit: visits.Visit | None = None


def _traffic(
  plan: RoutingPlan,
  dropped: Array,
  sent: Array | float,
  dropped_receiver: Array | float = 0.0,
) -> dict[str, Pair]:
  """What an exchange counts, for the rows that this device asked for."""
  # A choice that the router took out itself was asked for and is not served.
  asked = jnp.sum(slots.asked_rows(plan), dtype=jnp.float32) + plan.dropped
  return {
    'dropped': (dropped + plan.dropped, asked),
    'dropped_receiver': (jnp.float32(dropped_receiver), asked),
    'bytes_exchanged': (jnp.float32(sent), jnp.float32(1.0)),
  }


@dataclasses.dataclass(frozen=True)
class AllToAll:
  """Each device sends every expert its rows; capacity fixes the shape.

  Nothing travels on an expert axis of one device.
  """

  def send(
    self,
    x_GMD: Array,
    plan: RoutingPlan,
    dispatch: Dispatch,
    experts: Experts,
  ) -> Arrived:
    """Rows of all senders at the experts held here.

    Raises:
      ValueError: if rows must travel and their number is not fixed.
    """
    if experts.axes and dispatch.is_dropless:
      raise ValueError(
        'exchange.AllToAll needs a dispatch with capacity where experts are'
        ' divided, got dispatch.Dropless: use dispatch.Sorted, or'
        ' exchange.Ragged or exchange.AllGather.'
      )
    E, n = experts.num, experts.devices
    G, M, _ = x_GMD.shape
    C = dispatch.room(M, experts.active, E)
    permuted = dispatch.permute(x_GMD, plan, E, C)
    rows, weight, count_E, *_ = permuted
    sent = 0.0
    if experts.axes:
      received = []
      for a_ESD in (rows, weight):
        a_nEGCD = a_ESD.reshape(n, E // n, G, C, *a_ESD.shape[2:])
        a_nEGCD = jax.lax.all_to_all(a_nEGCD, experts.axes, 0, 0)
        # By expert held here, then by sender.
        a_EnGCD = checkpoint_name(a_nEGCD.swapaxes(0, 1), ARRIVED)
        received.append(a_EnGCD.reshape(E // n, n * G * C, *a_ESD.shape[2:]))
      rows, weight = received
      # Outputs travel back as rows came, without their weights.
      sent = (2 * permuted.rows.nbytes + permuted.weight.nbytes) * (n - 1) / n
    traffic = _traffic(plan, permuted.dropped, sent)
    return Arrived(rows, weight, count_E, permuted, dispatch, experts, traffic)

  def collect(self, out: Array, arrived: Arrived) -> Array:
    """Outputs of the rows that arrived to [G, M, D] at the tokens' devices."""
    experts = arrived.experts
    if experts.axes:
      E, n, D = experts.num, experts.devices, out.shape[-1]
      out_EnSD = out.reshape(E // n, n, -1, D)
      out_nESD = jax.lax.all_to_all(out_EnSD.swapaxes(0, 1), experts.axes, 0, 0)
      out = checkpoint_name(out_nESD, RETURNED).reshape(E, -1, D)
    return arrived.dispatch.unpermute(out, arrived.permuted)


@dataclasses.dataclass(frozen=True)
class Ragged:
  """A token travels once to each device that holds one of its experts.

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
      hidden layers: see `experts.apply`.
  """

  buffer_factor: float = 2.0

  def __post_init__(self):
    if self.buffer_factor:
      meaning = '1 is an even share of the rows, 0 room for the worst case'
      bounds.within('buffer_factor', self.buffer_factor, meaning, least=1)

  def send(
    self,
    x_GMD: Array,
    plan: RoutingPlan,
    dispatch: Dispatch,
    experts: Experts,
  ) -> Arrived:
    """Tokens of all senders at the devices of their experts, as rows."""
    if not experts.axes:
      return AllToAll().send(x_GMD, plan, dispatch, experts)
    _check_spares(plan, dispatch)
    G, M, D = x_GMD.shape
    N, n, axes = G * M, experts.devices, experts.axes
    here = experts.num // n
    choices = visits.choices_by_token(plan)
    A = choices.expert_1NA.shape[-1]
    plan_of_visits = visits.plan_of_visits(choices, here)
    # Rows by device: those are the "experts" of this first dispatch.
    leaving = Dropless().permute(
      x_GMD.reshape(1, N, D), plan_of_visits, n, N * min(A, n)
    )
    notes = visits.make_notes(choices, plan_of_visits, leaving, here)
    counts_nn = jax.lax.all_gather(leaving.count_E, axes)
    me = jax.lax.axis_index(axes)
    room = self._arrivals(N, experts)
    pieces = transport.plan_pieces(counts_nn, room, me)
    rows_SD = transport.move(leaving.rows, pieces, room, axes, N)
    rows_SD = checkpoint_name(rows_SD, ARRIVED)
    notes = transport.move(notes, pieces, room, axes, N)
    plan_here = visits.plan_of_notes(notes, pieces)
    permuted = dispatch.permute(
      rows_SD[None], plan_here, here, self._rows(dispatch, N, A, experts)
    )
    asked = jnp.sum(choices.valid_1NA, dtype=jnp.float32)
    came = jnp.sum(plan_here.valid_GR, dtype=jnp.float32)
    # Summed over the devices of the axis this is right; here alone it is not,
    # since `came` counts what others sent.
    lost = asked - came + permuted.dropped
    others = lambda count_n: jnp.float32(jnp.sum(count_n) - count_n[me])
    row, note = D * x_GMD.dtype.itemsize, 2 * A * notes.dtype.itemsize
    sent = others(pieces.send_count) * (row + note)
    sent += others(pieces.recv_count) * row
    sent += (n - 1) * float(counts_nn[0].nbytes)
    traffic = _traffic(plan, lost, sent, lost)
    visit = visits.Visit(leaving, pieces, (G, M))
    rows, weight, count_E, *_ = permuted
    return Arrived(
      rows, weight, count_E, permuted, dispatch, experts, traffic, visit
    )

  def collect(self, out: Array, arrived: Arrived) -> Array:
    """Outputs of the rows that arrived to [G, M, D] at the tokens' devices."""
    if not arrived.experts.axes:
      return AllToAll().collect(out, arrived)
    leaving, pieces, (G, M) = arrived.visit
    y_1SD = arrived.dispatch.unpermute(out, arrived.permuted)
    back_SD = transport.move(
      y_1SD[0],
      pieces.reversed(),
      leaving.rows.shape[0],
      arrived.experts.axes,
      G * M,
    )
    back_SD = checkpoint_name(back_SD, RETURNED)
    y_1ND = Dropless().unpermute(back_SD, leaving)
    return y_1ND.reshape(G, M, -1)

  def _arrivals(self, N: int, experts: Experts) -> int:
    """Rows, one per visiting token, that a device has room for."""
    n = experts.devices
    if not self.buffer_factor:
      return n * N
    even = N * min(experts.active, n)
    # n more, by which `plan_pieces` stays under the room when it cuts.
    return min(n * N, math.ceil(self.buffer_factor * even) + n)

  def _rows(self, dispatch: Dispatch, N: int, A: int, experts: Experts) -> int:
    """Room for the rows of the experts here; see the dispatch."""
    n = experts.devices
    if not dispatch.is_dropless:
      return dispatch.room(n * N, experts.active, experts.num)
    most = self._arrivals(N, experts) * min(A, experts.num // n)
    if not self.buffer_factor:
      return most
    return min(most, math.ceil(self.buffer_factor * N * experts.active))


def _check_spares(plan: RoutingPlan, dispatch: Dispatch) -> None:
  if plan.num_spare and not dispatch.is_dropless:
    raise ValueError(
      f'num_spare={plan.num_spare} needs exchange.AllToAll where experts are'
      ' divided: whether a choice that stands by is wanted is known only where'
      ' all experts of a token are seen; use it, or set num_spare = 0.'
    )


def _permute_held(
  x_GMD: Array, plan: RoutingPlan, dispatch: Dispatch, experts: Experts
) -> Permuted:
  """Rows for the experts held here, of tokens that are all here already.

  Rows of experts held elsewhere are taken out of the plan.
  """
  here = experts.num // experts.devices
  first = jax.lax.axis_index(experts.axes).astype(jnp.int32) * here
  mine_GR = (plan.expert_GR >= first) & (plan.expert_GR < first + here)
  mine = plan._replace(
    expert_GR=jnp.where(mine_GR, plan.expert_GR - first, 0),
    valid_GR=plan.valid_GR & mine_GR,
  )
  G, M, A = plan.rows_GMA.shape
  # Room for every row that these tokens can have for the experts here.
  room = G * M * min(A, here)
  if not dispatch.is_dropless:
    room = dispatch.room(M, experts.active, experts.num)
  return dispatch.permute(x_GMD, mine, here, room)


@dataclasses.dataclass(frozen=True)
class AllGather:
  """Every device sees the tokens of its expert axis and runs its own experts.

  Outputs are summed back by reduce-scatter. Costs the bytes of all tokens,
  whatever the routing, so it suits dropless evaluation and small axes.
  """

  def send(
    self,
    x_GMD: Array,
    plan: RoutingPlan,
    dispatch: Dispatch,
    experts: Experts,
  ) -> Arrived:
    """Rows of all tokens of the axis for the experts held here."""
    if not experts.axes:
      return AllToAll().send(x_GMD, plan, dispatch, experts)
    _check_spares(plan, dispatch)
    gather = lambda a: jax.lax.all_gather(a, experts.axes, axis=0, tiled=True)
    names = ('token_GR', 'expert_GR', 'weight_GR', 'valid_GR', 'rows_GMA')
    held = {name: getattr(plan, name) for name in names}
    everyone = plan._replace(**jax.tree.map(gather, held))
    permuted = _permute_held(gather(x_GMD), everyone, dispatch, experts)
    # Tokens come and outputs go back, both of all other devices.
    each = 2 * x_GMD.nbytes + sum(a.nbytes for a in held.values())
    sent = (experts.devices - 1) * float(each)
    # Each device counts the rows of its own experts, for all senders.
    traffic = _traffic(plan, permuted.dropped, sent)
    rows, weight, count_E, *_ = permuted
    return Arrived(rows, weight, count_E, permuted, dispatch, experts, traffic)

  def collect(self, out: Array, arrived: Arrived) -> Array:
    """Outputs of the rows that arrived to [G, M, D] at the tokens' devices."""
    axes = arrived.experts.axes
    if not axes:
      return AllToAll().collect(out, arrived)
    y_GMD = arrived.dispatch.unpermute(out, arrived.permuted)
    return jax.lax.psum_scatter(y_GMD, axes, scatter_dimension=0, tiled=True)


@dataclasses.dataclass(frozen=True)
class Replicated:
  """Every device of the expert axis holds the same tokens and sums outputs.

  For batches too small to divide, as in decoding; a layer refuses it in
  training where the axis divides the batch. Its counts are of the whole axis,
  the same on each of its devices.
  """

  def send(
    self,
    x_GMD: Array,
    plan: RoutingPlan,
    dispatch: Dispatch,
    experts: Experts,
  ) -> Arrived:
    """Rows for the experts held here; nothing travels yet."""
    if not experts.axes:
      return AllToAll().send(x_GMD, plan, dispatch, experts)
    _check_spares(plan, dispatch)
    permuted = _permute_held(x_GMD, plan, dispatch, experts)
    dropped = jax.lax.psum(permuted.dropped, experts.axes)
    n = experts.devices
    sent = 2.0 * (n - 1) / n * float(x_GMD.nbytes)
    traffic = _traffic(plan, dropped, sent)
    rows, weight, count_E, *_ = permuted
    return Arrived(rows, weight, count_E, permuted, dispatch, experts, traffic)

  def collect(self, out: Array, arrived: Arrived) -> Array:
    """Outputs of the rows that arrived to [G, M, D], on every device."""
    axes = arrived.experts.axes
    if not axes:
      return AllToAll().collect(out, arrived)
    y_GMD = arrived.dispatch.unpermute(out, arrived.permuted)
    return jax.lax.psum(y_GMD, axes)


Exchange = AllToAll | AllGather | Ragged | Replicated
