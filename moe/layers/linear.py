"""A linear layer with a bias, and a layer norm, for structure prediction."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from moe.layers.product import einsum
from moe.types import Array

INITS = {
  'linear': nn.initializers.lecun_normal(),
  'relu': nn.initializers.he_normal(),
  'zero': nn.initializers.zeros_init(),
}


class Linear(nn.Module):
  """A linear layer over one dim, which it replaces by one or more dims.

  Attributes:
    features: shape of the new dims.
    logical: logical axis of each dim of the kernel, the input dim first; None
      for a dim that is not divided.
    start: initial values of the kernel: 'linear', 'relu' if a ReLU follows, or
      'zero'.
    dtype: compute dtype; parameters are float32.
    is_first: whether the replaced dim is the first one of the input, and the
      new dims the first ones of the result.
  """

  features: tuple[int, ...]
  logical: tuple[str | None, ...]
  start: str = 'linear'
  dtype: jnp.dtype = jnp.float32
  is_first: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Applies the layer to [..., in], or with `is_first` to [in, ...].

    Returns:
      [..., *features], or [*features, ...] with `is_first`.
    """
    width = x.shape[0 if self.is_first else -1]
    shape = (width, math.prod(self.features))

    def init_kernel(key, whole, dtype):
      return INITS[self.start](key, shape, dtype).reshape(whole)

    named = nn.with_logical_partitioning
    kernel = self.param(
      'kernel',
      named(init_kernel, self.logical),
      (width, *self.features),
      jnp.float32,
    )
    bias = self.param(
      'bias',
      named(nn.initializers.zeros_init(), self.logical[1:]),
      self.features,
      jnp.float32,
    )
    # Coordinates of atoms are computed from y. By default, an accelerator may
    # round x and the kernel to fewer bits.
    x, kernel = x.astype(self.dtype), kernel.astype(self.dtype).reshape(shape)
    bias = bias.astype(self.dtype)
    rest = 'abcdefgh'[: x.ndim - 1]
    if self.is_first:
      y = einsum(f'xy,x{rest}->y{rest}', kernel, x, 'highest')
      bias = bias.reshape(*self.features, *(1,) * (x.ndim - 1))
      return y.reshape(*self.features, *x.shape[1:]) + bias
    y = einsum(f'{rest}x,xy->{rest}y', x, kernel, 'highest')
    return y.reshape(*x.shape[:-1], *self.features) + bias


class LayerNorm(nn.Module):
  """Layer norm with a learned scale and shift.

  Attributes:
    axis: logical axis of the normalised dim.
    dtype: dtype of the result. Mean and variance are float32 or above, since
      bfloat16 loses the digits of a sum over many features.
  """

  axis: str
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises the last dim."""
    named = nn.with_logical_partitioning
    ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
    size = x.shape[-1:]
    scale = self.param('scale', named(ones, (self.axis,)), size, jnp.float32)
    bias = self.param('bias', named(zeros, (self.axis,)), size, jnp.float32)
    is_short = jnp.finfo(self.dtype).bits < 32
    wide = jnp.float32 if is_short else self.dtype
    y = _normalised(x.astype(wide), scale.astype(wide), bias.astype(wide))
    return y.astype(self.dtype)


@jax.custom_vjp
def _normalised(x: Array, scale: Array, bias: Array) -> Array:
  """Normalises the last dim of [..., D]; the scale and the bias are [D].

  The backward pass is written out, since XLA:CPU computes what automatic
  differentiation makes in more passes over arrays of the size of x.
  """
  return _normalised_fwd(x, scale, bias)[0]


def _normalised_fwd(
  x: Array, scale: Array, bias: Array
) -> tuple[Array, tuple[Array, ...]]:
  mean = _mean(x)
  inverse = jax.lax.rsqrt(_mean(jnp.square(x - mean)) + 1e-5)
  return (x - mean) * inverse * scale + bias, (x, mean, inverse, scale)


def _normalised_bwd(
  saved: tuple[Array, ...], dy: Array
) -> tuple[Array, Array, Array]:
  x, mean, inverse, scale = saved
  unit, d_unit = (x - mean) * inverse, dy * scale
  dx = d_unit - _mean(d_unit) - unit * _mean(d_unit * unit)
  rows = tuple(range(x.ndim - 1))
  return inverse * dx, jnp.sum(dy * unit, axis=rows), jnp.sum(dy, axis=rows)


_normalised.defvjp(_normalised_fwd, _normalised_bwd)


def _mean(x: Array) -> Array:
  """Mean of the last dim, [..., 1].

  XLA:CPU multiplies with a vector of ones several times faster than it sums
  over a short dim. Other platforms fuse the sum with what is around it.
  """

  def by_product(x: Array) -> Array:
    ones = jnp.ones((x.shape[-1], 1), x.dtype)
    return jnp.dot(x, ones, precision='highest') / x.shape[-1]

  by_sum = lambda x: jnp.mean(x, axis=-1, keepdims=True)
  return jax.lax.platform_dependent(x, cpu=by_product, default=by_sum)
