"""A plan lists one row for each choice of a token."""

import jax
import jax.numpy as jnp
import numpy as np

from moe.routing import token_choice


def test_first_choices_of_all_tokens_come_before_second_ones():
  # Token 0 chooses experts 4 and 5. Token 1 is padding with experts 6 and 7.
  rows = token_choice.rows_of_choices(
    jnp.array([[[4, 5], [6, 7]]], jnp.int32),
    jnp.array([[[0.4, 0.5], [0.6, 0.7]]], jnp.float32),
    jnp.array([[True, False]]),
  )
  token_GR, expert_GR, weight_GR, valid_GR, rows_GMA = map(np.asarray, rows)
  np.testing.assert_array_equal(token_GR, [[0, 1, 0, 1]])
  np.testing.assert_array_equal(expert_GR, [[4, 6, 5, 7]])
  np.testing.assert_allclose(weight_GR, [[0.4, 0.6, 0.5, 0.7]])
  np.testing.assert_array_equal(valid_GR, [[True, False, True, False]])
  np.testing.assert_array_equal(rows_GMA, [[[0, 2], [1, 3]]])


def test_rows_of_a_token_are_the_inverse_of_tokens_of_a_row():
  expert_GMA = np.random.RandomState(0).randint(0, 8, (2, 5, 3)).astype('i4')
  rows = token_choice.rows_of_choices(
    expert_GMA, np.ones((2, 5, 3), np.float32), np.ones((2, 5), bool)
  )
  token_GR, expert_GR, _, _, rows_GMA = map(np.asarray, rows)
  for g, m, a in np.ndindex(2, 5, 3):
    row = rows_GMA[g, m, a]
    assert token_GR[g, row] == m
    assert expert_GR[g, row] == expert_GMA[g, m, a]
  # Each row is a choice of one token.
  np.testing.assert_array_equal(
    np.sort(rows_GMA.reshape(2, 15)), [range(15)] * 2
  )


def test_rows_have_static_shapes():
  rows = jax.eval_shape(
    token_choice.rows_of_choices,
    jax.ShapeDtypeStruct((2, 5, 3), jnp.int32),
    jax.ShapeDtypeStruct((2, 5, 3), jnp.float32),
    jax.ShapeDtypeStruct((2, 5), jnp.bool_),
  )
  assert [r.shape for r in rows] == [(2, 15)] * 4 + [(2, 5, 3)]
