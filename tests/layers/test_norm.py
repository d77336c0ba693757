"""Root-mean-square norm."""

import jax
import jax.numpy as jnp
import numpy as np

from moe.layers.norm import RMSNorm


def normalise(x, scale, **options):
  norm = RMSNorm('embed', **options)
  return jax.jit(norm.apply)({'params': {'scale': scale}}, x)


def test_the_root_mean_square_becomes_the_scale():
  # The mean square of (3, 4) is 12.5; 3 / 3.5355 = 0.8485, 4 / 3.5355 = 1.1314.
  y = normalise(np.array([[3.0, 4.0]], 'f4'), np.array([1.0, 10.0], 'f4'))
  np.testing.assert_allclose(y, [[0.8485, 11.314]], rtol=1e-4)


def test_the_size_of_the_input_does_not_matter():
  x = np.random.RandomState(0).randn(2, 8).astype('f4')
  scale = np.ones(8, 'f4')
  np.testing.assert_allclose(
    normalise(1000 * x, scale), normalise(x, scale), rtol=1e-5
  )


def test_it_is_computed_in_float32_and_given_in_its_dtype():
  # 300 ** 2 overflows float16, whose largest number is 65,504.
  x = np.full((1, 4), 300, np.float16)
  y = normalise(x, np.ones(4, 'f4'), dtype=jnp.bfloat16)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_array_equal(np.asarray(y, 'f4'), 1)


def test_shapes_are_kept_and_the_scale_is_float32():
  norm = RMSNorm('embed', dtype=jnp.bfloat16)
  x = jax.ShapeDtypeStruct((2, 3, 8), jnp.bfloat16)
  y, variables = jax.eval_shape(norm.init_with_output, jax.random.key(0), x)
  assert y == x
  scale = variables['params']['scale']
  assert scale.names == ('embed',)
  assert scale.value == jax.ShapeDtypeStruct((8,), jnp.float32)
