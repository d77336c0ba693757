"""Sends rows between the devices of tokens and the devices of experts.

An exchange runs inside `shard_map`. `send` reads tokens, their plan and a
dispatch, and sends each row to the device of its expert. `collect` sends the
experts' outputs back and adds them up by token. `send` also counts:

  dropped           requested rows that no expert computes, for any reason
  dropped_receiver  rows for which a receiver of `Ragged` had no space; 0 with
                    other exchanges
  bytes_exchanged   bytes that one device sends to others in the forward pass,
                    with weights and counts. The padding of `transport.move` is
                    not counted, because TPUs do not send it, and neither is
                    `experts_of_tokens`.
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

# Names of arrays for remat policies: rows that have arrived at the devices of
# their experts, and outputs that have come back.
ARRIVED, RETURNED = 'moe_packed', 'moe_out'


class ExpertPlacement(NamedTuple):
  """On which devices the experts of a layer are.

  Attributes:
    num: E, number of experts on all devices together.
    active: rows per token if all experts are used equally often.
    axes: mesh axes that divide the experts; empty if each device has all
      experts.
    devices: number of devices over which the experts are divided.
  """

  num: int
  active: float
  axes: tuple[str, ...] = ()
  devices: int = 1


class Arrived(NamedTuple):
  """Rows for the experts of this device, and what `collect` needs.

  Attributes:
    rows: [experts of this device, U, D]; or [U, D] sorted by expert.
    weight: float32 weight of each row, by which the experts multiply.
    count_E: int32 number of rows of each expert of this device; None if each
      has U rows.
    permuted: the result of `dispatch`.
    dispatch: the dispatch that made `rows`; with `Ragged`, the receiver's.
    experts: where the experts are.
    traffic: name -> (sum, weight): counts of dropped rows and bytes sent.
    visit: how tokens were sent; only for `Ragged`.
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
  """Name -> (sum, weight); the weight of drops is the number of rows asked for.

  The weight of bytes is 1.
  """
  # A choice that the router dropped is counted as requested and as dropped.
  asked = jnp.sum(slots.requested_rows(plan), dtype=jnp.float32) + plan.dropped
  return {
    'dropped': (dropped + plan.dropped, asked),
    'dropped_receiver': (jnp.float32(dropped_receiver), asked),
    'bytes_exchanged': (jnp.float32(sent), jnp.float32(1.0)),
  }


@dataclasses.dataclass(frozen=True)
class AllToAll:
  """Each device sends C rows per expert and group to the device of the expert.

  Nothing is sent if each device has all experts.
  """

  def send(
    self,
    x_GMD: Array,
    plan: RoutingPlan,
    dispatch: Dispatch,
    experts: ExpertPlacement,
  ) -> Arrived:
    """Sends rows; returns the rows of all senders for this device's experts.

    Raises:
      ValueError: if experts are divided and the dispatch has no capacity.
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
        # After the swap the first dims are the local expert and the sender.
        a_EnGCD = checkpoint_name(a_nEGCD.swapaxes(0, 1), ARRIVED)
        received.append(a_EnGCD.reshape(E // n, n * G * C, *a_EUD.shape[2:]))
      rows, weight = received
      # Outputs are sent back like the rows, but without weights.
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
  """A token is sent once to each device that has at least one of its experts.

  The receiver copies the token to each of its own experts that the token has
  chosen, adds up their weighted outputs, and sends one row back. So a token
  with A experts takes at most min(A, devices) rows. With `dispatch.Sorted` all
  tokens of the expert axis share the slots of an expert. With priority
  'position', first choices come before second choices. Among choices of one
  rank, the senders get slots in turns, so no device is favoured.
  `dispatch.Dropless` has no slots; it drops rows only if they exceed the
  buffer, or if their copies for experts exceed buffer_factor times an even
  share (a device's tokens x k).

  Attributes:
    buffer_factor: rows of a device's receive buffer, as a multiple of an even
      share (a device's tokens x min(k, devices)). Rows that do not fit are
      dropped and counted. With 0 the buffer is large enough for the worst case,
      every token of the expert axis. Then `dispatch.Dropless` drops nothing. A
      larger buffer takes memory for rows, but not for hidden layers: see
      `experts.apply`.
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
    """Sends tokens to their experts' devices; returns the rows that arrived."""
    if not experts.axes:
      return AllToAll().send(x_GMD, plan, dispatch, experts)
    _check_spares(plan, dispatch)
    G, M, D = x_GMD.shape
    tokens, n, axes = G * M, experts.devices, experts.axes
    num_local = experts.num // n
    choices = visits.choices_by_token(plan)
    A = choices.expert_1MA.shape[-1]
    plan_of_visits = visits.plan_of_visits(choices, num_local)
    # The first dispatch sorts tokens by device, as if devices were experts.
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
    # `asked` counts rows of this sender, and `came` counts rows of all senders.
    # So only the sum of `lost` over the devices of the axis has a meaning.
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
    """Number of rows of a receive buffer; each token that is sent takes one."""
    n = experts.devices
    if not self.buffer_factor:
      return n * tokens
    even = tokens * min(experts.active, n)
    # If not all rows fit, `make_transfers` leaves n rows of the buffer free.
    return min(n * tokens, math.ceil(self.buffer_factor * even) + n)

  def _capacity(
    self, dispatch: Dispatch, tokens: int, A: int, experts: ExpertPlacement
  ) -> int:
    """The argument `capacity` of the dispatch on the receiving device."""
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
  """Permutes tokens on this device to rows for this device's own experts.

  Rows for experts of other devices are left out.
  """
  num_local = experts.num // experts.devices
  first = jax.lax.axis_index(experts.axes).astype(jnp.int32) * num_local
  mine_GR = (plan.expert_GR >= first) & (plan.expert_GR < first + num_local)
  mine = plan._replace(
    expert_GR=jnp.where(mine_GR, plan.expert_GR - first, 0),
    valid_GR=plan.valid_GR & mine_GR,
  )
  G, M, A = plan.rows_GMA.shape
  # Largest number of rows for the experts of this device.
  capacity = G * M * min(A, num_local)
  if not dispatch.is_dropless:
    capacity = dispatch.capacity(M, experts.active, experts.num)
  return dispatch.permute(x_GMD, mine, num_local, capacity)


@dataclasses.dataclass(frozen=True)
class AllGather:
  """Every device gathers all tokens of the expert axis for its own experts.

  A reduce-scatter sums the outputs. All tokens are sent to all devices,
  whatever the routing is, so this suits dropless evaluation and small axes.
  """

  def send(
    self,
    x_GMD: Array,
    plan: RoutingPlan,
    dispatch: Dispatch,
    experts: ExpertPlacement,
  ) -> Arrived:
    """Gathers all tokens; returns the rows for this device's experts."""
    if not experts.axes:
      return AllToAll().send(x_GMD, plan, dispatch, experts)
    _check_spares(plan, dispatch)
    gather = lambda a: jax.lax.all_gather(a, experts.axes, axis=0, tiled=True)
    names = ('token_GR', 'expert_GR', 'weight_GR', 'valid_GR', 'rows_GMA')
    held = {name: getattr(plan, name) for name in names}
    everyone = plan._replace(**jax.tree.map(gather, held))
    permuted = _permute_held(gather(x_GMD), everyone, dispatch, experts)
    # A device sends its tokens, its plan, and outputs to each other device.
    each = 2 * x_GMD.nbytes + sum(a.nbytes for a in held.values())
    sent = (experts.devices - 1) * float(each)
    # Each device counts the dropped rows of its own experts, from all senders.
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
  """Every device of the expert axis has the same tokens; outputs are summed.

  This suits batches that are too small to be divided, as in decoding. If the
  axis divides the batch, a layer refuses this exchange in training. Each device
  returns the number of dropped rows of the whole axis.
  """

  def send(
    self,
    x_GMD: Array,
    plan: RoutingPlan,
    dispatch: Dispatch,
    experts: ExpertPlacement,
  ) -> Arrived:
    """Returns rows for this device's experts; nothing is sent."""
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
    """Sums outputs over devices; every device gets all tokens, [G, M, D]."""
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
