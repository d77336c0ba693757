"""Gradients are exact for each loss term when microbatches are accumulated."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe.models.functional import Functional
from moe.objectives import language
from moe.optim import optimizers
from moe.routing import gates
from moe.train import state, step
from tests.models import factories
from tests.train import programs

# The rows have different padding, so microbatches differ in their tokens.
LENGTHS = np.array([8, 8, 3, 7, 5, 8, 1, 6])[:, None]
BATCH = factories.make_batch((np.arange(8) < LENGTHS).astype(np.int32))
# A large term would hide errors of a small one, so each is tested alone.
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
  language_model = language.language_model(
    model, BATCH.tokens.shape, **TERMS[term]
  )
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


def assert_close(one, other):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
    one,
    other,
  )


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
def test_one_and_four_microbatches_have_the_same_gradient(scope, term):
  one, four = (change(scope, term, n) for n in (1, 4))
  assert max(np.abs(a).max() for a in jax.tree.leaves(one)) > 1e-3
  assert_close(four, one)


class Shown(gates.TopK):
  """A router that adds its logits to the statistics."""

  def route(self, inputs, state, keys_G, train):
    plan = super().route(inputs, state, keys_G, train)
    plan.statistics['logits'] = inputs.logits_GME, jnp.ones(())
    return plan


def balance_by_definition(model, params):
  """The global load-balance loss over two microbatches, from its definition.

  A microbatch adds E times the sum over experts e of f_e * p_e. Here p_e is the
  probability of e, added over the tokens of the microbatch, and f_e is the
  share of e in the assignments of this microbatch and of those before it. The
  loss is then divided by the number of tokens of the batch.
  """
  carried = model.module.init(jax.random.key(0), BATCH).get('state', {})
  outputs = model.apply(params, carried, BATCH, None, True)
  logits_BTE = outputs.metrics['logits'][0].reshape(*BATCH.tokens.shape, -1)
  E = logits_BTE.shape[-1]
  valid_BT = (BATCH.segment_ids > 0).astype(np.float32)
  best_BTA = jnp.argsort(-logits_BTE, axis=-1)[..., :2]
  chosen_BTE = jax.nn.one_hot(best_BTA, E).sum(axis=2) * valid_BT[..., None]
  probs_BTE = jax.nn.softmax(logits_BTE, axis=-1) * valid_BT[..., None]
  # The first microbatch has the even rows, the second one the odd rows.
  count_E, loss = jnp.zeros(E), 0.0
  for part in (slice(0, None, 2), slice(1, None, 2)):
    count_E += chosen_BTE[part].sum(axis=(0, 1))
    share_E = jax.lax.stop_gradient(count_E / count_E.sum())
    loss += E * jnp.sum(share_E * probs_BTE[part].sum(axis=(0, 1)))
  return loss / valid_BT.sum()


@pytest.mark.slow
def test_the_global_balance_loss_uses_the_loads_so_far():
  shown = functools.partial(Shown, balance_scope='global')
  block = factories.make_block(dict(router=shown))
  model = Functional(factories.make_decoder(block, num_layers=1))
  params = factories.make_params(model.module, BATCH)
  gradient = jax.jit(jax.grad(lambda p: balance_by_definition(model, p)))(
    params
  )
  assert max(np.abs(a).max() for a in jax.tree.leaves(gradient)) > 1e-3
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, -b, rtol=1e-3, atol=1e-6),
    change('global', 'balance', 2),
    jax.device_get(gradient),
  )
  # A single microbatch uses the loads of the whole batch, so its gradient
  # differs.
  one, two = (change('global', 'balance', n) for n in (1, 2))
  difference = jax.tree.map(lambda a, b: np.abs(a - b).max(), one, two)
  assert max(jax.tree.leaves(difference)) > 1e-5


def changes(program):
  """Minus the gradient of a program's first step, on the host."""
  before = jax.device_get(programs.start(program).params)
  ts, _ = programs.train(program)
  return jax.tree.map(np.subtract, jax.device_get(ts.params), before)


@pytest.mark.slow
@pytest.mark.parametrize(
  'moe',
  [
    dict(router=functools.partial(gates.Switch, jitter=0.3), top_k=1),
    dict(router=gates.GShard),
  ],
  ids=['switch', 'gshard'],
)
def test_noise_of_microbatches_is_the_same_on_eight_devices_and_one(moe):
  one, eight = (
    changes(programs.make(moe, shape, 2, load_balance=1.0))
    for shape in (programs.ONE, programs.EIGHT)
  )
  assert max(np.abs(a).max() for a in jax.tree.leaves(one)) > 1e-3
  assert_close(eight, one)


@pytest.mark.slow
def test_groups_of_two_rows_stay_whole_in_microbatches():
  # Capacity and balance are per group, so other groups give another gradient.
  moe = dict(group_size=2 * programs.LENGTH)
  one, two = (
    changes(programs.make(moe, programs.ONE, n, load_balance=1.0))
    for n in (1, 2)
  )
  assert max(np.abs(a).max() for a in jax.tree.leaves(one)) > 1e-3
  assert_close(two, one)
