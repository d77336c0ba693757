"""Rotary position embedding."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from moe import bounds
from moe.layers import kernels
from moe.types import Array

SCALINGS = ('none', 'linear', 'yarn')


@dataclasses.dataclass(frozen=True)
class Rope:
  """The angles by which positions rotate features.

  'linear' divides all frequencies by `factor` (Chen et al., 2023,
  https://arxiv.org/abs/2306.15595). 'yarn' divides only slow frequencies, which
  rotate less than `beta_slow` times within `original_length`. Frequencies that
  rotate more than `beta_fast` times do not change, and a ramp joins the two
  ranges (Peng et al., 2023, section 3.2, https://arxiv.org/abs/2309.00071).

  Attributes:
    base: base of the wave lengths. Hugging Face: rope_theta.
    share: leading part of a head's features that is rotated; the others do not
      depend on the position. Hugging Face: partial_rotary_factor.
    scaling: 'none', 'linear' or 'yarn'. Hugging Face: rope_type.
    factor: longest text after the extension, divided by the longest text before
      it. Hugging Face: factor.
    original_length: longest text before the extension, for 'yarn'. Hugging
      Face: original_max_position_embeddings.
    beta_fast: number of rotations, see above. Hugging Face: beta_fast.
    beta_slow: number of rotations, see above. Hugging Face: beta_slow.
    attention_factor: factor of rotated features under 'yarn'; None for the
      paper's, 0.1 ln(factor) + 1, or for DeepSeek's if both weights below are
      set, see `amplitude`. Hugging Face: attention_factor.
    mscale: DeepSeek's weight of ln(factor) in `amplitude`; it has no effect if
      mscale_all_dim is 0. Hugging Face: mscale.
    mscale_all_dim: DeepSeek's weight of ln(factor) in `latent_score_scale`, and
      in the divisor of `amplitude`; there it has no effect if mscale is 0.
      Hugging Face: mscale_all_dim.
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
    within = bounds.within
    bounds.one_of('scaling', self.scaling, SCALINGS)
    within('base', self.base, 'base of the wave lengths', above=1)
    share = 'the part of a head that positions rotate'
    within('share', self.share, share, above=0, most=1)
    within('factor', self.factor, 'how much longer texts may be', least=1)
    length = 'length before the extension'
    bounds.at_least(0, 'original_length', self.original_length, length)
    for name in ('beta_fast', 'beta_slow'):
      within(name, getattr(self, name), 'rotations', above=0)
    if self.attention_factor is not None:
      amplitude = 'factor of rotated features'
      within('attention_factor', self.attention_factor, amplitude, above=0)
    for name in ('mscale', 'mscale_all_dim'):
      within(name, getattr(self, name), 'weight of a logarithm', least=0)
    if self.scaling == 'yarn' and not self.original_length:
      raise ValueError(
        "Rope.scaling='yarn' needs Rope.original_length, the longest text"
        f' before the extension, got {self.original_length}.'
      )

  def _logarithmic(self, weight: float) -> float:
    return 0.1 * weight * math.log(self.factor) + 1.0

  @property
  def amplitude(self) -> float:
    """Factor of rotated features."""
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
    """Factor of the scores of latent attention."""
    if self.scaling == 'none' or not self.mscale_all_dim:
      return 1.0
    return self._logarithmic(self.mscale_all_dim) ** 2

  def frequencies(self, width: int) -> Array:
    """Radians per position, float32, for each pair of `width` features."""
    pairs = jnp.arange(0, width, 2, dtype=jnp.float32)
    frequency_H = self.base ** (-pairs / width)
    if self.scaling == 'linear':
      return frequency_H / self.factor
    if self.scaling == 'yarn':
      kept_H = self._kept(width)
      return frequency_H * (kept_H + (1.0 - kept_H) / self.factor)
    return frequency_H

  def _kept(self, width: int) -> np.ndarray:
    """For 'yarn': how much of its frequency each pair of features keeps.

    1 keeps the frequency, 0 divides it by `factor`. Some pairs lie between.
    """

    def pair_that_rotates(times: float) -> float:
      wave_length = self.original_length / (times * 2 * math.pi)
      return width * math.log(wave_length) / (2 * math.log(self.base))

    first = max(math.floor(pair_that_rotates(self.beta_fast)), 0)
    last = min(math.ceil(pair_that_rotates(self.beta_slow)), width - 1)
    length = last - first or 0.001
    ramp = (np.arange(width // 2) - first) / length
    return 1.0 - np.clip(ramp, 0.0, 1.0).astype(np.float32)


def rotate(x_BTNH: Array, positions_BT: Array, rope: Rope = Rope()) -> Array:
  """Rotates each pair of features by an angle proportional to the position.

  Su et al. (2021), equation 34, https://arxiv.org/abs/2104.09864. Features i
  and i + H/2 of the H rotated features are a pair. Angles are float32. Rotated
  features are multiplied by `Rope.amplitude`.

  Raises:
    ValueError: if the number of rotated features is odd.
  """
  H = int(x_BTNH.shape[-1] * rope.share)
  if H % 2:
    raise ValueError(
      f'HEAD_DIM={H} must be even for rotary positions: choose an even number.'
    )
  if H < x_BTNH.shape[-1]:
    rotated_BTNH = rotate(
      x_BTNH[..., :H], positions_BT, dataclasses.replace(rope, share=1.0)
    )
    return jnp.concatenate([rotated_BTNH, x_BTNH[..., H:]], axis=-1)
  frequency_H = rope.frequencies(H)
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
  if rope.amplitude != 1.0:
    turned_BTNH *= rope.amplitude
  return turned_BTNH.astype(x_BTNH.dtype)
