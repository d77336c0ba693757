"""How tokens visit the devices of their experts, each device at most once.

A token's row travels with notes of which experts it asks for there, and with
what weights. The receiver makes a plan of them.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from moe.routing import transport
from moe.routing.dispatch import Permuted
from moe.routing.plan import RoutingPlan, rows_of_choices
from moe.routing.slots import gather, invert, permute
from moe.types import Array


class Choices(NamedTuple):
  """What N tokens ask for, without choices that stand by; each [1, N, A]."""

  expert_1NA: Array
  weight_1NA: Array
  valid_1NA: Array


class Visit(NamedTuple):
  """How tokens left their device.

  Attributes:
    permuted: the tokens in the order of their receivers.
    pieces: what went where.
    groups: (G, M) of the tokens.
  """

  permuted: Permuted
  pieces: transport.Pieces
  groups: tuple[int, int]


def choices_by_token(plan: RoutingPlan) -> Choices:
  """The choices of all groups' tokens."""
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


def plan_of_visits(choices: Choices, here: int) -> RoutingPlan:
  """Plan of tokens that visit devices, of which each holds so many experts."""
  device_1NA = choices.expert_1NA // here
  A = device_1NA.shape[-1]
  same_1NAA = device_1NA[..., :, None] == device_1NA[..., None, :]
  earlier_AA = jnp.tri(A, k=-1, dtype=bool)
  valid_1NA = choices.valid_1NA
  seen_1NA = jnp.any(same_1NAA & valid_1NA[..., None, :] & earlier_AA, axis=-1)
  ones_1NA = jnp.ones(device_1NA.shape, jnp.float32)
  rows = rows_of_choices(device_1NA, ones_1NA, valid_1NA & ~seen_1NA)
  return RoutingPlan(*rows, {}, {})


def make_notes(
  choices: Choices, visits: RoutingPlan, leaving: Permuted, here: int
) -> Array:
  """What travels with each row: weights, and 1 + expert there or 0; [S, 2A].

  Float32 holds expert numbers exactly, and lets weights have gradients.

  Args:
    choices: of all tokens.
    visits: their plan by device.
    leaving: the tokens in the order of their receivers.
    here: experts of each device.
  """
  row_1S = leaving.row_GS
  token_1S = jnp.where(row_1S >= 0, row_1S % choices.expert_1NA.shape[1], -1)
  notes = lambda a_1NA: permute(a_1NA, token_1S, leaving.slot_GMA)[0]
  device_S = gather(visits.expert_GR, row_1S)[0]
  number_1NA = jnp.where(choices.valid_1NA, choices.expert_1NA + 1, 0)
  number_1NA = number_1NA.astype(jnp.float32)
  first_S1 = (device_S * here)[:, None].astype(jnp.float32)
  number_SA = jax.lax.stop_gradient(notes(number_1NA)) - first_S1
  is_there = (number_SA > 0) & (number_SA <= here)
  return jnp.concatenate(
    [notes(choices.weight_1NA), jnp.where(is_there, number_SA, 0.0)], axis=1
  )


def _turns(pieces: transport.Pieces, S: int) -> Array:
  """int32 [S]: the place of each row that arrived when senders take turns."""
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


def plan_of_notes(notes: Array, pieces: transport.Pieces) -> RoutingPlan:
  """The plan of the rows that arrived, one group of them, senders in turn."""
  S, A = notes.shape[0], notes.shape[1] // 2
  turn_1S = _turns(pieces, S)[None]
  row_1S = invert(turn_1S)
  inturn_1SA = permute(notes[None], row_1S, turn_1S[..., None])
  number_1SA = inturn_1SA[..., A:].astype(jnp.int32)
  rows = rows_of_choices(
    jnp.maximum(number_1SA - 1, 0), inturn_1SA[..., :A], number_1SA > 0
  )
  plan = RoutingPlan(*rows, {}, {})
  return plan._replace(
    token_GR=jnp.tile(row_1S, A),
    rows_GMA=jnp.take_along_axis(plan.rows_GMA, turn_1S[..., None], axis=1),
  )
