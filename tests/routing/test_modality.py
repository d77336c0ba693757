"""Statistics of routing for each modality."""

import jax.numpy as jnp
import numpy as np
import pytest

from moe.routing import dispatch, exchange, modality
from moe.routing.plan import RouterInputs, RoutingPlan
from moe.routing.token_choice import plan_of_choices, rows_of_choices

# One group with two tokens of text, an image code, and padding.
INPUTS = RouterInputs(
  jnp.zeros((1, 4, 2)),
  jnp.zeros((1, 4, 2)),
  jnp.zeros((1, 4), jnp.int32),
  jnp.array([[0, 0, 1, 1]]),
  jnp.array([[True, True, True, False]]),
  4,
  num_modalities=2,
)
# The two tokens of text choose expert 0, and the image code chooses expert 1.
EXPERTS = jnp.array([[[0], [0], [1], [1]]])
PROBS = jnp.array([[[0.75, 0.25], [1.0, 0.0], [0.5, 0.5], [0.5, 0.5]]])


def test_statistics_count_the_tokens_of_a_modality():
  found = modality.statistics(PROBS, EXPERTS, INPUTS)
  np.testing.assert_allclose(found['load_text'][0], [2, 0])
  np.testing.assert_allclose(found['load_image'][0], [0, 1])
  np.testing.assert_allclose(found['confidence_text'], (1.75, 2))
  np.testing.assert_allclose(found['entropy_image'], (np.log(2), 1), rtol=1e-6)
  assert 'load_protein' not in found


@pytest.mark.parametrize(('number', 'is_told_apart'), [(1, False), (2, True)])
def test_a_plan_has_them_where_modalities_are_told_apart(number, is_told_apart):
  inputs = INPUTS._replace(num_modalities=number)
  weights = jnp.ones((1, 4, 1))
  plan = plan_of_choices(inputs, PROBS, EXPERTS, weights, {})
  assert ('load_image' in plan.statistics) == is_told_apart


@pytest.mark.parametrize(
  ('factor', 'lost'),
  [
    (0.5, 1.0),  # Each expert has one slot, so a token of text is dropped.
    (1.0, 0.0),
  ],
)
def test_drops_belong_to_the_modality_of_the_token(factor, lost):
  weights = jnp.ones((1, 4, 1))
  rows = rows_of_choices(EXPERTS, weights, INPUTS.valid_GM)
  plan = RoutingPlan(*rows, losses={}, statistics={})
  exchanger = exchange.AllToAll()
  arrived = exchanger.send(
    INPUTS.x_GMD,
    plan,
    dispatch.Sorted(factor),
    exchange.ExpertPlacement(2, 1.0),
  )
  experts_GM = exchange.experts_of_tokens(exchanger, arrived)
  found = modality.drops(INPUTS, plan, experts_GM)
  np.testing.assert_allclose(found['dropped_text'], (lost, 2))
  np.testing.assert_allclose(found['dropped_image'], (0, 1))
