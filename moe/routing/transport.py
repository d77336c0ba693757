"""Rows between devices in pieces of any size: ragged all-to-all."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from moe.types import Array


class Pieces(NamedTuple):
  """Where the pieces of an exchange lie, as one of n devices sees it.

  All int32 [n]. Piece d goes from rows send_start[d] ... of this device to rows
  send_to[d] ... of device d; the piece from device d was at recv_from[d] there
  and comes to recv_start[d] here.
  """

  send_start: Array
  send_count: Array
  send_to: Array
  recv_start: Array
  recv_count: Array
  recv_from: Array

  def reversed(self) -> 'Pieces':
    """The way back."""
    return Pieces(
      self.recv_start,
      self.recv_count,
      self.recv_from,
      self.send_start,
      self.send_count,
      self.send_to,
    )


def plan_pieces(counts_nn: Array, room: int, me: Array) -> Pieces:
  """Pieces of an exchange in which every receiver has so much room.

  Where more is sent to a device than it has room for, all senders are cut by
  the same share, from the end of their piece.

  Args:
    counts_nn: int32 rows from each device (first) to each other one; a sender's
      rows lie in the order of their receivers.
    room: rows that a device can receive.
    me: int32, this device.
  """
  n = counts_nn.shape[0]
  total_n = counts_nn.sum(axis=0)
  # n less than the room, since float32 may round a product up to the next row.
  share_n = jnp.minimum(1.0, max(room - n, 0) / jnp.maximum(total_n, 1))
  cut_nn = jnp.floor(counts_nn.astype(jnp.float32) * share_n).astype(jnp.int32)
  sent_nn = jnp.where(total_n <= room, counts_nn, cut_nn)
  before = lambda a, axis: jnp.cumsum(a, axis=axis, dtype=jnp.int32) - a
  start_nn = before(counts_nn, 1)  # within the sender
  to_nn = before(sent_nn, 0)  # within the receiver
  return Pieces(
    start_nn[me],
    sent_nn[me],
    to_nn[me],
    to_nn[:, me],
    sent_nn[:, me],
    start_nn[:, me],
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def move(
  rows_SD: Array,
  pieces: Pieces,
  room: int,
  axis_names: tuple[str, ...],
  window: int,
) -> Array:
  """Sends each piece to its device; runs inside `shard_map`.

  TPU and NVIDIA: `jax.lax.ragged_all_to_all`. Elsewhere, XLA:CPU having none
  (https://github.com/jax-ml/jax/issues/34755), an all-to-all of pieces padded
  to the largest possible size, with the same result.

  Args:
    rows_SD: rows of this device.
    pieces: what goes where.
    room: rows of the result.
    axis_names: mesh axes of the exchange.
    window: the most rows that one piece can have.

  Returns:
    [room, D], zeros where nothing arrived. The gradient goes the way back.
  """

  def ragged(rows_SD, pieces):
    out = jnp.zeros((room, rows_SD.shape[1]), rows_SD.dtype)
    return lax.ragged_all_to_all(
      rows_SD,
      out,
      pieces.send_start,
      pieces.send_count,
      pieces.send_to,
      pieces.recv_count,
      axis_name=axis_names,
    )

  def padded(rows_SD, pieces):
    return _padded(rows_SD, pieces, room, axis_names, window)

  return lax.platform_dependent(
    rows_SD, pieces, tpu=ragged, cuda=ragged, default=padded
  )


def _padded(rows_SD, pieces, room, axis_names, window):
  place_W = jnp.arange(window, dtype=jnp.int32)
  zero = jnp.zeros((), rows_SD.dtype)
  index_nW = pieces.send_start[:, None] + place_W
  is_sent_nW = place_W < pieces.send_count[:, None]
  sent_nWD = rows_SD.at[index_nW].get(mode='clip')
  sent_nWD = jnp.where(is_sent_nW[..., None], sent_nWD, zero)
  got_nWD = lax.all_to_all(sent_nWD, axis_names, 0, 0)
  row_S = jnp.arange(room, dtype=jnp.int32)
  # The last piece that starts at this row or before.
  source_S = jnp.searchsorted(pieces.recv_start, row_S, side='right') - 1
  place_S = row_S - pieces.recv_start[source_S]
  has_S = place_S < pieces.recv_count[source_S]
  rows = got_nWD.at[source_S, place_S].get(mode='clip')
  return jnp.where(has_S[:, None], rows, zero)


def _move_fwd(rows_SD, pieces, room, axis_names, window):
  out = move(rows_SD, pieces, room, axis_names, window)
  return out, (pieces, rows_SD.shape[0])


def _move_bwd(room, axis_names, window, residuals, dy_SD):
  del room
  pieces, rows = residuals
  return move(dy_SD, pieces.reversed(), rows, axis_names, window), None


move.defvjp(_move_fwd, _move_bwd)
