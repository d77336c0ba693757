import jax
import jax.numpy as jnp
import numpy as np
import optax

from moe.optim import optimizers
from moe.optim.storage import Storage
from moe.train import state


def test_training_begins_at_step_0_with_the_optimizers_first_state():
  params = {'w': jnp.ones((2, 3))}
  adam = optimizers.build(optax.adam(1.0), clip_norm=0)
  ts = state.create(params, {'bias': jnp.zeros(4)}, adam)
  assert ts.step.dtype == jnp.int32 and int(ts.step) == 0
  assert ts.params['w'] is params['w']
  assert ts.state['bias'].shape == (4,)
  np.testing.assert_array_equal(ts.opt_state[0][0].mu['w'], np.zeros((2, 3)))


def test_all_but_routers_norms_and_biases_begin_in_the_format_asked_for():
  names = ('w', 'moe/router', 'norm/scale', 'bias', 'upscale')
  params = {name: jnp.ones((2, 3)) for name in names}
  adam = optimizers.build(optax.adam(1.0), storage=Storage(params='bfloat16'))
  ts = state.create(params, {}, adam)
  found = {name: str(a.dtype) for name, a in ts.params.items()}
  low, high = 'bfloat16', 'float32'
  assert found == dict(zip(names, (low, high, high, high, low), strict=True))
  moments = jax.tree.leaves(ts.opt_state)
  assert {str(a.dtype) for a in moments} == {'float32', 'int32'}


def test_the_numbers_in_a_tree_are_counted():
  tree = {
    'a': jnp.ones((2, 3)),
    'b': [jax.ShapeDtypeStruct((5,), jnp.int32), jnp.ones(())],
  }
  assert state.count(tree) == 6 + 5 + 1
  assert state.count({}) == 0
