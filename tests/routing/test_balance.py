"""Balance losses and statistics, against arithmetic done by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing import balance

load_balance_loss = jax.jit(balance.load_balance_loss)
router_z_loss = jax.jit(balance.router_z_loss)
choice_statistics = jax.jit(balance.choice_statistics)

# One group of two tokens that both choose expert 0.
UNEVEN = np.array([[[0.9, 0.1], [0.7, 0.3]]], np.float32)
FIRST = np.zeros((1, 2, 1), np.int32)
BOTH = np.ones((1, 2), bool)


def test_an_uneven_router_pays_more_than_an_even_one():
  # load = (1, 0); mean probability = ((.9 + .7) / 2, ...) = (.8, .2).
  # loss = 2 * (1 * .8 + 0 * .2) = 1.6, times 2 tokens = 3.2.
  total, weight = load_balance_loss(UNEVEN, FIRST, BOTH)
  assert float(total) == pytest.approx(3.2)
  assert float(weight) == 2


def test_an_even_router_pays_one():
  # load = (1/2, 1/2), mean probability = (1/2, 1/2): 2 * (1/4 + 1/4) = 1.
  even = np.full((1, 2, 2), 0.5, np.float32)
  choice = np.array([[[0], [1]]], np.int32)
  total, weight = load_balance_loss(even, choice, BOTH)
  assert float(total / weight) == pytest.approx(1.0)


def test_every_choice_of_a_token_counts():
  # Two choices each, experts (0, 1) and (0, 1): load = (1/2, 1/2), although all
  # first choices are expert 0. loss = 2 * (.5 * .8 + .5 * .2) = 1.
  choices = np.array([[[0, 1], [0, 1]]], np.int32)
  total, weight = load_balance_loss(UNEVEN, choices, BOTH)
  assert float(total / weight) == pytest.approx(1.0)


def test_padding_is_not_counted_by_the_load_balance_loss():
  padded = load_balance_loss(UNEVEN, FIRST, np.array([[False, True]]))
  # The second token alone: 2 * (1 * .7 + 0 * .3) = 1.4.
  assert float(padded[0]) == pytest.approx(1.4)
  assert float(padded[1]) == 1


def test_groups_weigh_as_much_as_their_tokens():
  # Group 0: 1.6 with 2 tokens. Group 1: its one token has (1, 0): 2 * 1 = 2.
  # sum = 1.6 * 2 + 2 * 1 = 5.2 over 3 tokens.
  probs = np.concatenate([UNEVEN, [[[1.0, 0.0], [0.2, 0.8]]]]).astype('f4')
  valid = np.array([[True, True], [True, False]])
  total, weight = load_balance_loss(probs, np.zeros((2, 2, 1), np.int32), valid)
  assert float(total) == pytest.approx(5.2)
  assert float(weight) == 3


def test_a_group_of_padding_alone_is_nothing_and_has_a_finite_gradient():
  nothing = np.zeros((1, 2), bool)
  loss = lambda probs: load_balance_loss(probs, FIRST, nothing)[0]
  total, gradient = jax.value_and_grad(loss)(UNEVEN)
  assert float(total) == 0
  np.testing.assert_array_equal(gradient, 0)


def test_disagreeing_arguments_of_the_load_balance_loss_are_refused():
  with pytest.raises(ValueError, match='must agree on groups and tokens'):
    balance.load_balance_loss(UNEVEN, np.zeros((1, 3, 1), np.int32), BOTH)


def test_z_loss_is_the_squared_log_partition_of_valid_tokens():
  # Token 0: log(1 + 3) = log 4, squared 1.9218; token 1: log(2 + 2), the same;
  # the last one is padding.
  logits = np.log(np.array([[[1, 3], [2, 2], [7, 9]]], np.float32))
  valid = np.array([[True, True, False]])
  total, weight = router_z_loss(logits, valid)
  assert float(total) == pytest.approx(2 * math.log(4) ** 2)
  assert float(weight) == 2


def test_statistics_tell_load_entropy_and_confidence():
  # Probabilities (1/4, 3/4), choices 1 then 0; (1/2, 1/2) is padding.
  probs = np.array([[[0.25, 0.75], [0.5, 0.5]]], np.float32)
  choices = np.array([[[1, 0], [0, 1]]], np.int32)
  found = choice_statistics(probs, choices, np.array([[True, False]]))
  # One valid token gives each expert one row, two rows in all.
  np.testing.assert_array_equal(found['load'][0], [1, 1])
  assert float(found['load'][1]) == 2
  # -(1/4 ln 1/4 + 3/4 ln 3/4) = .3466 + .2158 = .5623
  assert float(found['entropy'][0]) == pytest.approx(0.5623, abs=1e-4)
  assert float(found['confidence'][0]) == 0.75
  assert float(found['entropy'][1]) == float(found['confidence'][1]) == 1


def test_renaming_the_experts_changes_no_loss():
  random = np.random.RandomState(0)
  probs = random.dirichlet(np.ones(8), (2, 4)).astype(np.float32)
  choices = random.randint(0, 8, (2, 4, 2)).astype(np.int32)
  valid = np.ones((2, 4), bool)
  order = random.permutation(8)
  new_name = np.argsort(order).astype(np.int32)
  before = load_balance_loss(probs, choices, valid)
  after = load_balance_loss(probs[..., order], new_name[choices], valid)
  np.testing.assert_allclose(after, before, rtol=1e-6)


def test_losses_and_statistics_are_float32_scalars_but_for_the_load():
  probs = jax.ShapeDtypeStruct((2, 4, 8), jnp.float32)
  choices = jax.ShapeDtypeStruct((2, 4, 2), jnp.int32)
  valid = jax.ShapeDtypeStruct((2, 4), jnp.bool_)
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  loads = jax.ShapeDtypeStruct((8,), jnp.float32)
  assert jax.eval_shape(load_balance_loss, probs, choices, valid) == (
    scalar,
    scalar,
  )
  assert jax.eval_shape(router_z_loss, probs, valid) == (scalar, scalar)
  assert jax.eval_shape(choice_statistics, probs, choices, valid) == {
    'load': (loads, scalar),
    'entropy': (scalar, scalar),
    'confidence': (scalar, scalar),
  }
