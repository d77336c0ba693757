"""Routers: what they choose, with what weight, and what they refuse."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing import gates
from moe.routing.plan import RouterInputs


def route(router, logits_GME, valid_GM=None):
  logits_GME = jnp.asarray(logits_GME, jnp.float32)
  G, M, _ = logits_GME.shape
  valid_GM = jnp.ones((G, M), bool) if valid_GM is None else valid_GM
  zeros_GM = jnp.zeros((G, M), jnp.int32)
  x_GMD = jnp.zeros((G, M, 4), jnp.float32)
  inputs = RouterInputs(x_GMD, logits_GME, zeros_GM, zeros_GM, valid_GM)
  keys_G = jax.random.split(jax.random.key(0), G)
  return router.route(inputs, None, keys_G, True)


routed = jax.jit(route, static_argnums=0)
# Probabilities 1/8, 2/8, 5/8 of one token.
LOGITS = np.log([[[1.0, 2.0, 5.0]]])


def test_the_two_best_experts_are_taken_and_their_weights_sum_to_one():
  plan = routed(gates.TopK(2), LOGITS)
  np.testing.assert_array_equal(plan.expert_GR, [[2, 1]])
  # 5/8 and 2/8 over their sum 7/8.
  np.testing.assert_allclose(plan.weight_GR, [[5 / 7, 2 / 7]], rtol=1e-6)


def test_without_renormalising_the_weights_are_the_probabilities():
  plan = routed(gates.TopK(2, renormalize=False), LOGITS)
  np.testing.assert_allclose(plan.weight_GR, [[5 / 8, 2 / 8]], rtol=1e-6)


def test_switch_takes_one_expert_with_its_probability():
  plan = routed(gates.Switch(), LOGITS)
  np.testing.assert_array_equal(plan.expert_GR, [[2]])
  np.testing.assert_allclose(plan.weight_GR, [[5 / 8]], rtol=1e-6)


@pytest.mark.parametrize(
  'router', [gates.Switch(), gates.TopK(1, renormalize=False)]
)
def test_the_gradient_of_one_choice_reaches_the_router(router):
  # p = (1/8, 2/8, 5/8); d p_2 / d logits = p_2 (delta - p)
  #   = 5/8 * (-1/8, -2/8, 3/8) = (-5, -10, 15) / 64.
  weight = lambda logits: route(router, logits).weight_GR.sum()
  gradient = jax.jit(jax.grad(weight))(jnp.asarray(LOGITS, jnp.float32))
  np.testing.assert_allclose(
    gradient, [[[-5 / 64, -10 / 64, 15 / 64]]], rtol=1e-5
  )


@pytest.mark.parametrize(
  'make',
  [
    functools.partial(gates.TopK, 1),
    functools.partial(gates.TopK, num_active=1, renormalize=True),
  ],
)
def test_one_renormalised_choice_is_refused(make):
  with pytest.raises(ValueError, match='renormalize=False'):
    make()


def test_more_choices_than_experts_are_refused():
  with pytest.raises(ValueError, match='TOP_K=4 must be at most NUM_EXPERTS=3'):
    route(gates.TopK(4), LOGITS)


def test_switch_with_two_choices_is_refused():
  with pytest.raises(ValueError, match='TOP_K=2'):
    gates.Switch(2)


def test_of_equal_experts_the_first_are_taken():
  plan = routed(gates.TopK(2), np.zeros((2, 3, 4)))
  # Row order: the first choices of all tokens, then the second ones.
  np.testing.assert_array_equal(plan.expert_GR, [[0] * 3 + [1] * 3] * 2)


def test_padding_has_no_valid_row_and_does_not_move_the_others():
  logits = np.random.RandomState(0).randn(1, 4, 4)
  other = logits.copy()
  other[0, 2] = 100.0
  valid = np.array([[True, True, False, True]])
  plan, same = (routed(gates.TopK(2), a, valid) for a in (logits, other))
  token_R = np.asarray(plan.token_GR[0])
  np.testing.assert_array_equal(plan.valid_GR[0], token_R != 2)
  for name in plan.losses:
    assert float(plan.losses[name][1]) == 3
    np.testing.assert_array_equal(plan.losses[name], same.losses[name])
  for name in plan.statistics:
    jax.tree.map(
      np.testing.assert_array_equal,
      plan.statistics[name],
      same.statistics[name],
    )


def test_renaming_the_experts_renames_the_choices():
  logits = np.random.RandomState(1).randn(2, 4, 8)
  order = np.random.RandomState(2).permutation(8)
  plan = routed(gates.TopK(2), logits)
  renamed = routed(gates.TopK(2), logits[..., order])
  np.testing.assert_array_equal(order[renamed.expert_GR], plan.expert_GR)
  np.testing.assert_allclose(renamed.weight_GR, plan.weight_GR, rtol=1e-6)


def test_a_plan_has_k_rows_per_token():
  plan = jax.eval_shape(
    lambda logits: route(gates.TopK(2), logits),
    jax.ShapeDtypeStruct((3, 4, 8), jnp.float32),
  )
  rows = ('token_GR', 'expert_GR', 'weight_GR', 'valid_GR')
  dtypes = (jnp.int32, jnp.int32, jnp.float32, jnp.bool_)
  for name, dtype in zip(rows, dtypes, strict=True):
    assert getattr(plan, name) == jax.ShapeDtypeStruct((3, 8), dtype), name
  assert plan.rows_GMA == jax.ShapeDtypeStruct((3, 4, 2), jnp.int32)
  assert set(plan.losses) == {'load_balance', 'router_z'}
