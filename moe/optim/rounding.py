"""Stochastic rounding, with bits that are a hash of the place of a number.

Rounding to the nearest loses every update smaller than half the spacing of the
format; rounding up with the probability of the remainder keeps it on average
(Gupta et al. 2015, https://arxiv.org/abs/1502.02551). The random bits are a
function of (seed, step, array, stream, place in the whole array). They take a
few integer operations for each number, which XLA does inside the update, and
they do not depend on how the array is divided over devices.
"""

import jax
import jax.numpy as jnp

from moe.types import Array, PyTree

# Uses of the bits. Two of them must not share bits of one seed and step.
PARAMS, FIRST_MOMENT, SECOND_MOMENT, MOMENTUM = 0, 1, 2, 3


def _mix(x: Array, word: Array) -> Array:
  """A hash of uint32: for each word a bijection that mixes all bits.

  The constants are those of the 'lowbias32' hash (Wellons 2018,
  https://nullprogram.com/blog/2018/07/31/); `word` is ours.
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
  """Uniform uint32 in the shape of an array, each a hash of its place.

  Args:
    shape: of the whole array.
    seed: of the run.
    step: int32 scalar.
    index: number of the array.
    stream: what the bits are for, such as `PARAMS`.
  """
  word = _mix(jnp.uint32(seed & 0xFFFFFFFF), step.astype(jnp.uint32))
  word = _mix(word, jnp.uint32(4 * index + stream))
  place = jnp.zeros(shape, jnp.uint32)
  for dim in range(len(shape)):
    # The factor is odd and not the size of the dim, so that the bits of an
    # array of more than 2^32 numbers do not repeat.
    place *= jnp.uint32(0x9E3779B1)
    place += jax.lax.broadcasted_iota(jnp.uint32, shape, dim)
  return _mix(place ^ word, _mix(word, jnp.uint32(0x3C6EF372)))


def truncate(x: Array, random: Array, dropped: int) -> Array:
  """Float32 with the last bits set to zero, rounded without bias.

  Args:
    x: float32.
    random: uint32 of the same shape.
    dropped: bits of the mantissa that become zero, below 23.

  Returns:
    float32; infinite and not-a-number values stay as they are.
  """
  pattern = jax.lax.bitcast_convert_type(x, jnp.uint32)
  # This format keeps sign and magnitude apart: adding moves away from zero.
  pattern += random >> jnp.uint32(32 - dropped)
  pattern &= jnp.uint32(0xFFFFFFFF << dropped & 0xFFFFFFFF)
  rounded = jax.lax.bitcast_convert_type(pattern, jnp.float32)
  return jnp.where(jnp.isfinite(x), rounded, x)


def to_bfloat16(x: Array, random: Array) -> Array:
  """Float32 to bfloat16, equal to x on average."""
  return truncate(x, random, 16).astype(jnp.bfloat16)


def add(p: Array, update: Array, seed: int, step: Array, index: int) -> Array:
  """A parameter and its update, added in float32.

  Args:
    p: float32, or bfloat16, whose sum is rounded stochastically.
    update: float32.
    seed: of the run.
    step: int32 scalar, steps done.
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
  """`add` for every parameter of a tree."""
  leaves, structure = jax.tree.flatten(params)
  new = [
    add(p, u, seed, step, i)
    for i, (p, u) in enumerate(
      zip(leaves, structure.flatten_up_to(updates), strict=True)
    )
  ]
  return jax.tree.unflatten(structure, new)
