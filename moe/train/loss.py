"""Cross-entropy in chunks: the logits of a whole batch never exist at once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from moe.types import Array


def token_nats(logits: Array, targets: Array) -> tuple[Array, Array]:
  """Negative log-likelihood and log-partition of each target, in float32.

  Args:
    logits: float32 [..., V].
    targets: int32 [...].

  Returns:
    (nats, log_z), each [...].
  """
  log_z = jax.nn.logsumexp(logits, axis=-1)
  picked = jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  return log_z - picked, log_z


def cross_entropy(
  head_fn: Callable[[Array], Array],
  hidden_BTD: Array,
  targets_BT: Array,
  weights_BT: Array,
  num_chunks: int = 1,
) -> tuple[Array, Array]:
  """Weighted sums over all tokens of nats and of squared log-partition.

  With more than one chunk, the logits of a chunk are recomputed in the backward
  pass: [B, T / num_chunks, V] is the most that exists at a time.

  Args:
    head_fn: hidden states [..., D] to float32 logits [..., V].
    hidden_BTD: hidden states.
    targets_BT: int32.
    weights_BT: float32.
    num_chunks: pieces of the sequence.

  Returns:
    (nats, squared log-partition), float32 scalars.

  Raises:
    ValueError: if the chunks do not divide the sequence.
  """
  B, T, D = hidden_BTD.shape
  if num_chunks < 1 or T % num_chunks:
    raise ValueError(
      f'LOSS_CHUNKS={num_chunks} must divide SEQUENCE_LENGTH={T}: change one.'
    )

  def sums(hidden, targets, weights):
    nats, log_z = token_nats(head_fn(hidden), targets)
    return jnp.sum(nats * weights), jnp.sum(jnp.square(log_z) * weights)

  if num_chunks == 1:
    return sums(hidden_BTD, targets_BT, weights_BT)

  def chunks(a_BT):
    split = a_BT.reshape(B, num_chunks, T // num_chunks, *a_BT.shape[2:])
    return jnp.moveaxis(split, 1, 0)

  def add(carry, chunk):
    return jax.tree.map(jnp.add, carry, jax.checkpoint(sums)(*chunk)), None

  zero = jnp.zeros((), jnp.float32)
  xs = tuple(chunks(a) for a in (hidden_BTD, targets_BT, weights_BT))
  return jax.lax.scan(add, (zero, zero), xs)[0]
