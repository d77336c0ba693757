"""The image tokenizer: an autoencoder whose bottleneck is a grid of codes.

Finite scalar quantisation (Mentzer et al. 2023,
https://arxiv.org/abs/2309.15505) rounds each channel of the bottleneck to one
of a few levels. The levels of all channels at a place are the digits of its
code. So there is no codebook that must be learnt or could collapse.
Quantisation is in float32, because bfloat16 arithmetic would lose half of the
codes.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moe import axes
from moe.types import Array

# The range of a channel before rounding is wider by this fraction than the
# range of its levels.
_MARGIN = 1e-3
_LEAST_LEVELS = 3


def patches_of(pixels: np.ndarray, grid: Sequence[int]) -> np.ndarray:
  """The pixels at each place of a grid, for a model without a tokenizer.

  Args:
    pixels: uint8 [N, Y, X, 3].
    grid: (rows, columns), which divide Y and X.

  Returns:
    uint8 [N, rows * columns, values], from 1 to 255. A value of 0 becomes 1,
    since 0 means that a token has no patch.
  """
  count, height, width, channels = pixels.shape
  rows, columns = grid
  parts = pixels.reshape(
    count, rows, height // rows, columns, width // columns, channels
  )
  flat = parts.swapaxes(2, 3).reshape(count, rows * columns, -1)
  return np.maximum(flat, 1)


def num_codes(levels: Sequence[int]) -> int:
  """How many codes there are: the product of the levels of all channels.

  Raises:
    ValueError: if there is no channel, or if a channel has fewer than three
      levels.
  """
  if not levels or min(levels) < _LEAST_LEVELS:
    raise ValueError(
      f'levels={tuple(levels)} must be at least {_LEAST_LEVELS} for each'
      ' channel, and there must be a channel: raise them.'
    )
  return math.prod(levels)


def quantise(z: Array, levels: Sequence[int]) -> Array:
  """Rounds each channel to its levels; gradients pass the rounding unchanged.

  For even numbers of levels, the published code shifts the input by a tangent,
  so an input of 0 comes only near a level. We shift it by the inverse of tanh
  instead, so 0 comes exactly to a level.

  Args:
    z: [..., Q], any float.
    levels: number of levels of each channel, at least 3.

  Returns:
    float32 [..., Q], values from -1 to 1.
  """
  z = z.astype(jnp.float32)
  count = jnp.array(levels, jnp.float32)
  bound = (count - 1) * (1 + _MARGIN) / 2
  # An even number of levels has no middle, so rounding gives one more level
  # below 0 than above: four levels are -2, -1, 0 and 1.
  offset = jnp.where(count % 2 == 0, 0.5, 0.0)
  bounded = jnp.tanh(z + jnp.arctanh(offset / bound)) * bound - offset
  rounded = bounded + jax.lax.stop_gradient(jnp.round(bounded) - bounded)
  return rounded / (count // 2)


def codes_of(values: Array, levels: Sequence[int]) -> Array:
  """Codes of quantised values; the first channel is the lowest digit.

  Args:
    values: [..., Q], results of `quantise`.
    levels: as for `quantise`.

  Returns:
    int32 [...] in [0, num_codes).
  """
  half = jnp.array(levels, jnp.int32) // 2
  scaled = values.astype(jnp.float32) * half.astype(jnp.float32)
  # Without rounding, a cast would send 2.9999998 to the digit 2.
  digits = jnp.round(scaled).astype(jnp.int32) + half
  return jnp.sum(digits * _places(levels), axis=-1, dtype=jnp.int32)


def values_of(codes: Array, levels: Sequence[int]) -> Array:
  """Quantised values of codes, the inverse of `codes_of`.

  Args:
    codes: integers [...] in [0, num_codes).
    levels: as for `quantise`.

  Returns:
    float32 [..., Q].
  """
  count = jnp.array(levels, jnp.int32)
  digits = codes.astype(jnp.int32)[..., None] // _places(levels) % count
  half = count // 2
  return (digits - half).astype(jnp.float32) / half.astype(jnp.float32)


def _places(levels: Sequence[int]) -> Array:
  """The place value of each channel's digit in a code."""
  return jnp.array([math.prod(levels[:n]) for n in range(len(levels))])


class Autoencoder(nn.Module):
  """Convolutional autoencoder with a quantised bottleneck.

  The encoder halves height and width once for each entry of `widths`; the
  decoder doubles them as often. Halving moves each 2 x 2 pixels into channels,
  since strided convolutions of few channels are slow on CPUs.

  Attributes:
    levels: levels of each channel of the bottleneck.
    widths: channels at each scale, the finest first.
    num_blocks: residual blocks at each scale of the encoder; the decoder has as
      many.
    dtype: dtype of the convolutions; quantisation is always in float32.
  """

  levels: Sequence[int] = (8, 5, 5, 5)
  widths: Sequence[int] = (32, 96)
  num_blocks: Sequence[int] = (0, 2)
  dtype: str = 'float32'

  def __post_init__(self):
    num_codes(self.levels)
    if len(self.widths) != len(self.num_blocks) or not self.widths:
      raise ValueError(
        f'widths={self.widths} and num_blocks={self.num_blocks} must have an'
        ' entry for each scale: make them equally long.'
      )
    super().__post_init__()

  @property
  def num_codes(self) -> int:
    """How many codes there are."""
    return num_codes(self.levels)

  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Number of rows and columns of codes for a picture of this size.

    Raises:
      ValueError: if the picture cannot be halved often enough.
    """
    factor = 2 ** len(self.widths)
    if height % factor or width % factor or not height or not width:
      raise ValueError(
        f'Pictures of {height} x {width} pixels must be multiples of {factor}'
        ' pixels high and wide: choose another size, or fewer WIDTHS.'
      )
    return height // factor, width // factor

  def setup(self):
    """Makes the encoder and the decoder."""
    self.encoder = _Encoder(
      self.widths, self.num_blocks, len(self.levels), jnp.dtype(self.dtype)
    )
    self.decoder = _Decoder(self.widths, self.num_blocks, jnp.dtype(self.dtype))

  def __call__(self, pixels: Array) -> tuple[Array, Array]:
    """Returns (reconstructions [B, Y, X, 3], quantised values [B, Y', X', Q]).

    Args:
      pixels: float32 [B, Y, X, 3] from 0 to 1. Reconstructions may lie
        slightly outside of this range.
    """
    values = quantise(self.encoder(2 * pixels - 1), self.levels)
    return self._pixels(values), values

  def encode(self, pixels: Array) -> Array:
    """Encodes pixels [B, Y, X, 3] from 0 to 1 into codes int32 [B, Y', X']."""
    values = quantise(self.encoder(2 * pixels - 1), self.levels)
    return codes_of(values, self.levels)

  def decode(self, codes: Array) -> Array:
    """Decodes codes [B, Y', X'] into float32 pixels [B, Y, X, 3], 0 to 1."""
    return jnp.clip(self._pixels(values_of(codes, self.levels)), 0, 1)

  def _pixels(self, values: Array) -> Array:
    return (self.decoder(values).astype(jnp.float32) + 1) / 2


class _Encoder(nn.Module):
  """Maps pixels to the bottleneck, which is not quantised yet."""

  widths: Sequence[int]
  num_blocks: Sequence[int]
  num_channels: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = x.astype(self.dtype)
    for scale, width in enumerate(self.widths):
      x = _dense(width, self.dtype, f'down_{scale}')(_halved(x))
      for number in range(self.num_blocks[scale]):
        x = _Residual(width, self.dtype, name=f'block_{scale}_{number}')(x)
    x = nn.swish(_norm(self.dtype, 'norm')(x))
    return _dense(self.num_channels, jnp.float32, 'bottleneck')(
      x.astype(jnp.float32)
    )


class _Decoder(nn.Module):
  """Maps quantised values to pixels; its layers mirror those of the encoder."""

  widths: Sequence[int]
  num_blocks: Sequence[int]
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    x = x.astype(self.dtype)
    x = _dense(self.widths[-1], self.dtype, 'bottleneck')(x)
    for scale in reversed(range(len(self.widths))):
      width = self.widths[scale]
      for number in range(self.num_blocks[scale]):
        x = _Residual(width, self.dtype, name=f'block_{scale}_{number}')(x)
      finer = self.widths[scale - 1] if scale else 3
      x = nn.swish(_norm(self.dtype, f'norm_{scale}')(x))
      x = _doubled(_dense(4 * finer, self.dtype, f'up_{scale}')(x))
    return x


class _Residual(nn.Module):
  """A residual branch of two 3 x 3 convolutions, each after norm and swish."""

  width: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    y = x
    for number in range(2):
      y = nn.swish(_norm(self.dtype, f'norm_{number}')(y))
      y = nn.Conv(
        self.width,
        (3, 3),
        dtype=self.dtype,
        kernel_init=nn.with_logical_partitioning(
          nn.initializers.lecun_normal(), (None, None, axes.EMBED, axes.MLP)
        ),
        name=f'conv_{number}',
      )(y)
    return x + y


def _dense(width: int, dtype: jnp.dtype, name: str) -> nn.Dense:
  return nn.Dense(width, dtype=dtype, name=name)


def _norm(dtype: jnp.dtype, name: str) -> nn.GroupNorm:
  return nn.GroupNorm(8, dtype=dtype, name=name)


def _halved(x: Array) -> Array:
  """Halves the size: [B, Y, X, C] to [B, Y / 2, X / 2, 4 C]."""
  rows, height, width, channels = x.shape
  x = x.reshape(rows, height // 2, 2, width // 2, 2, channels)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(
    rows, height // 2, width // 2, 4 * channels
  )


def _doubled(x: Array) -> Array:
  """The inverse of `_halved`: [B, Y, X, 4 C] to [B, 2 Y, 2 X, C]."""
  rows, height, width, channels = x.shape
  x = x.reshape(rows, height, width, 2, 2, channels // 4)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(
    rows, 2 * height, 2 * width, channels // 4
  )
