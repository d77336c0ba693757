"""Stochastic rounding; the random bits are a hash of a number's place.

Rounding to the nearest number loses every update that is smaller than half the
distance of neighbouring numbers of the format. Stochastic rounding rounds up
with a probability equal to the remainder, so the mean of the result is exact
(Gupta et al. 2015, https://arxiv.org/abs/1502.02551). The random bits are a
function of (seed, step, array, stream, place in the whole array). So they do
not depend on how devices share the array. The hash takes a few integer
operations per number, which XLA fuses with the update.
"""

import jax
import jax.numpy as jnp

from moe.types import Array, PyTree

# Streams: uses of random bits. In each step, each use has bits of its own.
PARAMS, FIRST_MOMENT, SECOND_MOMENT, MOMENTUM = 0, 1, 2, 3


def _mix(x: Array, word: Array) -> Array:
  """Hashes uint32 numbers; for each `word` the hash is a bijection.

  The constants are those of the 'lowbias32' hash (Wellons 2018,
  https://nullprogram.com/blog/2018/07/31/); adding `word` is our change.
  """
  x ^= x >> jnp.uint32(16)
  x *= jnp.uint32(0x7FEB352D)
  x ^= x >> jnp.uint32(15)
  x += word
  x *= jnp.uint32(0x846CA68B)
  return x ^ (x >> jnp.uint32(16))


def bits(
  shape: tuple[int, ...], seed: int, step: Array, index: int, stream: int
) -> Array:
  """Uniform uint32 numbers; each is a hash of its place in the array.

  Args:
    shape: shape of the whole array.
    seed: seed of the run.
    step: int32 scalar.
    index: number of the array.
    stream: use of the bits, such as `PARAMS`.
  """
  word = _mix(jnp.uint32(seed & 0xFFFFFFFF), step.astype(jnp.uint32))
  word = _mix(word, jnp.uint32(4 * index + stream))
  place = jnp.zeros(shape, jnp.uint32)
  for dim in range(len(shape)):
    # The factor is a fixed odd number. With the size of the dim as factor, the
    # bits would repeat in an array of more than 2^32 numbers.
    place *= jnp.uint32(0x9E3779B1)
    place += jax.lax.broadcasted_iota(jnp.uint32, shape, dim)
  return _mix(place ^ word, _mix(word, jnp.uint32(0x3C6EF372)))


def truncate(x: Array, random: Array, dropped: int) -> Array:
  """Rounds float32 stochastically, so that the last bits become zero.

  Args:
    x: float32.
    random: uint32 of the same shape.
    dropped: number of last bits that become zero, below 23.

  Returns:
    float32; infinity and NaN do not change.
  """
  pattern = jax.lax.bitcast_convert_type(x, jnp.uint32)
  # float32 has a separate sign bit, so adding to the lower bits moves a number
  # away from zero.
  pattern += random >> jnp.uint32(32 - dropped)
  pattern &= jnp.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
  rounded = jax.lax.bitcast_convert_type(pattern, jnp.float32)
  return jnp.where(jnp.isfinite(x), rounded, x)


def to_bfloat16(x: Array, random: Array) -> Array:
  """Rounds float32 x to bfloat16 stochastically, with x as expected value."""
  return truncate(x, random, 16).astype(jnp.bfloat16)


def add(p: Array, update: Array, seed: int, step: Array, index: int) -> Array:
  """Adds an update to a parameter, in float32.

  Args:
    p: float32 or bfloat16; for bfloat16 the sum is rounded stochastically.
    update: float32.
    seed: seed of the run.
    step: int32 scalar, number of steps so far.
    index: number of the parameter.

  Returns:
    The new parameter in the dtype of the old one.
  """
  total = p.astype(jnp.float32) + update
  if p.dtype == jnp.bfloat16:
    return to_bfloat16(total, bits(p.shape, seed, step, index, PARAMS))
  return total


def apply_updates(
  params: PyTree, updates: PyTree, seed: int, step: Array
) -> PyTree:
  """Adds a tree of updates to a tree of parameters, see `add`."""
  leaves, structure = jax.tree.flatten(params)
  new = [
    add(p, u, seed, step, i)
    for i, (p, u) in enumerate(
      zip(leaves, structure.flatten_up_to(updates), strict=True)
    )
  ]
  return jax.tree.unflatten(structure, new)
