"""Adam's moments in 16 or in 8 bits.

Both formats are rounded stochastically. A training step may change a moment by
less than half the distance of neighbouring numbers of the format. Rounding to
the nearest number would then never change the moment.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from moe.optim import rounding
from moe.types import Array, PyTree

DTYPES = ('float32', 'bfloat16', 'int8')
# Number of neighbouring elements in the last dim that share a scale.
BLOCK = 128
# The code of a second moment is the bit pattern of a float32 without the last
# 20 bits, minus `_OFFSET`. So code 255 stands for 1.0, code 247 for 0.5, and so
# on.
_DROPPED = 20
_OFFSET = (0x3F800000 >> _DROPPED) - 255


class MomentState(NamedTuple):
  """The stored moments, in trees like the parameters.

  Attributes:
    count: int32 scalar, number of updates so far.
    mu: first moments: bfloat16, or int8 codes.
    nu: second moments: bfloat16, or uint8 codes.
    mu_scale: float32 scale of each block of int8 codes; () for bfloat16.
    nu_scale: the same for the uint8 codes of second moments.
  """

  count: Array
  mu: PyTree
  nu: PyTree
  mu_scale: PyTree
  nu_scale: PyTree


def _blocks(x: Array) -> Array:
  """Splits the last dim into blocks of `BLOCK`; one block if not divisible."""
  last = x.shape[-1]
  size = BLOCK if last % BLOCK == 0 else last
  return x.reshape(*x.shape[:-1], last // size, size)


def _scaled(x: Array) -> tuple[Array, Array]:
  """Returns (blocks divided by their largest magnitude, these magnitudes)."""
  blocks = _blocks(x)
  scale = jnp.max(jnp.abs(blocks), axis=-1)
  return blocks / jnp.where(scale > 0, scale, 1.0)[..., None], scale


def encode_signed(x: Array, random: Array) -> tuple[Array, Array]:
  """Encodes float32 [..., n] as (int8 codes of the same shape, block scales).

  The code is linear: x is about scale * code / 127. The scale is the largest
  magnitude of the block.
  """
  blocks, scale = _scaled(x)
  # 16 random bits are enough, since codes have only 8 bits.
  chance = (random >> jnp.uint32(16)).astype(jnp.float32) / 65536.0
  codes = jnp.floor(blocks.reshape(x.shape) * 127.0 + chance)
  return jnp.clip(codes, -127.0, 127.0).astype(jnp.int8), scale


def decode_signed(codes: Array, scale: Array) -> Array:
  """The inverse of `encode_signed`: float32 numbers from codes."""
  blocks = _blocks(codes.astype(jnp.float32))
  return (blocks * (scale / 127.0)[..., None]).reshape(codes.shape)


def encode_positive(x: Array, random: Array) -> tuple[Array, Array]:
  """Encodes float32 >= 0 [..., n] as (uint8 codes, block scales).

  A code stands for a number divided by the largest number of its block. It is a
  float with 5 bits of exponent and 3 bits of mantissa, so the numbers of two
  neighbouring codes differ by 6.7 to 12.5%. Code 1 stands for about 2^-32.
  Smaller numbers get code 1, too: a second moment of zero would make the update
  infinite. Only zero itself gets code 0.
  """
  blocks, scale = _scaled(x)
  ratio = blocks.reshape(x.shape)
  rounded = rounding.truncate(ratio, random, _DROPPED)
  pattern = jax.lax.bitcast_convert_type(rounded, jnp.int32) >> _DROPPED
  codes = jnp.clip(pattern - jnp.int32(_OFFSET), 1, 255)
  codes = jnp.where(ratio > 0, codes, 0)
  return codes.astype(jnp.uint8), scale


def decode_positive(codes: Array, scale: Array) -> Array:
  """The inverse of `encode_positive`: float32 numbers from codes."""
  pattern = (codes.astype(jnp.int32) + jnp.int32(_OFFSET)) << _DROPPED
  ratio = jax.lax.bitcast_convert_type(pattern, jnp.float32)
  ratio = jnp.where(codes > 0, ratio, 0.0)
  return (_blocks(ratio) * scale[..., None]).reshape(codes.shape)


def zero_scales(params: PyTree) -> PyTree:
  """A tree of float32 zeros: one scale for each block of each parameter."""
  return jax.tree.map(
    lambda p: jnp.zeros(_blocks(p).shape[:-1], jnp.float32), params
  )


def pack(
  x: Array,
  is_int8: bool,
  encode: Callable[[Array, Array], tuple[Array, Array]],
  random: Array,
) -> tuple[Array, Array | None]:
  """Returns (a moment in its stored format, block scales of 8-bit codes).

  Args:
    x: float32, the moment.
    is_int8: whether `encode` turns x into 8-bit codes. Otherwise x becomes
      bfloat16, and there are no scales.
    encode: `encode_signed` or `encode_positive`.
    random: uint32 of the shape of x, random bits for the rounding.
  """
  if is_int8:
    return encode(x, random)
  return rounding.to_bfloat16(x, random), None


def scale_by_adam(
  b1: float, b2: float, eps: float, moment_dtype: str
) -> optax.GradientTransformation:
  """Adam's direction (Kingma & Ba 2015); its moments are stored in few bits.

  The moments are unpacked, updated and used in float32, and packed again. Block
  scales follow Dettmers et al. (2022), https://arxiv.org/abs/2110.02861. Unlike
  in the paper, second moments have the code of `encode_positive`, and rounding
  is stochastic.

  Args:
    b1: decay of the first moment.
    b2: decay of the second moment.
    eps: number that is added to the root of the second moment.
    moment_dtype: 'bfloat16' or 'int8'.
  """
  is_int8 = moment_dtype == 'int8'

  def init(params: PyTree) -> MomentState:
    code = lambda dtype: jax.tree.map(
      lambda p: jnp.zeros(p.shape, dtype), params
    )
    if not is_int8:
      zeros = code(jnp.bfloat16), code(jnp.bfloat16), (), ()
    else:
      zeros = (
        code(jnp.int8),
        code(jnp.uint8),
        zero_scales(params),
        zero_scales(params),
      )
    return MomentState(jnp.zeros((), jnp.int32), *zeros)

  def one(
    index: int,
    count: Array,
    g: Array,
    mu: Array,
    nu: Array,
    mu_scale: Array | None,
    nu_scale: Array | None,
  ) -> tuple[Array, Array, Array, Array | None, Array | None]:
    """Returns (update, stored moments and scales) of one parameter."""
    m = decode_signed(mu, mu_scale) if is_int8 else mu.astype(jnp.float32)
    v = decode_positive(nu, nu_scale) if is_int8 else nu.astype(jnp.float32)
    m = b1 * m + (1.0 - b1) * g
    v = b2 * v + (1.0 - b2) * jnp.square(g)
    random = lambda stream: rounding.bits(g.shape, 0, count, index, stream)
    mu, mu_scale = pack(
      m, is_int8, encode_signed, random(rounding.FIRST_MOMENT)
    )
    nu, nu_scale = pack(
      v, is_int8, encode_positive, random(rounding.SECOND_MOMENT)
    )
    done = (count + 1).astype(jnp.float32)
    m = m / (1.0 - b1**done)
    v = v / (1.0 - b2**done)
    return m / (jnp.sqrt(v) + eps), mu, nu, mu_scale, nu_scale

  def update(
    grads: PyTree, state: MomentState, params: PyTree | None = None
  ) -> tuple[PyTree, MomentState]:
    del params
    leaves, structure = jax.tree.flatten(grads)
    columns = [structure.flatten_up_to(state.mu)]
    columns.append(structure.flatten_up_to(state.nu))
    for scales in (state.mu_scale, state.nu_scale):
      columns.append(
        structure.flatten_up_to(scales) if is_int8 else [None] * len(leaves)
      )
    rows = [
      one(i, state.count, g, *stored)
      for i, (g, *stored) in enumerate(zip(leaves, *columns, strict=True))
    ]
    new = [structure.unflatten(column) for column in zip(*rows, strict=True)]
    if not rows:
      new = [grads] * 5
    updates, mu, nu, mu_scale, nu_scale = new
    if not is_int8:
      mu_scale = nu_scale = ()
    return updates, MomentState(state.count + 1, mu, nu, mu_scale, nu_scale)

  return optax.GradientTransformation(init, update)
