"""The reported loss of a sparse model does not include router losses."""

import functools

import jax
import numpy as np
import pytest

from moe.models.functional import Functional
from moe.objectives import language
from moe.objectives.objective import weighted
from moe.routing import dispatch, gates
from tests.models import factories

BATCH = factories.make_batch([[1] * 5 + [2] * 3, [1] * 6 + [0] * 2])
SHAPE = BATCH.tokens.shape
FACTS = {'chars_per_token': 1.5}


def sums_of(module, params, train, **coefficients):
  """Returns ({term: (sum, weight)}, the score that people see)."""
  objective = language.language_model(Functional(module), SHAPE, **coefficients)
  loss = functools.partial(objective.loss, key=None, train=train)
  sums, _, _ = jax.jit(loss)(params, {}, BATCH)
  terms = weighted(sums, objective.weights(BATCH))
  return terms, objective.score.value(terms, FACTS)


def test_one_expert_with_the_parameters_of_the_dense_twin_has_its_loss():
  options = dict(
    num_experts=1, top_k=1, router=gates.Switch, dispatch=dispatch.Dropless
  )
  sparse = factories.make_decoder(factories.make_block(options))
  twin = factories.make_decoder(factories.make_block(options, dense_twin=True))
  params = factories.make_params(sparse, BATCH)
  layer = dict(params['stack']['periods']['block_0'])
  experts = layer.pop('moe')
  # A router with one expert always gives it weight 1. So the sparse model
  # equals a dense model with the expert's matrices. Their dims are [L, E, ...].
  layer['feed_forward'] = {
    'w_up_DF': experts['w_up_EDF'][:, 0],
    'w_gate_DF': experts['w_gate_EDF'][:, 0],
    'w_down_FD': experts['w_down_EFD'][:, 0],
  }
  copied = params | {'stack': {'periods': {'block_0': layer}}}
  for train in (True, False):
    ours, _ = sums_of(sparse, params, train)
    theirs, _ = sums_of(twin, copied, train)
    np.testing.assert_allclose(
      ours['cross_entropy'][0], theirs['cross_entropy'][0], rtol=1e-6
    )


@pytest.mark.parametrize('coefficient', [0.0, 100.0])
def test_the_score_of_training_is_that_of_evaluation_without_other_terms(
  coefficient,
):
  block = factories.make_block({'dispatch': dispatch.Dropless})
  module = factories.make_decoder(block, decoder={'predicts_ahead': True})
  params = factories.make_params(module, BATCH)
  others = ('load_balance', 'router_z', 'logits_z', 'ahead')
  coefficients = dict.fromkeys(others, coefficient)
  terms, trained = sums_of(module, params, True, **coefficients)
  # Each of these terms is above 0, but the score includes none of them.
  assert all(float(terms[name][0]) > 0 for name in others)
  _, evaluated = sums_of(module, params, False, **coefficients)
  np.testing.assert_allclose(trained, evaluated, rtol=1e-6)
  nats, weight = terms['cross_entropy']
  by_hand = float(nats / weight) / np.log(2) / 1.5
  np.testing.assert_allclose(trained, by_hand, rtol=1e-6)
