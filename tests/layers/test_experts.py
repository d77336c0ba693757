"""Experts on rows sorted by expert, also in chunks, and on slots."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers import experts

E, D, F, R = 3, 4, 6, 24


def random_weights(activation='swiglu'):
  random = np.random.RandomState(0)
  shapes = {'w_up_EDF': (E, D, F), 'w_down_EFD': (E, F, D)}
  if activation == 'swiglu':
    shapes['w_gate_EDF'] = (E, D, F)
  return {k: random.randn(*s).astype('f4') for k, s in shapes.items()}


def random_rows(filled):
  """(rows, weights, gradients of outputs); all are 0 from row `filled` on."""
  random = np.random.RandomState(1)
  shapes = (R, D), (R,), (R, D)
  arrays = [random.randn(*shape).astype('f4') for shape in shapes]
  for array in arrays:
    array[filled:] = 0.0
  return arrays


def reference(weights, rows_RD, weight_R, count_E, activation):
  """Computes the output of each row with the matrices of its expert."""
  expert_R = np.repeat(np.arange(E), count_E)
  outputs = []
  for row, e in enumerate(expert_R):
    x_D = rows_RD[row]
    hidden_F = x_D @ weights['w_up_EDF'][e]
    if activation == 'swiglu':
      hidden_F *= jax.nn.silu(x_D @ weights['w_gate_EDF'][e])
    else:
      hidden_F = jax.nn.gelu(hidden_F)
    outputs.append(weight_R[row] * hidden_F @ weights['w_down_EFD'][e])
  outputs.append(jnp.zeros((R - len(outputs), D)).reshape(-1, D))
  return jnp.vstack(outputs)


@functools.cache
def with_gradients(activation, chunk):
  """A compiled function: arrays -> outputs and gradients for all arrays.

  It is compiled once for all row counts.
  """

  def apply(arrays, count_E, dy_RD):
    def runs(weights, rows_RD, weight_R):
      y_RD = experts.apply(
        weights, rows_RD, weight_R, count_E, activation, chunk
      )
      is_filled_R = jnp.arange(R) < count_E.sum()
      return jnp.where(is_filled_R[:, None], y_RD, 0.0)

    y_RD, backward = jax.vjp(runs, *arrays)
    return y_RD, *backward(dy_RD)

  return jax.jit(apply)


@pytest.mark.parametrize('chunk', [R, 12, 7, 1])
@pytest.mark.parametrize('activation', ['swiglu', 'gelu'])
@pytest.mark.parametrize(
  'count_E',
  [(8, 9, 7), (5, 0, 6), (0, 0, R), (1, 0, 0), (0, 0, 0)],
  ids=['full', 'an-empty-run', 'all-to-one', 'one-row', 'none'],
)
def test_runs_equal_the_reference_in_chunks_of_any_size(
  count_E, activation, chunk
):
  rows_RD, weight_R, dy_RD = random_rows(sum(count_E))
  arrays = random_weights(activation), rows_RD, weight_R
  found = with_gradients(activation, chunk)(arrays, jnp.array(count_E), dy_RD)
  obvious = lambda *arrays: reference(*arrays, count_E, activation)
  y_RD, backward = jax.vjp(obvious, *arrays)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    found,
    (y_RD, *backward(dy_RD)),
  )


def test_hidden_layers_are_as_long_as_a_chunk():
  rows_RD, weight_R, _ = random_rows(R)
  count_E = jnp.array((8, 9, 7))

  def loss(weights):
    y_RD = experts.apply(weights, rows_RD, weight_R, count_E, 'swiglu', 8)
    return jnp.sum(y_RD)

  program = jax.jit(jax.grad(loss)).lower(random_weights()).as_text()
  assert f'tensor<8x{F}xf32>' in program
  assert f'tensor<{R}x{F}xf32>' not in program


def test_gradients_of_matrices_are_summed_in_float32():
  # The sum of 1 and 256 terms of 2^-9 is 1.5. A bfloat16 sum would lose every
  # small term.
  weights = {
    'w_up_EDF': jnp.ones((1, 1, 1), jnp.bfloat16),
    'w_down_EFD': jnp.ones((1, 1, 1), jnp.bfloat16),
  }
  rows = 257
  dy_RD = jnp.full((rows, 1), 2.0**-9, jnp.bfloat16).at[0].set(1.0)

  def run(w_down_EFD):
    return experts.apply(
      {**weights, 'w_down_EFD': w_down_EFD},
      jnp.full((rows, 1), 8.0, jnp.bfloat16),
      jnp.full(rows, 0.125),
      jnp.array([rows]),
      'gelu',
      1,
    )

  _, backward = jax.vjp(run, weights['w_down_EFD'])
  assert backward(dy_RD)[0].item() == 1.5


def test_slots_equal_runs_of_equal_length():
  weights = random_weights()
  rows_RD, weight_R, _ = random_rows(R)
  S = R // E
  y_ESD = experts.apply(
    weights, rows_RD.reshape(E, S, D), weight_R.reshape(E, S), None, 'swiglu'
  )
  y_RD = experts.apply(weights, rows_RD, weight_R, jnp.full(E, S), 'swiglu', R)
  np.testing.assert_allclose(y_ESD.reshape(R, D), y_RD, rtol=1e-5, atol=1e-5)
