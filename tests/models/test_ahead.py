import functools

import jax
import numpy as np
import pytest

from moe.models.functional import Functional
from moe.objectives import language
from moe.routing import dispatch
from tests.models import factories

# Each row has two documents of 3 tokens, then padding.
BATCH = factories.make_batch([[1, 1, 1, 2, 2, 2, 0, 0]] * 2)
SHAPE = BATCH.tokens.shape


@pytest.fixture(scope='module')
def model():
  # If rows were dropped, tokens of one document could change those of another.
  block = factories.make_block({'dispatch': dispatch.Dropless})
  module = factories.make_decoder(block, decoder={'predicts_ahead': True})
  functional = Functional(module)
  params = factories.make_params(module, BATCH)
  run = jax.jit(
    lambda params, batch, train: functional.apply(
      params, {}, batch, None, train
    ),
    static_argnums=2,
  )
  return functional, params, run


def test_only_training_has_the_block_ahead(model):
  functional, params, run = model
  assert run(params, BATCH, True).ahead.shape == (*SHAPE, factories.D_MODEL)
  assert run(params, BATCH, False).ahead is None
  # Evaluation does not need the parameters of the block `ahead`.
  left = {k: v for k, v in params.items() if k != 'ahead'}
  np.testing.assert_array_equal(
    run(left, BATCH, False).hidden, run(params, BATCH, False).hidden
  )


def test_a_prediction_ahead_reads_the_next_token_and_none_after_it(model):
  _, params, run = model
  before = np.asarray(run(params, BATCH, True).ahead)
  for place, changed in ((1, [0, 1, 2]), (2, [1, 2])):
    tokens = BATCH.tokens.copy()
    tokens[:, place] = (tokens[:, place] + 1) % factories.VOCAB_SIZE
    after = np.asarray(run(params, BATCH._replace(tokens=tokens), True).ahead)
    moved = np.abs(after - before).max(axis=(0, 2)) > 1e-6
    assert np.flatnonzero(moved).tolist() == changed


def test_the_term_ahead_scores_the_target_after_the_next_one(model):
  functional, params, run = model
  objective = language.language_model(functional, SHAPE, ahead=0.1)
  sums, _, _ = jax.jit(functools.partial(objective.loss, train=True, key=None))(
    params, {}, BATCH
  )
  logits = functional.head(params, run(params, BATCH, True).ahead)
  log_probs = np.asarray(jax.nn.log_softmax(logits))
  # For the last token of a document, the token after the next one is outside of
  # the document. So only the places 0, 1, 3 and 4 count.
  wanted = sum(
    -log_probs[row, place, BATCH.targets[row, place + 1]]
    for row in range(2)
    for place in (0, 1, 3, 4)
  )
  np.testing.assert_allclose(sums['ahead'], wanted, rtol=1e-5)
  assert float(objective.weights(BATCH)['ahead']) == 8
  assert objective.coefficients['ahead'] == 0.1


def test_evaluation_has_no_term_ahead(model):
  functional, params, _ = model
  objective = language.language_model(functional, SHAPE)
  sums, _, _ = jax.jit(
    functools.partial(objective.loss, train=False, key=None)
  )(params, {}, BATCH)
  assert set(sums) >= {'cross_entropy'} and 'ahead' not in sums


def test_the_same_parameters_are_drawn_with_and_without_it():
  plain = factories.make_decoder()
  more = factories.make_decoder(decoder={'predicts_ahead': True})
  of = lambda module: jax.jit(
    lambda: Functional(module).init(jax.random.key(0), BATCH)[0]
  )()
  with_it = dict(of(more))
  assert with_it.pop('ahead')
  for a, b in zip(
    jax.tree.leaves(with_it), jax.tree.leaves(of(plain)), strict=True
  ):
    np.testing.assert_array_equal(a, b)
