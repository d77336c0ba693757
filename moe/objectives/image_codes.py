"""The objective of an image tokenizer: reconstructing pictures from codes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from moe import axes, bounds
from moe.models.functional import PictureFunctional
from moe.objectives.objective import Facts, Measure, Objective
from moe.types import Array, Batch, Field, Pair, PyTree

# A pixel belongs to the foreground if one of its channels differs from the
# background by more than this. Channels are from 0 to 1.
_GROUND = 0.1


def _psnr(sums: dict[str, Pair], facts: Facts) -> float:
  del facts
  total, weight = sums['decibels']
  return float(total / np.maximum(weight, 1e-9))


PSNR = Measure('psnr', 'dB', _psnr, is_higher_better=True)


def decibels(made: Array, pixels: Array) -> Array:
  """PSNR [B] in decibels of pictures [B, Y, X, 3] with values from 0 to 1."""
  error_B = jnp.mean(jnp.square(jnp.clip(made, 0, 1) - pixels), axis=(1, 2, 3))
  return -10 * jnp.log10(jnp.maximum(error_B, 1e-10))


def foreground(pixels: Array) -> Array:
  """Finds the pixels that differ from the mean colour of the corners.

  Args:
    pixels: float32 [B, Y, X, 3] from 0 to 1.

  Returns:
    bool [B, Y, X].
  """
  corners = pixels[:, :: pixels.shape[1] - 1, :: pixels.shape[2] - 1]
  ground = corners.mean(axis=(1, 2), keepdims=True)
  return jnp.abs(pixels - ground).max(axis=-1) > _GROUND


def image_codes(
  functional: PictureFunctional,
  shape: tuple[int, int, int],
  l1: float = 0.5,
  mse: float = 4.0,
  colour: float = 1.0,
  again: float = 1.0,
  foreground_weight: float = 1.0,
) -> Objective:
  """Makes the objective: reconstructing pictures with a small error.

  The mean error of all pixels hardly depends on small objects before a large
  background, or on a wrong hue: a tokenizer that is trained on it alone turns
  purple into grey. So pixels of the foreground have a larger weight, and the
  error of the hue is a separate term. The error of the hue is the error of a
  channel minus the mean error of the channels.

  A model that drew a picture may read it again. So the encoder should find the
  codes from which a picture was decoded. The term `again` is the mean squared
  difference between the quantised values of a picture, which are constants
  here, and those of its reconstruction, clipped as a decoded picture is. A code
  that is found again adds nothing, and has no gradient.
  Without this term, a quarter of the codes of clothes was not found again.

  Args:
    functional: the tokenizer's pure functions.
    shape: (B, Y, X) of a batch.
    l1: coefficient of the absolute error; pixels are from 0 to 1.
    mse: coefficient of the squared error.
    colour: coefficient of the absolute error of the hue.
    again: coefficient of the difference of the values of codes.
    foreground_weight: a pixel of the foreground has the weight 1 +
      foreground_weight, any other pixel 1.

  Returns:
    The objective. Its score is the PSNR, averaged over pictures.
  """
  num_rows, height, width = shape
  functional.module.grid(height, width)

  factors = {'l1': l1, 'mse': mse, 'colour': colour, 'again': again}
  for name, factor in (
    factors | {'foreground_weight': foreground_weight}
  ).items():
    bounds.within(name, factor, 'a factor of an error', least=0)

  def pixel_weights(batch: Batch) -> tuple[Array, Array]:
    pixels = batch['pictures'].astype(jnp.float32) / 255
    is_front = foreground(pixels).astype(jnp.float32)
    weights = 1 + foreground_weight * is_front
    return pixels, weights * batch['weights'][:, None, None]

  def loss(
    params: PyTree, state: PyTree, batch: Batch, key: Array | None, train: bool
  ) -> tuple[dict[str, Array], PyTree, dict[str, Pair]]:
    del key, train  # The tokenizer has neither noise nor dropout.
    pixels, weight_BYX = pixel_weights(batch)
    rows_B = batch['weights']
    made, values = functional.reconstruct(params, pixels)
    values_again = functional.reconstruct(params, jnp.clip(made, 0, 1))[1]
    change = values_again - jax.lax.stop_gradient(values)
    error = made - pixels
    hue = error - error.mean(axis=-1, keepdims=True)
    total = lambda errors: jnp.sum(errors.mean(axis=-1) * weight_BYX)
    sums = {
      'l1': total(jnp.abs(error)),
      'mse': total(jnp.square(error)),
      'colour': total(jnp.abs(hue)),
      'again': jnp.sum(jnp.square(change).mean(axis=(1, 2, 3)) * rows_B),
    }
    metrics = {
      'decibels': (jnp.sum(decibels(made, pixels) * rows_B), rows_B.sum())
    }
    return sums, state, metrics

  def weights(batch: Batch) -> dict[str, Array]:
    weight = pixel_weights(batch)[1].sum()
    return {
      'l1': weight,
      'mse': weight,
      'colour': weight,
      'again': batch['weights'].sum(),
    }

  return Objective(
    lambda key, shapes: functional.init(key, shapes['pictures']),
    functools.partial(fields, num_rows, height, width),
    loss,
    weights,
    factors,
    PSNR,
    unit='pictures',
    count=lambda batch: int(np.count_nonzero(batch['weights'])),
  )


def fields(num_rows: int, height: int, width: int) -> dict[str, Field]:
  """Declares pictures [B, Y, X, 3] and their weights [B], which are 0 or 1."""
  return {
    'pictures': Field(
      (num_rows, height, width, 3), jnp.uint8, (axes.BATCH, None, None, None)
    ),
    'weights': Field((num_rows,), jnp.float32, (axes.BATCH,)),
  }


def batch_shapes(num_rows: int, height: int, width: int) -> Batch:
  """Shapes of a batch of pictures."""
  return jax.tree.map(
    lambda f: jax.ShapeDtypeStruct(f.shape, f.dtype),
    fields(num_rows, height, width),
  )
