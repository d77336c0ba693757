import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.objectives import language
from moe.types import Extra, Layout, Outputs, TokenBatch

BATCH = TokenBatch(
  tokens=jnp.zeros((1, 4), jnp.int32),
  targets=jnp.array([[0, 1, 1, 0]], jnp.int32),
  loss_weights=jnp.array([[0.0, 1.0, 0.5, 0.0]]),
  segment_ids=jnp.array([[1, 1, 2, 0]], jnp.int32),
  positions=jnp.zeros((1, 4), jnp.int32),
  block_ids=jnp.zeros((1, 4), jnp.int32),
  modality=jnp.zeros((1, 4), jnp.int32),
)
SHAPE = BATCH.tokens.shape


class Uniform:
  """A model that gives equal logits to all ids and keeps its arguments."""

  layout = Layout()
  ids = None
  extras = (Extra('patch', (2,), 'float32'),)

  def apply(self, params, state, batch, rngs, train):
    self.rngs, self.train = rngs, train
    losses = {'load_balance': (jnp.float32(6.0), jnp.float32(3.0))}
    metrics = {'load': (jnp.ones((1, 2)), jnp.ones(1))}
    hidden = jnp.zeros((*batch.tokens.shape, 1))
    return Outputs(hidden, {'carried': 1}, None, losses, metrics)

  def head(self, params, hidden):
    return jnp.zeros((*hidden.shape[:-1], 8)) + params

  def init(self, key, batch_shapes):
    return 'params', 'state', 'axes'

  def update(self, state):
    return state


@pytest.fixture
def model():
  return Uniform()


def test_terms_are_weighted_cross_entropy_and_the_losses_of_the_model(model):
  language_model = language.language_model(model, SHAPE)
  sums, state, metrics = language_model.loss(
    jnp.zeros(()), {}, BATCH, jax.random.key(0), True
  )
  # The loss of each token is ln 8, and the weights of the tokens add up to 1.5.
  # The log-partition of each token is ln 8, too.
  np.testing.assert_allclose(sums['cross_entropy'], 1.5 * np.log(8), 1e-6)
  np.testing.assert_allclose(sums['logits_z'], 1.5 * np.log(8) ** 2, 1e-6)
  assert sums['load_balance'] == 6.0
  assert state == {'carried': 1}
  assert set(metrics) == {'load'}


def test_a_factor_of_a_loss_that_is_not_given_is_warned_of_once(model, caplog):
  language_model = language.language_model(
    model, SHAPE, router_z=0.5, router_losses=[('importance', 0.0)]
  )
  with caplog.at_level(logging.INFO, 'moe.objectives.language'):
    for _ in range(2):
      language_model.loss(jnp.zeros(()), {}, BATCH, jax.random.key(0), True)
  (message,) = caplog.messages
  assert 'no loss router_z, so its factor 0.5 does nothing' in message


def test_weights_are_known_from_the_batch_alone(model):
  weights = language.language_model(model, SHAPE).weights(BATCH)
  assert float(weights['cross_entropy']) == float(weights['logits_z']) == 1.5
  # Three of four places have a token. All three count, even if the loss weight
  # is 0.
  assert float(weights['load_balance']) == float(weights['router_z']) == 3


def test_routing_and_dropout_have_keys_of_their_own(model):
  language_model = language.language_model(model, SHAPE)
  language_model.loss(jnp.zeros(()), {}, BATCH, jax.random.key(3), True)
  assert model.train
  assert set(model.rngs) == {'router', 'dropout'}
  draws = {float(jax.random.uniform(k)) for k in model.rngs.values()}
  assert len(draws) == 2


def test_without_a_key_there_is_no_randomness(model):
  language.language_model(model, SHAPE).loss(0.0, {}, BATCH, None, False)
  assert model.rngs is None
  assert not model.train


def test_coefficients_are_those_given(model):
  language_model = language.language_model(
    model, SHAPE, 0.5, 0.25, (('importance', 0.75),), 0.125
  )
  assert language_model.coefficients == {
    'cross_entropy': 1.0,
    'load_balance': 0.5,
    'router_z': 0.25,
    'importance': 0.75,
    'logits_z': 0.125,
    'ahead': 0.3,
  }
  assert language_model.init(None, None) == ('params', 'state', 'axes')


def test_chunks_must_divide_the_sequence(model):
  language_model = language.language_model(model, SHAPE, num_chunks=3)
  with pytest.raises(ValueError, match='LOSS_CHUNKS=3'):
    language_model.loss(0.0, {}, BATCH, None, False)


def test_a_batch_has_the_extras_that_the_model_reads(model):
  shapes = language.language_model(model, SHAPE).shapes()
  patch = jax.ShapeDtypeStruct((*SHAPE, 2), jnp.float32)
  assert shapes.extras == {'patch': patch}
