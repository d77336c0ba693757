"""Rotary position embedding."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers.position import Rope, rotate

rotated = jax.jit(rotate)


def test_the_pairs_turn_by_the_position_and_by_a_hundredth_of_it():
  # With H = 4 the frequencies are 10000 ** 0 = 1 and 10000 ** (-2 / 4) = 0.01.
  # Feature 0 pairs with 2, feature 1 with 3. (1, 0) rotated by a is (cos a,
  # sin a).
  x_BTNH = np.array([1, 1, 0, 0], 'f4').reshape(1, 1, 1, 4)
  y = rotated(x_BTNH, np.array([[2]], np.int32))[0, 0, 0]
  expected = [math.cos(2), math.cos(0.02), math.sin(2), math.sin(0.02)]
  np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_position_zero_changes_nothing():
  x_BTNH = np.random.RandomState(0).randn(1, 2, 3, 8).astype('f4')
  y_BTNH = rotated(x_BTNH, np.zeros((1, 2), np.int32))
  np.testing.assert_array_equal(y_BTNH, x_BTNH)


def test_products_depend_on_the_distance_alone():
  random = np.random.RandomState(0)
  q, k = (random.randn(1, 1, 1, 8).astype('f4') for _ in range(2))
  at = lambda x, place: rotated(x, np.array([[place]], np.int32))
  product = lambda i, j: float(np.sum(np.asarray(at(q, i) * at(k, j))))
  assert product(9, 4) == pytest.approx(product(105, 100), abs=1e-4)
  assert product(9, 4) != pytest.approx(product(9, 5), abs=1e-2)


def test_shape_and_dtype_are_kept():
  x_BTNH = jax.ShapeDtypeStruct((2, 3, 4, 8), jnp.bfloat16)
  positions_BT = jax.ShapeDtypeStruct((2, 3), jnp.int32)
  assert jax.eval_shape(rotate, x_BTNH, positions_BT) == x_BTNH


def test_an_odd_head_width_is_refused():
  with pytest.raises(ValueError, match='HEAD_DIM=5 must be even'):
    rotate(jnp.zeros((1, 1, 1, 5)), jnp.zeros((1, 1), jnp.int32))


def turn(rope, position, width=8):
  x_BTNH = np.random.RandomState(0).randn(1, 1, 1, width).astype('f4')
  positions_BT = np.array([[position]], np.int32)
  return x_BTNH, jax.jit(rotate, static_argnums=2)(x_BTNH, positions_BT, rope)


def test_linear_scaling_makes_every_place_so_much_nearer():
  rope = Rope(scaling='linear', factor=4.0)
  np.testing.assert_allclose(
    turn(rope, 20)[1], turn(Rope(), 5)[1], rtol=1e-5, atol=1e-6
  )


def test_a_share_leaves_the_other_features_as_they_are():
  x, turned = turn(Rope(share=0.5), 3)
  np.testing.assert_array_equal(turned[..., 4:], x[..., 4:])
  np.testing.assert_array_equal(
    turned[..., :4], rotated(x[..., :4], np.array([[3]], np.int32))
  )


def test_yarn_keeps_fast_pairs_and_slows_slow_ones_down():
  # There are 64 features, so 32 pairs, with base 10000. Within the original
  # length of 128, pair i turns 128 / (2 pi 10000 ** (i / 32)) times. Pair 0
  # turns 20.4 times, which is more than beta_fast = 8; pair 31 turns less than
  # once. Pair floor(32 ln(128 / (16 pi)) / ln 10000) = 3 and all earlier pairs
  # do not change. Pair ceil(32 ln(128 / (2 pi)) / ln 10000) = 11 and all later
  # pairs turn 4 times slower.
  rope = Rope(scaling='yarn', factor=4.0, original_length=128, beta_fast=8.0)
  ratio = np.asarray(rope.frequencies(64) / Rope().frequencies(64))
  np.testing.assert_allclose(ratio[:4], 1.0, rtol=1e-6)
  np.testing.assert_allclose(ratio[11:], 0.25, rtol=1e-6)
  assert (np.diff(ratio[3:12]) < 0).all()
  # The YaRN paper multiplies rotated features by 0.1 ln(4) + 1 = 1.1386.
  assert rope.amplitude == pytest.approx(1.1386, abs=1e-4)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'scaling': 'ntk'}, "scaling='ntk' must be one of"),
    ({'scaling': 'linear', 'factor': 0.5}, 'factor=0.5 must be at least'),
    ({'scaling': 'yarn', 'factor': 2.0}, 'needs Rope.original_length'),
    ({'base': 1.0}, 'base=1.0 must be above 1'),
    ({'share': 0.0}, 'share=0.0 must be above 0'),
  ],
)
def test_positions_that_mean_nothing_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    Rope(**options)
