import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.optim import rounding
from moe.parallel.mesh import MeshShape, make_mesh

STEP = jnp.int32(7)


def random_bits(shape, seed=0, step=STEP, index=0, stream=0):
  return rounding.bits(shape, seed, step, index, stream)


def test_bits_are_uniform_and_neighbours_are_uncorrelated():
  bits = np.asarray(random_bits((64, 1024)))
  # In 65,536 draws each of the 16 values is expected 4,096 times, with a
  # standard deviation of 62.
  for shift in (0, 12, 28):
    counts = np.bincount((bits >> shift & 15).ravel(), minlength=16)
    assert np.abs(counts - 4096).max() < 5 * 62
  u = bits / 2**32 - 0.5
  for dim in (0, 1):
    neighbours = np.mean(u * np.roll(u, 1, axis=dim)) * 12
    # A correlation of 65,536 independent pairs has a standard deviation of 1 /
    # sqrt(65,536) = 1 / 256.
    assert abs(neighbours) < 5 / 256
  # 65,536 independent draws of 32 bits have 0.5 equal pairs on average.
  assert len(np.unique(bits)) > 65_500


@pytest.mark.parametrize(
  'change', [{'seed': 1}, {'step': STEP + 1}, {'index': 1}, {'stream': 1}]
)
def test_bits_of_another_seed_step_array_or_stream_are_uncorrelated(change):
  shape = (256, 256)
  a, b = random_bits(shape), random_bits(shape, **change)
  u, v = (np.asarray(x) / 2**32 - 0.5 for x in (a, b))
  assert abs(np.mean(u * v)) * 12 < 5 / 256


def test_bits_repeat_nowhere_in_an_array_of_more_than_2_to_the_32_numbers():
  # The places of the two layers differ by 2^32, which overflows a 32-bit
  # counter. Only a corner of each layer is computed.
  corner = lambda layer: np.asarray(
    jax.jit(lambda: random_bits((65_537, 256, 256))[layer, :4, :4])()
  )
  assert not np.array_equal(corner(0), corner(65_536))


def test_rounding_goes_up_as_often_as_the_remainder_says():
  # The next bfloat16 above 1 is 1 + 1/128, so x lies a quarter of the way up.
  x = jnp.full((256, 256), 1 + 1 / 512, jnp.float32)
  rounded = np.asarray(rounding.to_bfloat16(x, random_bits(x.shape)), 'f4')
  assert set(np.unique(rounded)) == {1.0, 1 + 1 / 128}
  # The share that is rounded up has a standard deviation of 0.0017 in 65,536
  # draws.
  assert np.mean(rounded > 1) == pytest.approx(0.25, abs=5 * 0.0017)


@pytest.mark.parametrize('scale', [1e-30, 1e-3, 1.0, -40.0])
def test_rounding_is_unbiased_for_all_magnitudes_and_signs(scale):
  x = scale * (1 + jnp.arange(16, dtype=jnp.float32) / 13)[:, None]
  x = jnp.broadcast_to(x, (16, 8192))
  rounded = rounding.to_bfloat16(x, random_bits(x.shape)).astype(jnp.float32)
  error = np.mean(np.asarray(rounded, 'f8') - np.asarray(x, 'f8'), axis=1)
  # Neighbouring bfloat16 numbers differ by at most 2^-7 of x. The standard
  # deviation of a rounded number is at most half of that, 2^-8. The standard
  # deviation of the mean of 8192 numbers is sqrt(8192) = 90 times smaller.
  assert np.all(np.abs(error / np.asarray(x)[:, 0]) < 5 * 2**-8 / 90)


def test_bfloat16_numbers_and_not_finite_ones_stay():
  x = jnp.array([0.0, -1.5, 2.0**-126, jnp.inf, -jnp.inf, 3e38], jnp.float32)
  x = x.astype(jnp.bfloat16).astype(jnp.float32)
  rounded = rounding.to_bfloat16(x, jnp.full(x.shape, 0xFFFFFFFF, jnp.uint32))
  np.testing.assert_array_equal(np.asarray(rounded, 'f4'), x)
  nan = jax.lax.bitcast_convert_type(jnp.uint32(0x7FFFFFFF), jnp.float32)
  assert np.isnan(rounding.to_bfloat16(nan, jnp.uint32(0xFFFFFFFF)))


def test_updates_below_half_a_step_of_the_format_arrive_on_average():
  # The next bfloat16 above 1 is 1 + 2^-7 = 1.0078. 20 updates of 1/4096 add up
  # to 0.0049.
  params = {'w': jnp.ones((64, 64), jnp.bfloat16)}
  updates = {'w': jnp.full((64, 64), 2.0**-12)}

  def body(params, step):
    return rounding.apply_updates(params, updates, 3, step), None

  steps = jnp.arange(20, dtype=jnp.int32)
  after = jax.jit(lambda p: jax.lax.scan(body, p, steps)[0])(params)['w']
  assert after.dtype == jnp.bfloat16
  moved = np.asarray(after, 'f4').mean() - 1
  # Each of 20 steps moves a number by 2^-7 with probability 1/32, so the number
  # of moves has a standard deviation of at most sqrt(20 / 32) = 0.79. The mean
  # of 4,096 numbers has a standard deviation that is 64 times smaller.
  assert moved == pytest.approx(20 * 2**-12, abs=5 * 2**-7 * 0.79 / 64)


def test_float32_parameters_get_their_update_as_it_is():
  w, u = jnp.array([1.0, 2.0]), jnp.array([2.0**-24, 0.1])
  after = rounding.apply_updates({'w': w}, {'w': u}, 0, STEP)
  np.testing.assert_array_equal(after['w'], w + u)


def test_rounding_does_not_depend_on_how_the_array_is_divided():
  mesh = make_mesh(MeshShape(data=2, fsdp=4))
  x = np.linspace(-2, 2, 16 * 24, dtype='f4').reshape(16, 24)
  params = {
    'a': jnp.zeros(3, jnp.bfloat16),
    'w': jnp.zeros((16, 24), 'bfloat16'),
  }
  updates = {'a': jnp.zeros(3), 'w': x}
  apply = lambda p, u: rounding.apply_updates(p, u, 0, STEP)
  whole = jax.jit(apply)(params, updates)
  divided = jax.NamedSharding(mesh, jax.P('fsdp', 'data'))
  shardings = {'a': jax.NamedSharding(mesh, jax.P()), 'w': divided}
  parts = jax.jit(apply, in_shardings=(shardings, shardings))(params, updates)
  np.testing.assert_array_equal(
    np.asarray(parts['w'], 'f4'), np.asarray(whole['w'], 'f4')
  )
