"""Sends a token once to a device, even if it has several experts there.

A token visits a device if it is sent there. Notes are sent together with the
token's row. They contain the experts that the token has chosen on the receiving
device, and their weights. The receiver makes a plan from the notes.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe.routing import transport
from moe.routing.dispatch import Permuted
from moe.routing.plan import RoutingPlan
from moe.routing.slots import gather, invert, permute
from moe.routing.token_choice import rows_of_choices
from moe.types import Array


class Choices(NamedTuple):
  """The choices of M tokens; each array is [1, M, A].

  Spare choices, see `RoutingPlan`, are left out.
  """

  expert_1MA: Array
  weight_1MA: Array
  valid_1MA: Array


class Visit(NamedTuple):
  """How tokens were sent from their device.

  Attributes:
    permuted: the tokens as rows, sorted by receiver.
    transfers: the runs of rows that were sent and received.
    groups: (G, M), number and size of the tokens' routing groups.
  """

  permuted: Permuted
  transfers: transport.Transfers
  groups: tuple[int, int]


def choices_by_token(plan: RoutingPlan) -> Choices:
  """Returns the choices of the tokens of all groups, as a single group."""
  G, M, A = plan.rows_GMA.shape
  A -= plan.num_spare
  rows_GMA = plan.rows_GMA[..., :A]
  each = lambda a_GR, absent: gather(a_GR, rows_GMA, absent).reshape(
    1, G * M, A
  )
  return Choices(
    each(plan.expert_GR, 0),
    each(plan.weight_GR, 0.0),
    each(plan.valid_GR, False),
  )


def plan_of_visits(choices: Choices, num_local: int) -> RoutingPlan:
  """Makes a plan in which tokens visit devices with `num_local` experts each.

  The 'experts' of this plan are devices. A token visits a device once, even if
  it has chosen several experts there.
  """
  device_1MA = choices.expert_1MA // num_local
  A = device_1MA.shape[-1]
  same_1MAA = device_1MA[..., :, None] == device_1MA[..., None, :]
  earlier_AA = jnp.tri(A, k=-1, dtype=bool)
  valid_1MA = choices.valid_1MA
  seen_1MA = jnp.any(same_1MAA & valid_1MA[..., None, :] & earlier_AA, axis=-1)
  ones_1MA = jnp.ones(device_1MA.shape, jnp.float32)
  rows = rows_of_choices(device_1MA, ones_1MA, valid_1MA & ~seen_1MA)
  return RoutingPlan(*rows, {}, {})


def make_notes(
  choices: Choices, visits: RoutingPlan, leaving: Permuted, num_local: int
) -> Array:
  """Makes the notes of each row: A weights, then A expert numbers, [U, 2A].

  Expert numbers count from 1 on the receiving device; 0 stands for a choice
  that is on another device or not valid. Notes are float32, in which these
  numbers are exact. Gradients flow through the weights.

  Args:
    choices: choices of all tokens.
    visits: result of `plan_of_visits`.
    leaving: the tokens as rows, sorted by receiver.
    num_local: number of experts per device.
  """
  row_1U = leaving.row_GU
  token_1U = jnp.where(row_1U >= 0, row_1U % choices.expert_1MA.shape[1], -1)
  notes = lambda a_1MA: permute(a_1MA, token_1U, leaving.slot_GMA)[0]
  device_U = gather(visits.expert_GR, row_1U)[0]
  number_1MA = jnp.where(choices.valid_1MA, choices.expert_1MA + 1, 0)
  number_1MA = number_1MA.astype(jnp.float32)
  first_U1 = (device_U * num_local)[:, None].astype(jnp.float32)
  number_UA = jax.lax.stop_gradient(notes(number_1MA)) - first_U1
  is_there = (number_UA > 0) & (number_UA <= num_local)
  return jnp.concatenate(
    [notes(choices.weight_1MA), jnp.where(is_there, number_UA, 0.0)], axis=1
  )


def _turns(transfers: transport.Transfers, U: int) -> Array:
  """Int32 [U]: the rank of each arrived row if senders take turns."""
  row_U = jnp.arange(U, dtype=jnp.int32)
  source_U = jnp.searchsorted(transfers.recv_start, row_U, side='right') - 1
  place_U1 = (row_U - transfers.recv_start[source_U])[:, None]
  senders_n = jnp.arange(len(transfers.recv_count), dtype=source_U.dtype)
  # In each round, every sender has one row. A row comes after all rows of
  # earlier rounds, and after the rows of earlier senders in the same round.
  is_earlier_Un = (senders_n < source_U[:, None]).astype(jnp.int32)
  before_Un = jnp.minimum(transfers.recv_count, place_U1 + is_earlier_Un)
  return jnp.where(
    row_U < transfers.recv_count.sum(), before_Un.sum(axis=1), row_U
  )


def plan_of_notes(notes: Array, transfers: transport.Transfers) -> RoutingPlan:
  """Makes a plan of the arrived rows, as one group in the order of `_turns`."""
  U, A = notes.shape[0], notes.shape[1] // 2
  turn_1U = _turns(transfers, U)[None]
  row_1U = invert(turn_1U)
  inturn_1UA = permute(notes[None], row_1U, turn_1U[..., None])
  number_1UA = inturn_1UA[..., A:].astype(jnp.int32)
  rows = rows_of_choices(
    jnp.maximum(number_1UA - 1, 0), inturn_1UA[..., :A], number_1UA > 0
  )
  plan = RoutingPlan(*rows, {}, {})
  return plan._replace(
    token_GR=jnp.tile(row_1U, A),
    rows_GMA=jnp.take_along_axis(plan.rows_GMA, turn_1U[..., None], axis=1),
  )
