import jax
import jax.numpy as jnp
import numpy as np
import optax

from moe.train import state


def test_training_begins_at_step_0_with_the_optimizers_first_state():
  params = {'w': jnp.ones((2, 3))}
  ts = state.create(params, {'bias': jnp.zeros(4)}, optax.adam(1.0))
  assert ts.step.dtype == jnp.int32 and int(ts.step) == 0
  assert ts.params is params
  assert ts.state['bias'].shape == (4,)
  np.testing.assert_array_equal(ts.opt_state[0].mu['w'], np.zeros((2, 3)))


def test_numbers_of_a_tree_are_counted():
  tree = {
    'a': jnp.ones((2, 3)),
    'b': [jax.ShapeDtypeStruct((5,), jnp.int32), jnp.ones(())],
  }
  assert state.count(tree) == 6 + 5 + 1
  assert state.count({}) == 0
