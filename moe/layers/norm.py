"""Normalisation layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from moe.types import Array


class RMSNorm(nn.Module):
  """Root-mean-square norm with a learned scale, computed in float32.

  Zhang & Sennrich (2019), https://arxiv.org/abs/1910.07467.

  Attributes:
    axis: logical axis of the normalised dim.
    epsilon: added to the mean square.
    dtype: dtype of the result.
  """

  axis: str
  epsilon: float = 1e-6
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Normalises the last dim."""
    init = nn.with_logical_partitioning(
      nn.initializers.ones_init(), (self.axis,)
    )
    scale = self.param('scale', init, (x.shape[-1],), jnp.float32)
    x = x.astype(jnp.float32)
    mean_square = jnp.mean(jnp.square(x), axis=-1, keepdims=True)
    return (x * jax.lax.rsqrt(mean_square + self.epsilon) * scale).astype(
      self.dtype
    )
