"""Cross-entropy in chunks, so that a batch's logits never exist all at once."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from moe.types import Array, Layout

# Hidden states, targets and weights of a chunk.
Chunk = tuple[Array, Array, Array]
# (logits, targets) -> logits; ids that must not compete get a very low logit.
Restrict = Callable[[Array, Array], Array]
ONE_DEVICE = Layout()


def token_nats(logits: Array, targets: Array) -> tuple[Array, Array]:
  """Negative log-likelihood and log-partition function of each target.

  Args:
    logits: float32 [..., V].
    targets: int32 [...].

  Returns:
    (nats, log_z), each float32 [...].
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
  layout: Layout = ONE_DEVICE,
  restrict: Restrict | None = None,
) -> tuple[Array, Array]:
  """Weighted sums over all tokens: of nats, and of squared log-partitions.

  With more than one chunk, the backward pass recomputes the logits of each
  chunk, so at most [B, T / num_chunks, V] of them exist at a time.

  On a mesh each device computes chunks of its own tokens. All devices need the
  head: it is gathered once and its gradient is summed once, not in each chunk.
  XLA divides the work over the 'model' axis.

  Args:
    head_fn: makes float32 logits [..., V] from hidden states [..., D].
    hidden_BTD: hidden states.
    targets_BT: int32.
    weights_BT: float32; a further dim gives several sums.
    num_chunks: number of chunks of a sequence.
    layout: mesh axes by use; the default is one device.
    restrict: bars logits that do not compete with a target; None bars none.

  Returns:
    (nats, squared log-partition), float32 scalars, or [W] for weights [B, T,
    W].

  Raises:
    ValueError: if num_chunks does not divide the number of tokens that a device
      has of a sequence.
  """
  if num_chunks == 1:
    return _sums(head_fn, hidden_BTD, targets_BT, weights_BT, restrict)
  B, T, _ = hidden_BTD.shape
  parts, spec = _parts(B, layout)
  if num_chunks < 1 or T % (num_chunks * parts[1]):
    raise ValueError(
      f'LOSS_CHUNKS={num_chunks} must divide the tokens of a sequence that a'
      f' device has, SEQUENCE_LENGTH={T} / {parts[1]}: change one of them.'
    )
  b, t = B // parts[0], T // (parts[1] * num_chunks)

  def split(a_BT: Array) -> Array:
    """Splits [B, T, ...] into [chunks, *parts, rows, tokens, ...]."""
    rest = a_BT.shape[2:]
    a = a_BT.reshape(parts[0], b, parts[1], num_chunks, t, *rest)
    return a.transpose(3, 0, 2, 1, 4, *range(5, a.ndim))

  chunks = tuple(split(a) for a in (hidden_BTD, targets_BT, weights_BT))
  # The arrays of the head become arguments, with a copy for each part of the
  # tokens. So each part sums the gradients of its own copy over the chunks, and
  # the sum over the parts is needed only once.
  head_fn, arrays = jax.closure_convert(head_fn, chunks[0][0, 0, 0])
  arrays = [_copies(a, parts, spec) for a in arrays]
  head = jax.vmap(jax.vmap(head_fn))

  @jax.checkpoint
  def sums(chunk: Chunk, arrays: list[Array]) -> tuple[Array, Array]:
    return _sums(lambda hidden: head(hidden, *arrays), *chunk, restrict)

  def add(carry: tuple[Array, Array], chunk: Chunk):
    return jax.tree.map(jnp.add, carry, sums(chunk, arrays)), None

  zero = jnp.zeros(weights_BT.shape[2:], jnp.float32)
  return jax.lax.scan(add, (zero, zero), chunks)[0]


def _sums(
  head_fn: Callable[[Array], Array],
  hidden: Array,
  targets: Array,
  weights: Array,
  restrict: Restrict | None,
) -> tuple[Array, Array]:
  logits = head_fn(hidden)
  if restrict is not None:
    logits = restrict(logits, targets)
  nats, log_z = token_nats(logits, targets)
  return _total(nats, weights), _total(jnp.square(log_z), weights)


def _total(values: Array, weights: Array) -> Array:
  """The weighted sum; if the weights have columns, a sum for each column."""
  if weights.ndim == values.ndim:
    return jnp.sum(values * weights)
  return jnp.sum(values[..., None] * weights, axis=tuple(range(values.ndim)))


def _parts(batch_size: int, layout: Layout) -> tuple[tuple[int, int], P | None]:
  """((number of parts of the rows, of the tokens), mesh axes of the parts)."""
  rows, columns = layout.batch_axes, layout.sequence_axes
  if not rows + columns or batch_size % layout.size(rows):
    return (1, 1), None
  parts = (layout.size(rows), layout.size(columns))
  return parts, P(rows or None, columns or None)


def _copies(a: Array, parts: tuple[int, int], spec: P | None) -> Array:
  """Makes a copy for each part, [*parts, ...], on the devices of the part."""
  copies = jnp.broadcast_to(a, (*parts, *a.shape))
  if spec is None:
    return copies
  free = (P.UNCONSTRAINED,) * a.ndim
  return jax.lax.with_sharding_constraint(copies, P(*spec, *free))
