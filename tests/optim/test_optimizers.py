import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe.optim import optimizers

CONSTANT = optax.constant_schedule(0.5)


def updated(optimizer, params, grads, steps=1):
  @jax.jit
  def run(params):
    state = optimizer.init(params)
    for _ in range(steps):
      updates, state = optimizer.update(grads, state, params)
      params = optax.apply_updates(params, updates)
    return params

  return run(params)


def test_a_long_gradient_is_clipped_to_the_norm():
  # The gradient (3, 4) has norm 5. After clipping to norm 2 it is (1.2, 1.6).
  optimizer = optimizers.build(optax.sgd(1.0), clip_norm=2.0)
  params = {'a': jnp.zeros(1), 'b': jnp.zeros(1)}
  grads = {'a': jnp.array([3.0]), 'b': jnp.array([4.0])}
  got = updated(optimizer, params, grads)
  np.testing.assert_allclose(got['a'], [-1.2], rtol=1e-6)
  np.testing.assert_allclose(got['b'], [-1.6], rtol=1e-6)


@pytest.mark.parametrize(('clip_norm', 'gradient'), [(10.0, 3.0), (0.0, 99.0)])
def test_a_short_gradient_and_no_clipping_leave_it_alone(clip_norm, gradient):
  optimizer = optimizers.build(optax.sgd(1.0), clip_norm=clip_norm)
  got = updated(optimizer, {'a': jnp.zeros(1)}, {'a': jnp.array([gradient])})
  assert float(got['a'][0]) == -gradient


def test_the_first_step_of_adamw_is_the_sign_and_the_decay_of_matrices():
  # In the first step m / sqrt(v) is the sign of the gradient, so a matrix w
  # becomes w - 0.5 (sign + 0.1 w).
  optimizer = optimizers.build(optimizers.adamw(CONSTANT), clip_norm=0)
  params = {
    'w': jnp.array([[2.0, -4.0]]),
    'norm': {'scale': jnp.array([2.0])},
    'bias': jnp.array([2.0]),
  }
  grads = jax.tree.map(lambda p: jnp.full_like(p, 7.0), params)
  got = updated(optimizer, params, grads)
  np.testing.assert_allclose(got['w'], [[1.4, -4.3]], rtol=1e-5)
  np.testing.assert_allclose(got['norm']['scale'], [1.5], rtol=1e-5)
  np.testing.assert_allclose(got['bias'], [1.5], rtol=1e-5)


def test_adafactor_keeps_rows_and_columns_of_large_arrays_only():
  params = {'w': jnp.ones((64, 48)), 'small': jnp.ones((8, 4))}
  optimizer = optimizers.build(optimizers.adafactor(CONSTANT))
  shapes = {
    jax.tree_util.keystr(path): leaf.shape
    for path, leaf in jax.tree_util.tree_flatten_with_path(
      jax.eval_shape(optimizer.init, params)
    )[0]
  }
  of = lambda part, name: next(
    s for k, s in shapes.items() if k.endswith(f".{part}['{name}']")
  )
  assert {of('v_row', 'w'), of('v_col', 'w')} == {(64,), (48,)}
  assert of('v', 'w') == (1,)
  assert of('v', 'small') == (8, 4)
  numbers = sum(int(np.prod(s)) for s in shapes.values())
  assert numbers < 64 * 48 / 10


def test_the_first_step_of_adafactor_goes_by_the_sign():
  # In the first step the second moment is g^2, so the update is the sign of the
  # gradient before the learning rate.
  optimizer = optimizers.build(optimizers.adafactor(CONSTANT), clip_norm=0)
  got = updated(
    optimizer, {'w': jnp.zeros((2, 2))}, {'w': jnp.array([[9.0, -1], [2, -3]])}
  )
  np.testing.assert_allclose(got['w'], [[-0.5, 0.5], [-0.5, 0.5]], rtol=1e-5)


def test_the_decay_of_adafactor_does_not_depend_on_the_rate():
  adafactor = optimizers.adafactor(CONSTANT, weight_decay=0.1)
  optimizer = optimizers.build(adafactor, clip_norm=0)
  params = {'w': jnp.full((2, 2), 4.0), 'scale': jnp.full((2,), 4.0)}
  grads = jax.tree.map(jnp.ones_like, params)
  got = updated(optimizer, params, grads)
  np.testing.assert_allclose(got['w'], np.full((2, 2), 4 - 0.5 - 0.4), 1e-5)
  np.testing.assert_allclose(got['scale'], np.full(2, 4 - 0.5), 1e-5)


def test_frozen_parts_stay_and_have_no_state():
  params = {
    'embedding': {'table': jnp.ones((4, 2))},
    'stack': {'w': jnp.ones((2, 2)), 'embedding': {'table': jnp.ones(2)}},
  }
  optimizer = optimizers.build(
    optimizers.adamw(CONSTANT), clip_norm=0, frozen=('embedding/.*',)
  )
  grads = jax.tree.map(jnp.ones_like, params)
  got = updated(optimizer, params, grads, steps=3)
  np.testing.assert_array_equal(got['embedding']['table'], np.ones((4, 2)))
  # The pattern matches only a part of 'stack/embedding/table', so this
  # parameter is trained.
  for array in jax.tree.leaves(got['stack']):
    assert np.all(np.asarray(array) < 0.5)
  state = jax.eval_shape(optimizer.init, params)
  assert (4, 2) not in {leaf.shape for leaf in jax.tree.leaves(state)}


def test_gradients_of_frozen_parts_do_not_count_in_the_norm():
  optimizer = optimizers.build(optax.sgd(1.0), 2.0, frozen=('a',))
  params = {'a': jnp.zeros(1), 'b': jnp.zeros(1)}
  grads = {'a': jnp.array([1000.0]), 'b': jnp.array([4.0])}
  got = updated(optimizer, params, grads)
  assert float(got['a'][0]) == 0.0
  np.testing.assert_allclose(got['b'], [-2.0], rtol=1e-6)


@pytest.mark.parametrize('pattern', ['embeding/.*', 'stack', 'w'])
def test_a_frozen_pattern_that_matches_nothing_in_full_is_refused(pattern):
  optimizer = optimizers.build(
    optimizers.adamw(CONSTANT), frozen=('stack/w', pattern)
  )
  with pytest.raises(ValueError, match=f"FROZEN pattern '{pattern}'"):
    jax.eval_shape(optimizer.init, {'stack': {'w': jnp.ones((2, 2))}})


def test_a_frozen_pattern_that_is_no_expression_is_refused():
  with pytest.raises(ValueError, match=r"'stack/\(' must be a regular"):
    optimizers.build(optimizers.adamw(CONSTANT), frozen=('stack/(',))
