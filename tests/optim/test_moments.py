import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe.optim import moments, optimizers, rounding

CONSTANT = optax.constant_schedule(0.1)


def draws(shape, step=0):
  return rounding.bits(shape, 0, jnp.int32(step), 0, 0)


def test_signed_codes_are_127ths_of_the_largest_of_their_block():
  # Blocks have 128 numbers. The largest number of the second block is 254 = 2 x
  # 127, so code 1 stands for 2.
  x = np.zeros((1, 256), 'f4')
  x[0, :3] = 1.0, -127.0, 50.0
  x[0, 128:131] = 254.0, -2.0, 100.0
  codes, scale = moments.encode_signed(x, jnp.zeros(x.shape, jnp.uint32))
  assert codes.dtype == jnp.int8 and codes.shape == (1, 256)
  np.testing.assert_array_equal(scale, [[127.0, 254.0]])
  assert codes[0, :3].tolist() == [1, -127, 50]
  assert codes[0, 128:131].tolist() == [127, -1, 50]
  np.testing.assert_allclose(moments.decode_signed(codes, scale), x, rtol=1e-6)


def test_positive_codes_halve_every_eight_and_never_become_zero():
  x = np.array([[1.0, 0.5, 0.25, 1e-30, 0.0]], 'f4')
  codes, scale = moments.encode_positive(x, jnp.zeros(x.shape, jnp.uint32))
  assert codes.dtype == jnp.uint8
  assert codes.tolist() == [[255, 247, 239, 1, 0]]
  back = np.asarray(moments.decode_positive(codes, scale))
  np.testing.assert_array_equal(back[0, :3], x[0, :3])
  assert 0 < back[0, 3] < 2.0**-31 and back[0, 4] == 0


@pytest.mark.parametrize('kind', ['signed', 'positive'])
def test_codes_are_unbiased(kind):
  encode = getattr(moments, f'encode_{kind}')
  decode = getattr(moments, f'decode_{kind}')
  row = np.random.RandomState(0).uniform(0.01, 1.0, 128).astype('f4')
  if kind == 'signed':
    row = row * np.where(np.arange(128) % 2, 1, -1).astype('f4')
  x = np.broadcast_to(row, (4096, 128))
  back = np.asarray(decode(*encode(x, draws(x.shape))), 'f8')
  step = 1 / 127 if kind == 'signed' else np.abs(row) / 8
  # The standard deviation of a rounded number is at most half a step. The
  # standard deviation of the mean of 4,096 rows is 64 times smaller.
  assert np.all(np.abs(back.mean(axis=0) - row) < 5 * step / 2 / 64)
  assert np.all(np.abs(back - x) <= step * 1.001)


def test_blocks_are_whole_rows_where_128_does_not_divide_them():
  state = jax.eval_shape(
    moments.scale_by_adam(0.9, 0.95, 1e-8, 'int8').init,
    {'a': jnp.zeros((3, 384)), 'b': jnp.zeros((5, 100)), 'c': jnp.zeros(7)},
  )
  assert {k: s.shape for k, s in state.mu_scale.items()} == {
    'a': (3, 3),
    'b': (5, 1),
    'c': (1,),
  }
  assert state.mu['a'].dtype == jnp.int8 and state.mu['a'].shape == (3, 384)


def trained(moment_dtype, steps=60):
  """Trains on noisy quadratic losses; returns (parameters, state, target)."""
  optimizer = optimizers.build(
    optimizers.adamw(CONSTANT, weight_decay=0.0, moment_dtype=moment_dtype),
    clip_norm=0,
  )
  target = jnp.asarray(np.random.RandomState(0).randn(8, 256), jnp.float32)
  params = {'w': jnp.zeros((8, 256)), 'scale': jnp.zeros(256)}

  def body(carry, key):
    params, state = carry
    noise = jax.random.normal(key, target.shape)
    grads = {
      'w': params['w'] - target + 0.3 * noise,
      'scale': params['scale'] - 1.0,
    }
    updates, state = optimizer.update(grads, state, params)
    return (optax.apply_updates(params, updates), state), None

  keys = jax.random.split(jax.random.key(0), steps)
  run = jax.jit(lambda c: jax.lax.scan(body, c, keys)[0])
  params, state = run((params, optimizer.init(params)))
  return params, state, target


@pytest.mark.parametrize('moment_dtype', ['bfloat16', 'int8'])
def test_moments_in_few_bits_take_the_steps_of_float32_moments(moment_dtype):
  whole, _, target = trained('float32')
  small, _, _ = trained(moment_dtype)
  loss = lambda params: float(jnp.mean((params['w'] - target) ** 2))
  assert loss(whole) < 0.1
  assert loss(small) == pytest.approx(loss(whole), rel=0.1)
  gap = small['w'] - whole['w']
  assert 0 < float(jnp.abs(gap).mean()) < 0.05
  # The moments of norm scales stay in float32.
  np.testing.assert_allclose(small['scale'], whole['scale'], rtol=1e-6)


@pytest.mark.parametrize('moment_dtype, most', [('bfloat16', 4), ('int8', 2.1)])
def test_moments_take_the_bytes_of_their_format(moment_dtype, most):
  optimizer = optimizers.build(
    optimizers.adamw(CONSTANT, moment_dtype=moment_dtype)
  )
  params = {'w': jax.ShapeDtypeStruct((64, 1024), jnp.float32)}
  state = jax.eval_shape(optimizer.init, params)
  num_bytes = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state))
  assert num_bytes / params['w'].size < most + 0.01


@pytest.mark.parametrize('moment_dtype', ['bfloat16', 'int8'])
def test_a_second_moment_forgets_old_gradients(moment_dtype):
  # Codes of 'int8' are up to 12.5% apart. So rounding to the nearest code could
  # keep a number for ever: 0.95 x 1.125 = 1.069 is nearer to 1.125 than to 1.
  adam = moments.scale_by_adam(0.9, 0.95, 1e-8, moment_dtype)
  params = {'w': jnp.zeros((4, 128))}
  # In the first step all numbers have the gradient 1. Then only one number of
  # each block has it, so the scale of the block does not fall with the others.
  keeps = jnp.zeros((4, 128)).at[:, 0].set(1.0)

  def body(state, grads):
    return adam.update({'w': grads}, state)[1], None

  first = jnp.ones((1, 4, 128))
  grads = jnp.concatenate([first, jnp.broadcast_to(keeps, (40, 4, 128))])
  state = jax.jit(lambda s: jax.lax.scan(body, s, grads)[0])(adam.init(params))
  nu = state.nu['w'].astype(jnp.float32)
  if moment_dtype == 'int8':
    nu = moments.decode_positive(state.nu['w'], state.nu_scale['w'])
  # The expected value after 40 steps is 0.05 x 0.95^40 = 0.0064. The measured
  # value is the mean of 508 stochastically rounded numbers.
  assert float(nu[:, 1:].mean()) == pytest.approx(0.05 * 0.95**40, rel=0.1)


def test_another_moment_dtype_is_refused():
  with pytest.raises(ValueError, match="moment_dtype='int4' must be one of"):
    optimizers.adamw(CONSTANT, moment_dtype='int4')
