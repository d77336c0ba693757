"""Sends runs of rows of any length between devices: ragged all-to-all."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from moe.types import Array


class Transfers(NamedTuple):
  """The runs of rows that one of n devices sends and receives.

  All arrays are int32 [n]; entry d is about the run to or from device d.

  Attributes:
    send_start: place on this device of the first row that is sent to d.
    send_count: number of rows that are sent to d.
    send_to: place on d of the first row that is sent to d.
    recv_start: place on this device of the first row that comes from d.
    recv_count: number of rows that come from d.
    recv_from: place on d of the first row that comes from d.
  """

  send_start: Array
  send_count: Array
  send_to: Array
  recv_start: Array
  recv_count: Array
  recv_from: Array

  def reversed(self) -> 'Transfers':
    """Returns the transfers that send every received run back."""
    return Transfers(
      self.recv_start,
      self.recv_count,
      self.recv_from,
      self.send_start,
      self.send_count,
      self.send_to,
    )


def make_transfers(counts_nn: Array, buffer_rows: int, me: Array) -> Transfers:
  """Makes transfers that fit the buffer of every receiver.

  If a device would get more rows than fit into its buffer, every sender sends
  the same share of its rows for this device, the first ones, and drops the
  others.

  Args:
    counts_nn: int32 number of rows from each sender (first dim) to each
      receiver. The rows of a sender are sorted by receiver.
    buffer_rows: number of rows of a receiver's buffer.
    me: int32 index of this device.
  """
  n = counts_nn.shape[0]
  total_n = counts_nn.sum(axis=0)
  # float32 may round a product up to the next whole row, so the buffer keeps n
  # rows free.
  share_n = jnp.minimum(1.0, max(buffer_rows - n, 0) / jnp.maximum(total_n, 1))
  cut_nn = jnp.floor(counts_nn.astype(jnp.float32) * share_n).astype(jnp.int32)
  sent_nn = jnp.where(total_n <= buffer_rows, counts_nn, cut_nn)
  before = lambda a, axis: jnp.cumsum(a, axis=axis, dtype=jnp.int32) - a
  start_nn = before(counts_nn, 1)  # places on the sender
  to_nn = before(sent_nn, 0)  # places on the receiver
  return Transfers(
    start_nn[me],
    sent_nn[me],
    to_nn[me],
    to_nn[:, me],
    sent_nn[:, me],
    start_nn[:, me],
  )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def move(
  rows_UD: Array,
  transfers: Transfers,
  buffer_rows: int,
  axis_names: tuple[str, ...],
  window: int,
) -> Array:
  """Sends each run of rows to its device; runs inside `shard_map`.

  TPUs and NVIDIA's GPUs use `jax.lax.ragged_all_to_all`. XLA:CPU does not
  support it (https://github.com/jax-ml/jax/issues/34755), so other platforms
  pad each run to `window` rows and use an all-to-all, with the same result.

  Args:
    rows_UD: rows of this device.
    transfers: the runs to send and to receive.
    buffer_rows: number of rows of the result.
    axis_names: mesh axes of the exchange.
    window: W, largest number of rows of a run.

  Returns:
    [buffer_rows, D], with zeros where nothing arrived. The backward pass sends
    gradients in the reverse direction.
  """

  def ragged(rows_UD, transfers):
    out = jnp.zeros((buffer_rows, rows_UD.shape[1]), rows_UD.dtype)
    return lax.ragged_all_to_all(
      rows_UD,
      out,
      transfers.send_start,
      transfers.send_count,
      transfers.send_to,
      transfers.recv_count,
      axis_name=axis_names,
    )

  def padded(rows_UD, transfers):
    return _padded(rows_UD, transfers, buffer_rows, axis_names, window)

  return lax.platform_dependent(
    rows_UD, transfers, tpu=ragged, cuda=ragged, default=padded
  )


def _padded(rows_UD, transfers, buffer_rows, axis_names, window):
  place_W = jnp.arange(window, dtype=jnp.int32)
  zero = jnp.zeros((), rows_UD.dtype)
  index_nW = transfers.send_start[:, None] + place_W
  is_sent_nW = place_W < transfers.send_count[:, None]
  sent_nWD = rows_UD.at[index_nW].get(mode='clip')
  sent_nWD = jnp.where(is_sent_nW[..., None], sent_nWD, zero)
  got_nWD = lax.all_to_all(sent_nWD, axis_names, 0, 0)
  row_U = jnp.arange(buffer_rows, dtype=jnp.int32)
  # A row belongs to the last run that starts at or before this row.
  source_U = jnp.searchsorted(transfers.recv_start, row_U, side='right') - 1
  place_U = row_U - transfers.recv_start[source_U]
  has_U = place_U < transfers.recv_count[source_U]
  rows = got_nWD.at[source_U, place_U].get(mode='clip')
  return jnp.where(has_U[:, None], rows, zero)


def _move_fwd(rows_UD, transfers, buffer_rows, axis_names, window):
  out = move(rows_UD, transfers, buffer_rows, axis_names, window)
  return out, (transfers, rows_UD.shape[0])


def _move_bwd(buffer_rows, axis_names, window, residuals, dy_UD):
  del buffer_rows
  transfers, rows = residuals
  return move(dy_UD, transfers.reversed(), rows, axis_names, window), None


move.defvjp(_move_fwd, _move_bwd)
