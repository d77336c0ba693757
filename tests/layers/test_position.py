"""Rotary position embedding."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers.position import rotate

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
