"""Cross-entropy in chunks, so that a batch's logits never exist all at once."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from moe.types import Array, Layout

# Hidden states, targets and weights of a chunk.
Chunk = tuple[Array, Array, Array]
Sums = tuple[Array, Array]
ONE_DEVICE = Layout()


class Section(NamedTuple):
  """A range of ids that has a softmax of its own.

  Attributes:
    head_fn: makes float32 logits [..., V] of the range from hidden states [...,
      D].
    begin: the first id of the range.
  """

  head_fn: Callable[[Array], Array]
  begin: int


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
) -> Sums:
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

  Returns:
    (nats, squared log-partition), float32 scalars, or [W] for weights [B, T,
    W].

  Raises:
    ValueError: if num_chunks does not divide the number of tokens that a device
      has of a sequence.
  """
  if num_chunks == 1:
    return _sums(head_fn, hidden_BTD, targets_BT, weights_BT)
  B, T, _ = hidden_BTD.shape
  parts, spec = _parts(B, layout)
  _check_chunks(num_chunks, T, parts[1])
  b, t = B // parts[0], T // (parts[1] * num_chunks)

  def split(a_BT: Array) -> Array:
    """Splits [B, T, ...] into [chunks, *parts, rows, tokens, ...]."""
    rest = a_BT.shape[2:]
    a = a_BT.reshape(parts[0], b, parts[1], num_chunks, t, *rest)
    return a.transpose(3, 0, 2, 1, 4, *range(5, a.ndim))

  chunks = tuple(split(a) for a in (hidden_BTD, targets_BT, weights_BT))
  head, arrays = _head_of_parts(head_fn, chunks[0], parts, spec)

  @jax.checkpoint
  def sums(chunk: Chunk, arrays: list[Array]) -> Sums:
    return _sums(lambda hidden: head(hidden, *arrays), *chunk)

  def add(carry: Sums, chunk: Chunk):
    return jax.tree.map(jnp.add, carry, sums(chunk, arrays)), None

  zero = jnp.zeros(weights_BT.shape[2:], jnp.float32)
  return jax.lax.scan(add, (zero, zero), chunks)[0]


def cross_entropy_of_sections(
  sections: Sequence[Section],
  hidden_BTD: Array,
  targets_BT: Array,
  weights_BT: Array,
  num_chunks: int = 1,
  layout: Layout = ONE_DEVICE,
) -> Sums:
  """The sums of `cross_entropy`, with a softmax for each range of ids.

  A target competes only with the ids of its own range. With more than one
  chunk, each device sorts its tokens by the range of their targets. A chunk
  computes the logits of a range only if a device has targets of this range in
  it. So most tokens pay for the logits of one range. Tokens with the weight 0
  are sorted last and pay for none. With one chunk, all tokens pay for all
  ranges.

  Args:
    sections: all ranges, in the order of their ids.
    hidden_BTD: hidden states.
    targets_BT: int32; ids that pad a range are not among them.
    weights_BT: float32; a further dim gives several sums.
    num_chunks: see `cross_entropy`.
    layout: see `cross_entropy`.

  Returns:
    See `cross_entropy`.

  Raises:
    ValueError: see `cross_entropy`.
  """
  B, T, _ = hidden_BTD.shape
  number_BT = sum((targets_BT >= s.begin).astype('int32') for s in sections) - 1
  zero = jnp.zeros(weights_BT.shape[2:], jnp.float32)
  if num_chunks == 1:
    whole = hidden_BTD, targets_BT, weights_BT
    found = [
      _sums(section.head_fn, *_own(whole, number_BT == i, section.begin))
      for i, section in enumerate(sections)
    ]
    return jax.tree.map(lambda *sums: sum(sums), *found)
  parts, spec = _parts(B, layout)
  _check_chunks(num_chunks, T, parts[1])
  is_scored_BT = (weights_BT.reshape(B, T, -1) != 0).any(axis=-1)
  number_BT = jnp.where(is_scored_BT, number_BT, len(sections))

  def of_parts(a_BT: Array) -> Array:
    """[B, T, ...] as [*parts, tokens, ...]."""
    rest = a_BT.shape[2:]
    a = a_BT.reshape(parts[0], B // parts[0], parts[1], T // parts[1], *rest)
    return a.swapaxes(1, 2).reshape(*parts, -1, *rest)

  order = jnp.argsort(of_parts(number_BT), axis=-1, stable=True)
  inverse = jnp.argsort(order, axis=-1)

  def split(a_BT: Array) -> Array:
    """Sorts the tokens; [B, T, ...] becomes [chunks, *parts, tokens, ...]."""
    a = _reordered(of_parts(a_BT), order, inverse)
    return jnp.moveaxis(a.reshape(*parts, num_chunks, -1, *a.shape[3:]), 2, 0)

  chunks = tuple(split(a) for a in (hidden_BTD, targets_BT, weights_BT))
  numbers = split(number_BT)
  heads, arrays = zip(
    *(_head_of_parts(s.head_fn, chunks[0], parts, spec) for s in sections),
    strict=True,
  )
  # All devices must know in which chunks any of them has targets of a range.
  present = [(numbers == i).any(axis=(1, 2, 3)) for i in range(len(sections))]

  @jax.checkpoint
  def sums(
    chunk: Chunk,
    number: Array,
    present: Sequence[Array],
    arrays: Sequence[list[Array]],
  ) -> Sums:
    total = zero, zero
    for i, section in enumerate(sections):
      found = jax.lax.cond(
        present[i],
        lambda chunk, arrays, head=heads[i]: _sums(
          lambda hidden: head(hidden, *arrays), *chunk
        ),
        lambda *_: (zero, zero),
        _own(chunk, number == i, section.begin),
        arrays[i],
      )
      total = jax.tree.map(jnp.add, total, found)
    return total

  def add(carry: Sums, chunk: tuple[Chunk, Array, list[Array]]):
    return jax.tree.map(jnp.add, carry, sums(*chunk, arrays)), None

  return jax.lax.scan(add, (zero, zero), (chunks, numbers, present))[0]


def _own(chunk: Chunk, is_own: Array, begin: int) -> Chunk:
  """A chunk with the codes of a range; other targets get the weight 0."""
  hidden, targets, weights = chunk
  lead = is_own.reshape(*is_own.shape, *(1,) * (weights.ndim - is_own.ndim))
  return (
    hidden,
    jnp.where(is_own, targets - begin, 0),
    jnp.where(lead, weights, 0),
  )


@jax.custom_vjp
def _reordered(a: Array, order: Array, inverse: Array) -> Array:
  """Permutes dim 2 of [*parts, tokens, ...]; the backward pass gathers, too."""
  del inverse
  return _gathered(a, order)


def _gathered(a: Array, order: Array) -> Array:
  rest = (1 for _ in a.shape[3:])
  return jnp.take_along_axis(a, order.reshape(*order.shape, *rest), axis=2)


_reordered.defvjp(
  lambda a, order, inverse: (_gathered(a, order), inverse),
  lambda inverse, da: (_gathered(da, inverse), None, None),
)


def _check_chunks(num_chunks: int, length: int, parts: int) -> None:
  if num_chunks < 1 or length % (num_chunks * parts):
    raise ValueError(
      f'LOSS_CHUNKS={num_chunks} must divide the tokens of a sequence that a'
      f' device has, SEQUENCE_LENGTH={length} / {parts}: change one of them.'
    )


def _head_of_parts(
  head_fn: Callable[[Array], Array],
  hidden: Array,
  parts: tuple[int, int],
  spec: P | None,
) -> tuple[Callable[..., Array], list[Array]]:
  """Returns (function of [*parts, ...] and arrays, the arrays of the head).

  The arrays of the head become arguments, with a copy for each part of the
  tokens. So each part sums the gradients of its own copy over the chunks, and
  the sum over the parts is needed only once.

  Args:
    head_fn: the head.
    hidden: hidden states [chunks, *parts, ...].
    parts: number of parts of the rows and of the tokens.
    spec: mesh axes of the parts.
  """
  head_fn, arrays = jax.closure_convert(head_fn, hidden[0, 0, 0])
  arrays = [_copies(a, parts, spec) for a in arrays]
  return jax.vmap(jax.vmap(head_fn)), arrays


def _sums(
  head_fn: Callable[[Array], Array],
  hidden: Array,
  targets: Array,
  weights: Array,
) -> Sums:
  nats, log_z = token_nats(head_fn(hidden), targets)
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
