"""A linear layer with a bias, and a layer norm, for structure prediction."""

import math

import flax.linen as nn
import jax.numpy as jnp

from moe.types import Array

INITS = {
  'linear': nn.initializers.lecun_normal(),
  'relu': nn.initializers.he_normal(),
  'zero': nn.initializers.zeros_init(),
}


class Linear(nn.Module):
  """A linear layer over the last dim, which it replaces by one or more dims.

  Attributes:
    features: shape of the new dims.
    logical: logical axis of each dim of the kernel, the input dim first; None
      for a dim that is not divided.
    start: initial values of the kernel: 'linear', 'relu' if a ReLU follows, or
      'zero'.
    dtype: compute dtype; parameters are float32.
    is_first: whether the new dims are the first ones of the result.
  """

  features: tuple[int, ...]
  logical: tuple[str | None, ...]
  start: str = 'linear'
  dtype: jnp.dtype = jnp.float32
  is_first: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Applies the layer to [..., in].

    Returns:
      [..., *features], or [*features, ...] with `is_first`.
    """
    shape = (x.shape[-1], math.prod(self.features))

    def init_kernel(key, whole, dtype):
      return INITS[self.start](key, shape, dtype).reshape(whole)

    named = nn.with_logical_partitioning
    kernel = self.param(
      'kernel',
      named(init_kernel, self.logical),
      (x.shape[-1], *self.features),
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
    if self.is_first:
      y = jnp.tensordot(kernel, x, ((0,), (x.ndim - 1,)), precision='highest')
      bias = bias.reshape(*self.features, *(1,) * (x.ndim - 1))
      return y.reshape(*self.features, *x.shape[:-1]) + bias
    y = jnp.dot(x, kernel, precision='highest')
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
    x = x.astype(wide)
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    x = x / jnp.sqrt(variance + 1e-5)
    return (x * scale.astype(wide) + bias.astype(wide)).astype(self.dtype)
