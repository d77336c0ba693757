"""How rows travel between devices that hold tokens and those that hold experts.

An exchange runs inside `shard_map`. `send` takes tokens, their plan and a
dispatch, and brings each row to the device of its expert. `collect` brings the
experts' outputs back and adds them up by token. `send` also counts:

  dropped           rows that no expert sees, wherever they were lost
  dropped_receiver  those of them that a receiver's full buffer dropped
  bytes_exchanged   bytes that one device sends to others in both directions,
                    with weights and counts; padding is not counted, because
                    TPUs do not send it, and neither is `experts_of_tokens`
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

# Names by which a remat policy keeps arrays: the rows that arrived at their
# experts, and the outputs that came back.
ARRIVED, RETURNED = 'moe_packed', 'moe_out'


class ExpertPlacement(NamedTuple):
  """Where the experts of a layer are.

  Attributes:
    num: E, over all devices.
    active: rows per token when experts are used evenly.
    axes: mesh axes that divide the experts; empty if each device holds all.
    devices: number of devices over which the experts are divided.
  """

  num: int
  active: float
  axes: tuple[str, ...] = ()
  devices: int = 1


class Arrived(NamedTuple):
  """Rows at the experts of this device, and how their outputs travel back.

  Attributes:
    rows: [E', U, D] for the E' experts of this device, or [R', D] sorted by
      expert.
    weight: float32 weight of each row; the experts apply it.
    count_E: int32 rows of each expert of this device; None if each has U.
    permuted: the rows as the last dispatch ordered them.
    dispatch: the dispatch that ordered them.
    experts: where the experts are.
    traffic: the counts of the exchange, by name.
    visit: how tokens came to this device, for `Ragged` alone.
  """

  rows: Array
  weight: Array
  count_E: Array | None
  permuted: Permuted
  dispatch: Dispatch
  experts: ExpertPlacement
  traffic: dict[str, Pair]
  visit: visits.Visit | None = None


def _traffic(
  plan: RoutingPlan,
  dropped: Array,
  sent: Array | float,
  dropped_receiver: Array | float = 0.0,
) -> dict[str, Pair]:
  """The counts of an exchange, over the rows that this device requested."""
  # A choice that the router itself dropped counts as requested and as dropped.
  asked = jnp.sum(slots.requested_rows(plan), dtype=jnp.float32) + plan.dropped
  return {
    'dropped': (dropped + plan.dropped, asked),
    'dropped_receiver': (jnp.float32(dropped_receiver), asked),
    'bytes_exchanged': (jnp.float32(sent), jnp.float32(1.0)),
  }


@dataclasses.dataclass(frozen=True)
class AllToAll:
  """Each device sends every expert its rows; the capacity fixes their number.

  Nothing travels on an expert axis of one device.
  """

  def send(
    self,
    x_GMD: Array,
    plan: RoutingPlan,
    dispatch: Dispatch,
    experts: ExpertPlacement,
  ) -> Arrived:
    """Rows of all senders for the experts of this device.

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
    C = dispatch.capacity(M, experts.active, E)
    permuted = dispatch.permute(x_GMD, plan, E, C)
    rows, weight, count_E, *_ = permuted
    sent = 0.0
    if experts.axes:
      received = []
      for a_EUD in (rows, weight):
        a_nEGCD = a_EUD.reshape(n, E // n, G, C, *a_EUD.shape[2:])
        a_nEGCD = jax.lax.all_to_all(a_nEGCD, experts.axes, 0, 0)
        # The order is by expert of this device, then by sender.
        a_EnGCD = checkpoint_name(a_nEGCD.swapaxes(0, 1), ARRIVED)
        received.append(a_EnGCD.reshape(E // n, n * G * C, *a_EUD.shape[2:]))
      rows, weight = received
      # Outputs travel back like the rows, but without weights.
      sent = (2 * permuted.rows.nbytes + permuted.weight.nbytes) * (n - 1) / n
    traffic = _traffic(plan, permuted.dropped, sent)
    return Arrived(rows, weight, count_E, permuted, dispatch, experts, traffic)

  def collect(self, out: Array, arrived: Arrived) -> Array:
    """Sends the rows' outputs back to the tokens' devices, as [G, M, D]."""
    experts = arrived.experts
    if experts.axes:
      E, n, D = experts.num, experts.devices, out.shape[-1]
      out_EnUD = out.reshape(E // n, n, -1, D)
      out_nEUD = jax.lax.all_to_all(out_EnUD.swapaxes(0, 1), experts.axes, 0, 0)
      out = checkpoint_name(out_nEUD, RETURNED).reshape(E, -1, D)
    return arrived.dispatch.unpermute(out, arrived.permuted)


@dataclasses.dataclass(frozen=True)
class Ragged:
  """A token travels once to each device that holds one of its experts.

  The receiver copies the token to each of its experts and adds up their
  weighted outputs, and one row travels back. So k rows become at most
  min(k, devices). With `dispatch.Sorted` the capacity of an expert is pooled
  over all tokens of the expert axis; with `dispatch.Dropless` only the buffer
  bounds it. Among choices of the same rank the receiver takes one of each
  sender in turn, so it favours no device.

  Attributes:
    buffer_factor: rows of a device's receive buffer, as a multiple of an even
      share (tokens x min(k, devices)). Rows that do not fit are dropped and
      counted. With 0 the buffer has room for every token of the expert axis,
      the worst case; then `dispatch.Dropless` drops nothing. The larger buffer
      costs memory for rows, not for hidden layers: see `experts.apply`.
  """

  buffer_factor: float = 2.0

  def __post_init__(self):
    if self.buffer_factor:
      meaning = '1 is an even share of the rows, 0 the worst case'
      bounds.within('buffer_factor', self.buffer_factor, meaning, least=1)

  def send(
    self,
    x_GMD: Array,
    plan: RoutingPlan,
    dispatch: Dispatch,
    experts: ExpertPlacement,
  ) -> Arrived:
    """Brings tokens to the devices of their experts, as rows by expert."""
    if not experts.axes:
      return AllToAll().send(x_GMD, plan, dispatch, experts)
    _check_spares(plan, dispatch)
    G, M, D = x_GMD.shape
    tokens, n, axes = G * M, experts.devices, experts.axes
    num_local = experts.num // n
    choices = visits.choices_by_token(plan)
    A = choices.expert_1MA.shape[-1]
    plan_of_visits = visits.plan_of_visits(choices, num_local)
    # The first dispatch sorts by device: devices take the place of experts.
    leaving = Dropless().permute(
      x_GMD.reshape(1, tokens, D), plan_of_visits, n, tokens * min(A, n)
    )
    notes = visits.make_notes(choices, plan_of_visits, leaving, num_local)
    counts_nn = jax.lax.all_gather(leaving.count_E, axes)
    me = jax.lax.axis_index(axes)
    buffer_rows = self._arrivals(tokens, experts)
    transfers = transport.make_transfers(counts_nn, buffer_rows, me)
    rows_UD = transport.move(leaving.rows, transfers, buffer_rows, axes, tokens)
    rows_UD = checkpoint_name(rows_UD, ARRIVED)
    notes = transport.move(notes, transfers, buffer_rows, axes, tokens)
    plan_held = visits.plan_of_notes(notes, transfers)
    permuted = dispatch.permute(
      rows_UD[None],
      plan_held,
      num_local,
      self._capacity(dispatch, tokens, A, experts),
    )
    asked = jnp.sum(choices.valid_1MA, dtype=jnp.float32)
    came = jnp.sum(plan_held.valid_GR, dtype=jnp.float32)
    # `came` counts rows that other devices sent, so `lost` is right only as a
    # sum over the devices of the axis.
    lost = asked - came + permuted.dropped
    others = lambda count_n: jnp.float32(jnp.sum(count_n) - count_n[me])
    row, note = D * x_GMD.dtype.itemsize, 2 * A * notes.dtype.itemsize
    sent = others(transfers.send_count) * (row + note)
    sent += others(transfers.recv_count) * row
    sent += (n - 1) * float(counts_nn[0].nbytes)
    traffic = _traffic(plan, lost, sent, lost)
    visit = visits.Visit(leaving, transfers, (G, M))
    rows, weight, count_E, *_ = permuted
    return Arrived(
      rows, weight, count_E, permuted, dispatch, experts, traffic, visit
    )

  def collect(self, out: Array, arrived: Arrived) -> Array:
    """Sends the rows' outputs back to the tokens' devices, as [G, M, D]."""
    if not arrived.experts.axes:
      return AllToAll().collect(out, arrived)
    leaving, transfers, (G, M) = arrived.visit
    y_1UD = arrived.dispatch.unpermute(out, arrived.permuted)
    back_UD = transport.move(
      y_1UD[0],
      transfers.reversed(),
      leaving.rows.shape[0],
      arrived.experts.axes,
      G * M,
    )
    back_UD = checkpoint_name(back_UD, RETURNED)
    y_1MD = Dropless().unpermute(back_UD, leaving)
    return y_1MD.reshape(G, M, -1)

  def _arrivals(self, tokens: int, experts: ExpertPlacement) -> int:
    """Number of rows in a receive buffer; each visiting token takes one."""
    n = experts.devices
    if not self.buffer_factor:
      return n * tokens
    even = tokens * min(experts.active, n)
    # `make_transfers` leaves up to n rows empty when it cuts.
    return min(n * tokens, math.ceil(self.buffer_factor * even) + n)

  def _capacity(
    self, dispatch: Dispatch, tokens: int, A: int, experts: ExpertPlacement
  ) -> int:
    """The `capacity` argument of the dispatch on the receiving device."""
    n = experts.devices
    if not dispatch.is_dropless:
      return dispatch.capacity(n * tokens, experts.active, experts.num)
    most = self._arrivals(tokens, experts) * min(A, experts.num // n)
    if not self.buffer_factor:
      return most
    return min(most, math.ceil(self.buffer_factor * tokens * experts.active))


def _check_spares(plan: RoutingPlan, dispatch: Dispatch) -> None:
  if plan.num_spare and not dispatch.is_dropless:
    raise ValueError(
      f'num_spare={plan.num_spare} needs exchange.AllToAll where experts are'
      ' divided, since only a device that sees all experts of a token knows'
      ' whether its spare choice is needed: use exchange.AllToAll, or set'
      ' num_spare = 0.'
    )


def _permute_held(
  x_GMD: Array, plan: RoutingPlan, dispatch: Dispatch, experts: ExpertPlacement
) -> Permuted:
  """Permutes tokens that this device holds into rows for its own experts.

  Rows for experts of other devices are taken out of the plan.
  """
  num_local = experts.num // experts.devices
  first = jax.lax.axis_index(experts.axes).astype(jnp.int32) * num_local
  mine_GR = (plan.expert_GR >= first) & (plan.expert_GR < first + num_local)
  mine = plan._replace(
    expert_GR=jnp.where(mine_GR, plan.expert_GR - first, 0),
    valid_GR=plan.valid_GR & mine_GR,
  )
  G, M, A = plan.rows_GMA.shape
  # At most this many rows can ask for experts of this device.
  capacity = G * M * min(A, num_local)
  if not dispatch.is_dropless:
    capacity = dispatch.capacity(M, experts.active, experts.num)
  return dispatch.permute(x_GMD, mine, num_local, capacity)


@dataclasses.dataclass(frozen=True)
class AllGather:
  """Every device sees the tokens of its expert axis and runs its own experts.

  A reduce-scatter sums the outputs. The bytes of all tokens travel, whatever
  the routing, so this suits dropless evaluation and small axes.
  """

  def send(
    self,
    x_GMD: Array,
    plan: RoutingPlan,
    dispatch: Dispatch,
    experts: ExpertPlacement,
  ) -> Arrived:
    """Gathers all tokens of the axis, as rows for this device's experts."""
    if not experts.axes:
      return AllToAll().send(x_GMD, plan, dispatch, experts)
    _check_spares(plan, dispatch)
    gather = lambda a: jax.lax.all_gather(a, experts.axes, axis=0, tiled=True)
    names = ('token_GR', 'expert_GR', 'weight_GR', 'valid_GR', 'rows_GMA')
    held = {name: getattr(plan, name) for name in names}
    everyone = plan._replace(**jax.tree.map(gather, held))
    permuted = _permute_held(gather(x_GMD), everyone, dispatch, experts)
    # A device sends its tokens and its plan to all others, and outputs back.
    each = 2 * x_GMD.nbytes + sum(a.nbytes for a in held.values())
    sent = (experts.devices - 1) * float(each)
    # Each device counts the rows of its own experts, for all senders.
    traffic = _traffic(plan, permuted.dropped, sent)
    rows, weight, count_E, *_ = permuted
    return Arrived(rows, weight, count_E, permuted, dispatch, experts, traffic)

  def collect(self, out: Array, arrived: Arrived) -> Array:
    """Sends the rows' outputs back to the tokens' devices, as [G, M, D]."""
    axes = arrived.experts.axes
    if not axes:
      return AllToAll().collect(out, arrived)
    y_GMD = arrived.dispatch.unpermute(out, arrived.permuted)
    return jax.lax.psum_scatter(y_GMD, axes, scatter_dimension=0, tiled=True)


@dataclasses.dataclass(frozen=True)
class Replicated:
  """Every device of the expert axis holds the same tokens and sums outputs.

  This suits batches that are too small to divide, as in decoding. If the axis
  divides the batch, a layer refuses this exchange in training. Each device of
  the axis returns the counts of the whole axis.
  """

  def send(
    self,
    x_GMD: Array,
    plan: RoutingPlan,
    dispatch: Dispatch,
    experts: ExpertPlacement,
  ) -> Arrived:
    """Rows for this device's experts; nothing travels yet."""
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
    """Gives the rows' outputs as [G, M, D] to every device."""
    axes = arrived.experts.axes
    if not axes:
      return AllToAll().collect(out, arrived)
    y_GMD = arrived.dispatch.unpermute(out, arrived.permuted)
    return jax.lax.psum(y_GMD, axes)


Exchange = AllToAll | AllGather | Ragged | Replicated


def experts_of_tokens(exchanger: Exchange, arrived: Arrived) -> Array:
  """float32 [G, M]: how many experts see each token of this device.

  Outputs that are all 1 are collected and added up by token, so this is right
  for every exchange and dispatch.
  """
  if isinstance(exchanger, AllToAll):
    # This device gave out the slots itself, so nothing has to travel.
    rows, collect = arrived.permuted.rows, arrived.dispatch.unpermute
    ones = jnp.ones((*rows.shape[:-1], 1), jnp.float32)
    return collect(ones, arrived.permuted)[..., 0]
  ones = jnp.ones((*arrived.rows.shape[:-1], 1), jnp.float32)
  return exchanger.collect(ones, arrived)[..., 0]
