"""Rotary position embedding."""

import jax
import jax.numpy as jnp

from moe.layers import kernels
from moe.types import Array


def rotate(x_BTNH: Array, positions_BT: Array, base: float = 10_000.0) -> Array:
  """Rotates each pair of features by an angle proportional to the position.

  Su et al. (2021), equation 34, https://arxiv.org/abs/2104.09864. Features i
  and i + H/2 are a pair. Angles are float32.

  Raises:
    ValueError: if H is odd.
  """
  H = x_BTNH.shape[-1]
  if H % 2:
    raise ValueError(
      f'HEAD_DIM={H} must be even for rotary positions: choose an even number.'
    )
  frequency_H = base ** (-jnp.arange(0, H, 2, dtype=jnp.float32) / H)
  angle_BTH = positions_BT[..., None].astype(jnp.float32) * frequency_H
  # Without a barrier XLA would compute cosines and sines again for every head.
  cos_BTH, sin_BTH = jax.lax.optimization_barrier(
    (jnp.cos(angle_BTH), jnp.sin(angle_BTH))
  )
  cos_BT1H = jnp.concatenate([cos_BTH, cos_BTH], axis=-1)[:, :, None]
  sin_BT1H = jnp.concatenate([-sin_BTH, sin_BTH], axis=-1)[:, :, None]
  x_BTNH32 = x_BTNH.astype(jnp.float32)
  pair_BTNH = jnp.roll(x_BTNH32, H // 2, axis=-1)
  if kernels.platform() == 'cpu':
    # The barrier keeps the swap of the halves apart from the products. If XLA
    # fuses them, XLA:CPU uses no vector instructions and takes three times as
    # long.
    pair_BTNH = jax.lax.optimization_barrier(pair_BTNH)
  turned_BTNH = x_BTNH32 * cos_BT1H + pair_BTNH * sin_BT1H
  return turned_BTNH.astype(x_BTNH.dtype)
