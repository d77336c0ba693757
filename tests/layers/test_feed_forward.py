"""Feed-forward networks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers import feed_forward
from moe.layers.feed_forward import FeedForward


def scalar_network(activation, up, gate, down, x):
  params = {'w_up_DF': up, 'w_gate_DF': gate, 'w_down_FD': down}
  if activation != 'swiglu':
    del params['w_gate_DF']
  params = {k: np.full((1, 1), v, 'f4') for k, v in params.items()}
  network = FeedForward(1, activation)
  y_BTD = network.apply({'params': params}, jnp.full((1, 1, 1), x))
  return y_BTD.item()


def test_swiglu_by_hand():
  # silu(1 * 2) = 2 / (1 + e^-2) = 1.76159. The factor 3 * 2 = 6 gives 10.5696,
  # and then the factor 0.5 gives the output.
  assert scalar_network('swiglu', 3.0, 1.0, 0.5, 2.0) == pytest.approx(
    5.28478, rel=1e-5
  )


def test_gelu_by_hand():
  # gelu(3 * 0.5) = 1.5 * Phi(1.5) = 1.5 * 0.93319 = 1.39979. The factor 2 gives
  # the output.
  assert scalar_network('gelu', 3.0, None, 2.0, 0.5) == pytest.approx(
    2.79957, rel=1e-3
  )


def test_tokens_do_not_touch_each_other():
  network = FeedForward(width=8)
  x_BTD = np.random.RandomState(0).randn(1, 6, 4).astype('f4')
  order = np.random.RandomState(1).permutation(6)

  random = np.random.RandomState(2)
  shapes = {'w_up_DF': (4, 8), 'w_gate_DF': (4, 8), 'w_down_FD': (8, 4)}
  params = {k: random.randn(*s).astype('f4') for k, s in shapes.items()}
  apply = jax.jit(lambda x_BTD: network.apply({'params': params}, x_BTD))
  np.testing.assert_allclose(
    apply(x_BTD[:, order]), apply(x_BTD)[:, order], rtol=1e-5, atol=1e-6
  )


def test_shapes_dtypes_and_logical_axes():
  x_BTD = jax.ShapeDtypeStruct((2, 3, 4), jnp.bfloat16)
  network = FeedForward(width=8, dtype=jnp.bfloat16)
  y_BTD, variables = jax.eval_shape(
    network.init_with_output, jax.random.key(0), x_BTD
  )
  assert y_BTD == x_BTD
  found = {
    name: (box.value.shape, box.value.dtype, box.names)
    for name, box in variables['params'].items()
  }
  inner = ((4, 8), jnp.float32, ('embed', 'mlp'))
  outer = ((8, 4), jnp.float32, ('mlp', 'embed'))
  assert found == {'w_up_DF': inner, 'w_gate_DF': inner, 'w_down_FD': outer}


@pytest.mark.parametrize('activation', sorted(feed_forward.ACTIVATIONS))
def test_a_network_has_as_many_matrices_as_it_says(activation):
  x_BTD = jax.ShapeDtypeStruct((2, 3, 4), jnp.float32)
  layer = FeedForward(8, activation)
  variables = jax.eval_shape(layer.init, jax.random.key(0), x_BTD)
  matrices = jax.tree.leaves(variables)
  assert len(matrices) == layer.anatomy().num_matrices


def test_an_unknown_activation_is_refused():
  with pytest.raises(ValueError, match="ACTIVATION='relu' must be one of"):
    FeedForward(8, 'relu').init(jax.random.key(0), jnp.zeros((1, 1, 4)))
