"""Every loss term of a sparse model under accumulation over microbatches."""

import functools

import jax
import numpy as np
import optax
import pytest

from moe.models.functional import Functional
from moe.optim import optimizers
from moe.routing import gates
from moe.train import objective, state, step
from tests.models import factories

# Rows with more and less padding: microbatches differ in their tokens.
LENGTHS = np.array([8, 8, 3, 7, 5, 8, 1, 6])[:, None]
BATCH = factories.make_batch((np.arange(8) < LENGTHS).astype(np.int32))
# Each alone: a term that is lost beside a larger one would not be seen.
TERMS = {
  'cross_entropy': dict(load_balance=0.0, router_z=0.0),
  'z-loss': dict(load_balance=0.0, router_z=1.0),
  'balance': dict(load_balance=1.0, router_z=0.0),
}


def make(scope):
  moe = dict(router=functools.partial(gates.TopK, balance_scope=scope))
  block = factories.make_block(moe)
  return Functional(factories.make_decoder(block, num_layers=1))


def change(scope, term, num_microbatches):
  """Change of the parameters in one step of plain gradient descent."""
  model = make(scope)
  language_model = objective.language_model(model, **TERMS[term])
  if term != 'cross_entropy':
    language_model.coefficients['cross_entropy'] = 0.0
  sgd = optimizers.build(optax.sgd(1.0), clip_norm=0)
  train_step = step.make_train_step(
    language_model, sgd, lambda _: 1.0, 0, num_microbatches
  )
  params = factories.make_params(model.module, BATCH)
  carried = jax.eval_shape(lambda: model.init(jax.random.key(0), BATCH)[1])
  carried = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), carried)
  ts = state.create(params, carried, sgd)
  after, _ = jax.jit(train_step)(ts, BATCH)
  return jax.device_get(jax.tree.map(np.subtract, after.params, params))


@pytest.mark.slow
@pytest.mark.parametrize(
  'scope, term',
  [
    ('group', 'cross_entropy'),
    ('group', 'z-loss'),
    ('group', 'balance'),
    ('sequence', 'balance'),
  ],
)
def test_one_two_and_four_microbatches_have_one_gradient(scope, term):
  one, two, four = (change(scope, term, n) for n in (1, 2, 4))
  assert max(np.abs(a).max() for a in jax.tree.leaves(one)) > 1e-3
  for other in (two, four):
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
      other,
      one,
    )


@pytest.mark.slow
def test_the_global_balance_loss_depends_on_microbatches_as_it_says():
  # Its loads count the microbatches so far: with two, another gradient.
  one, two = (change('global', 'balance', n) for n in (1, 2))
  difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), one, two)
  assert max(jax.tree.leaves(difference)) > 1e-5
