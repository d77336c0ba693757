import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.modalities.image import Autoencoder
from moe.models.functional import PictureFunctional
from moe.objectives import image_codes


class Fixed:
  """A tokenizer that adds a fixed error; its only code is the mean pixel.

  A parameter `scale` multiplies the code.
  """

  module = Autoencoder()

  def __init__(self, error):
    self.error = error

  def reconstruct(self, params, pixels):
    values = pixels.mean(axis=(1, 2, 3), keepdims=True)
    values *= params.get('scale', 1.0)
    return pixels + jnp.array(self.error, jnp.float32), values


def batch(weights=(1.0, 1.0)):
  """Makes two white pictures; in the first, the middle quarter is black."""
  pictures = np.full((2, 4, 4, 3), 255, np.uint8)
  pictures[0, 1:3, 1:3] = 0
  return {'pictures': pictures, 'weights': np.array(weights, np.float32)}


def terms(error, given):
  objective = image_codes.image_codes(Fixed(error), (2, 4, 4))
  sums, _, metrics = objective.loss({}, {}, given, None, True)
  weights = objective.weights(given)
  means = {name: float(sums[name] / weights[name]) for name in sums}
  return means, weights, metrics, objective


def test_the_terms_of_a_grey_and_of_a_coloured_error():
  means, weights, _, _ = terms([-0.3, -0.3, -0.3], batch())
  # There are 32 pixels. 4 of them are foreground and have the weight 2.
  assert float(weights['l1']) == 36
  assert means['l1'] == pytest.approx(0.3, rel=1e-5)
  assert means['mse'] == pytest.approx(0.09, rel=1e-5)
  assert means['colour'] == pytest.approx(0, abs=1e-6)
  # The error (-0.3, 0, 0) has the mean -0.1. The error minus its mean is (-0.2,
  # 0.1, 0.1), with the mean absolute value 0.4 / 3.
  means, *_ = terms([-0.3, 0, 0], batch())
  assert means['colour'] == pytest.approx(0.4 / 3, rel=1e-5)


def test_the_term_again_compares_the_values_of_a_picture_and_its_copy():
  # The white picture loses 0.3. In the other one, 4 of 16 pixels are black and
  # are clipped at 0, so its mean falls by 0.3 * 12 / 16.
  means, weights, *_ = terms([-0.3] * 3, batch())
  assert float(weights['again']) == 2
  assert means['again'] == pytest.approx((0.3**2 + 0.225**2) / 2, rel=1e-5)
  means, weights, *_ = terms([-0.3] * 3, batch((1.0, 0.0)))
  assert float(weights['again']) == 1
  assert means['again'] == pytest.approx(0.225**2, rel=1e-5)


def test_the_term_again_moves_the_code_of_the_copy_alone():
  objective = image_codes.image_codes(Fixed([-0.3] * 3), (2, 4, 4))

  def loss(scale):
    sums = objective.loss({'scale': scale}, {}, batch(), None, True)[0]
    return sums['again']

  # Mean pixels: 1 and 0.7 of the copy; 0.75 and 0.525 of the copy. The
  # derivative of (scale * copy - original)^2 is 2 (copy - original) copy.
  slope = 2 * -0.3 * 0.7 + 2 * -0.225 * 0.525
  assert float(jax.grad(loss)(1.0)) == pytest.approx(slope, rel=1e-4)


def test_a_picture_of_weight_0_counts_for_nothing():
  _, weights, metrics, objective = terms([-0.1] * 3, batch((1.0, 0.0)))
  assert float(weights['l1']) == 20
  assert float(metrics['decibels'][1]) == 1
  assert objective.amount(batch((1.0, 0.0))) == 1


def test_the_score_is_the_mean_psnr_of_a_picture():
  _, _, metrics, objective = terms([-0.1] * 3, batch())
  # White pixels become darker by 0.1. Black pixels stay black, since values are
  # clipped at 0. The mean squared errors of the pictures are 0.01 x 12 / 16 and
  # 0.01, so PSNR is 21.249 and 20 dB.
  psnr = objective.score.value(metrics, {})
  assert psnr == pytest.approx((21.2494 + 20) / 2, abs=1e-3)
  assert objective.score.is_higher_better


def test_the_foreground_is_what_differs_from_the_corners():
  pixels = jnp.asarray(batch()['pictures'], jnp.float32) / 255
  front = image_codes.foreground(pixels)
  assert front[0].sum() == 4 and not front[1].any()


def test_parameters_have_a_logical_axis_for_each_dim():
  functional = PictureFunctional(Autoencoder(widths=(8,), num_blocks=(1,)))
  objective = image_codes.image_codes(functional, (2, 4, 4))
  found = {}

  def init():
    params, _, found['axes'] = objective.init(
      jax.random.key(0), objective.shapes()
    )
    return params

  params = jax.eval_shape(init)
  ranks = jax.tree.map(lambda p: p.ndim, params)
  is_axes = lambda a: isinstance(a, tuple)
  assert ranks == jax.tree.map(len, found['axes'], is_leaf=is_axes)
