import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.modalities import image


@pytest.mark.parametrize(
  'levels, z, values, code',
  [
    # With half = 1, 2, 2, the digits (value x half) + half are 1, 3 and 0. The
    # code is 1 + 3 x 3 + 0 x (3 x 5).
    ([3, 5, 4], [0.25, 0.6, -7.0], [0, 0.5, -1], 10),
    ([8, 5, 5, 5], [0.1, -0.4, 0.9, 2.0], [0, -0.5, 0.5, 1], 932),
    ([8, 8, 8], [0.0, 0.0, 0.0], [0, 0, 0], 292),
  ],
)
def test_codes_are_those_of_the_published_quantiser(levels, z, values, code):
  quantised = image.quantise(jnp.array(z), levels)
  np.testing.assert_allclose(quantised, values, atol=1e-6)
  assert int(image.codes_of(quantised, levels)) == code


@pytest.mark.parametrize('levels', [(3, 4), (8, 5, 5, 5)])
def test_every_code_comes_back_from_its_values(levels):
  codes = np.arange(image.num_codes(levels))
  values = image.values_of(jnp.array(codes), levels)
  assert np.abs(values).max() <= 1
  assert np.array_equal(image.codes_of(values, levels), codes)


def test_quantisation_is_in_float32_whatever_is_given():
  z = jnp.linspace(-2, 2, 64, dtype=jnp.bfloat16)[:, None]
  assert image.quantise(z, [64]).dtype == jnp.float32
  again = image.codes_of(image.quantise(z, [64]).astype(jnp.float32), [64])
  assert np.array_equal(again, image.codes_of(image.quantise(z, [64]), [64]))


def test_gradients_pass_the_rounding():
  # tanh has the slope 1 at 0. The slope is multiplied by the bound 2 x 1.001
  # and divided by 5 // 2 = 2.
  slope = jax.grad(lambda z: image.quantise(z, [5]).sum())(jnp.zeros(1))
  np.testing.assert_allclose(slope, 1.001, rtol=1e-5)


def test_levels_below_three_are_refused():
  with pytest.raises(ValueError, match='at least 3'):
    image.Autoencoder(levels=(8, 2))


def test_pictures_that_cannot_be_halved_are_refused():
  with pytest.raises(ValueError, match='multiples of 4'):
    image.Autoencoder().grid(30, 32)


def test_decoding_the_codes_is_what_the_autoencoder_gives():
  model = image.Autoencoder((5, 5), widths=(8, 8), num_blocks=(0, 1))
  pixels = jax.random.uniform(jax.random.key(0), (2, 8, 8, 3))
  variables = model.init(jax.random.key(1), pixels)
  made, values = model.apply(variables, pixels)
  codes = model.apply(variables, pixels, method='encode')
  assert codes.shape == values.shape[:3] == (2, 2, 2)
  decoded = model.apply(variables, codes, method='decode')
  np.testing.assert_allclose(decoded, jnp.clip(made, 0, 1), atol=1e-5)


def test_a_patch_has_the_pixels_of_its_place():
  pixels = np.arange(48, dtype=np.uint8).reshape(1, 4, 4, 3)
  patches = image.patches_of(pixels, (2, 2))
  assert patches.shape == (1, 4, 12)
  # The second patch is at the top right; its first row has pixels 2 and 3.
  np.testing.assert_array_equal(patches[0, 1], [*range(6, 12), *range(18, 24)])
  # Value 0 is raised to 1, since 0 means no patch.
  assert patches[0, 0, 0] == 1
