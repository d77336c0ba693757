"""Rotary position embedding."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from moe.layers import bounds, kernels
from moe.types import Array

SCALINGS = ('none', 'linear', 'yarn')


@dataclasses.dataclass(frozen=True)
class Rope:
  """By which angles positions turn features.

  'linear' divides all frequencies by `factor` (Chen et al., 2023,
  https://arxiv.org/abs/2306.15595). 'yarn' does so only to the slow ones: those
  that turn less than `beta_slow` times within `original_length`. Those that
  turn more than `beta_fast` times stay, and in between there is a ramp (Peng et
  al., 2023, section 3.2, https://arxiv.org/abs/2309.00071).

  Attributes:
    base: of the wave lengths. Hugging Face: rope_theta.
    share: of a head's features, the leading part that is turned; the others
      know no position. Hugging Face: partial_rotary_factor.
    scaling: 'none', 'linear' or 'yarn'. Hugging Face: rope_type.
    factor: how many times longer texts may be. Hugging Face: factor.
    original_length: longest text before the extension, for 'yarn'. Hugging
      Face: original_max_position_embeddings.
    beta_fast: turns, see above. Hugging Face: beta_fast.
    beta_slow: turns, see above. Hugging Face: beta_slow.
    attention_factor: what turned features are multiplied with under 'yarn'; by
      default what the paper says, 0.1 ln(factor) + 1. Hugging Face:
      attention_factor.
    mscale: DeepSeek's weight of the logarithm there. Hugging Face: mscale.
    mscale_all_dim: that weight in latent attention, where it counts for all
      features, not for turned ones alone. Hugging Face: mscale_all_dim.
  """

  base: float = 10_000.0
  share: float = 1.0
  scaling: str = 'none'
  factor: float = 1.0
  original_length: int = 0
  beta_fast: float = 32.0
  beta_slow: float = 1.0
  attention_factor: float | None = None
  mscale: float = 0.0
  mscale_all_dim: float = 0.0

  def __post_init__(self):
    bounds.one_of('Rope.scaling', self.scaling, SCALINGS)
    if not self.base > 1:
      raise ValueError(f'ROPE_BASE={self.base} must be more than 1.')
    if not 0 < self.share <= 1:
      raise ValueError(
        f'Rope.share={self.share} must be more than 0 and at most 1: it is the'
        ' part of a head that positions turn.'
      )
    if self.scaling != 'none' and not self.factor >= 1:
      raise ValueError(
        f'Rope.factor={self.factor} must be at least 1: texts get longer.'
      )
    if self.scaling == 'yarn' and self.original_length < 1:
      raise ValueError(
        "Rope.scaling='yarn' needs Rope.original_length, the longest text"
        f' before the extension, got {self.original_length}.'
      )

  def _logarithmic(self, weight: float) -> float:
    return 0.1 * weight * math.log(self.factor) + 1.0

  @property
  def amplitude(self) -> float:
    """What turned features are multiplied with."""
    if self.scaling != 'yarn':
      return 1.0
    if self.attention_factor is not None:
      return self.attention_factor
    if self.mscale and self.mscale_all_dim:
      weights = self.mscale, self.mscale_all_dim
      turned, everything = map(self._logarithmic, weights)
      return turned / everything
    return self._logarithmic(1.0)

  @property
  def latent_score_scale(self) -> float:
    """What scores of latent attention are multiplied with."""
    if self.scaling == 'none' or not self.mscale_all_dim:
      return 1.0
    return self._logarithmic(self.mscale_all_dim) ** 2

  def frequencies(self, width: int) -> Array:
    """Angle per position of each pair of `width` features, float32."""
    pairs = jnp.arange(0, width, 2, dtype=jnp.float32)
    frequency_H = self.base ** (-pairs / width)
    if self.scaling == 'linear':
      return frequency_H / self.factor
    if self.scaling == 'yarn':
      kept_H = self._kept(width)
      return frequency_H * (kept_H + (1.0 - kept_H) / self.factor)
    return frequency_H

  def _kept(self, width: int) -> np.ndarray:
    """Under 'yarn': 1 for pairs that turn as before, 0 for scaled ones."""

    def pair_that_turns(times: float) -> float:
      wave_length = self.original_length / (times * 2 * math.pi)
      return width * math.log(wave_length) / (2 * math.log(self.base))

    first = max(math.floor(pair_that_turns(self.beta_fast)), 0)
    last = min(math.ceil(pair_that_turns(self.beta_slow)), width - 1)
    length = last - first or 0.001
    ramp = (np.arange(width // 2) - first) / length
    return 1.0 - np.clip(ramp, 0.0, 1.0).astype(np.float32)


def rotate(x_BTNH: Array, positions_BT: Array, rope: Rope = Rope()) -> Array:
  """Turns each pair of features by an angle that grows with the position.

  Su et al. (2021), equation 34, https://arxiv.org/abs/2104.09864. Of the H
  features that are turned, i and i + H/2 are a pair. Angles are float32.

  Raises:
    ValueError: if H is odd.
  """
  H = int(x_BTNH.shape[-1] * rope.share)
  if H % 2:
    raise ValueError(f'HEAD_DIM={H} must be even for rotary positions.')
  if H < x_BTNH.shape[-1]:
    turned_BTNH = rotate(
      x_BTNH[..., :H], positions_BT, dataclasses.replace(rope, share=1.0)
    )
    return jnp.concatenate([turned_BTNH, x_BTNH[..., H:]], axis=-1)
  frequency_H = rope.frequencies(H)
  angle_BTH = positions_BT[..., None].astype(jnp.float32) * frequency_H
  # Without a barrier XLA would compute both again for every head.
  cos_BTH, sin_BTH = jax.lax.optimization_barrier(
    (jnp.cos(angle_BTH), jnp.sin(angle_BTH))
  )
  cos_BT1H = jnp.concatenate([cos_BTH, cos_BTH], axis=-1)[:, :, None]
  sin_BT1H = jnp.concatenate([-sin_BTH, sin_BTH], axis=-1)[:, :, None]
  x_BTNH32 = x_BTNH.astype(jnp.float32)
  pair_BTNH = jnp.roll(x_BTNH32, H // 2, axis=-1)
  if kernels.platform() == 'cpu':
    # The barrier makes a copy of its own. If the exchange of the halves is
    # fused with the products, XLA:CPU uses no vector instructions and takes
    # three times as long.
    pair_BTNH = jax.lax.optimization_barrier(pair_BTNH)
  turned_BTNH = x_BTNH32 * cos_BT1H + pair_BTNH * sin_BT1H
  if rope.amplitude != 1.0:
    turned_BTNH *= rope.amplitude
  return turned_BTNH.astype(x_BTNH.dtype)
