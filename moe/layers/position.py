"""Rotary position embedding."""

import jax
import jax.numpy as jnp

from moe.types import Array


def rotate(x_BTNH: Array, positions_BT: Array, base: float = 10_000.0) -> Array:
  """Turns each pair of features by an angle that grows with the position.

  Su et al. (2021), equation 34, https://arxiv.org/abs/2104.09864; the pair of
  feature i is feature i + H/2. Angles in float32.

  Raises:
    ValueError: if H is odd.
  """
  H = x_BTNH.shape[-1]
  if H % 2:
    raise ValueError(f'HEAD_DIM={H} must be even for rotary positions.')
  frequency_H = base ** (-jnp.arange(0, H, 2, dtype=jnp.float32) / H)
  angle_BTH = positions_BT[..., None].astype(jnp.float32) * frequency_H
  # Behind a barrier, or XLA would compute both again for every head.
  cos_BTH, sin_BTH = jax.lax.optimization_barrier(
    (jnp.cos(angle_BTH), jnp.sin(angle_BTH))
  )
  cos_BT1H, sin_BT1H = cos_BTH[:, :, None], sin_BTH[:, :, None]
  a, b = jnp.split(x_BTNH.astype(jnp.float32), 2, axis=-1)
  turned = jnp.concatenate(
    [a * cos_BT1H - b * sin_BT1H, b * cos_BT1H + a * sin_BT1H], axis=-1
  )
  return turned.astype(x_BTNH.dtype)
