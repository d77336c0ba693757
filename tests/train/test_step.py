import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from moe.models.functional import Functional
from moe.objectives import language
from moe.optim import optimizers
from moe.optim.storage import Storage
from moe.train import state, step

CONSTANT = optax.constant_schedule(0.25)
POISON = 15


@pytest.fixture(scope='module')
def padded(make_batch):
  """A batch whose rows have different padding and different loss weights."""
  batch = make_batch(0, B=8, T=8, V=32)
  rng = np.random.RandomState(1)
  lengths = np.array([8, 8, 8, 7, 5, 3, 1, 0])[:, None]
  is_token = np.arange(8) < lengths
  weights = rng.choice([0.0, 0.25, 1.0], (8, 8)).astype(np.float32)
  return batch._replace(
    segment_ids=is_token.astype(np.int32), loss_weights=weights * is_token
  )


def two_terms(toy):
  """The toy without noise, with a second term in which all tokens weigh 1."""

  def loss(params, state, batch, key, train):
    del key, train
    w = params['w'][batch.tokens].sum(-1)
    valid = (batch.segment_ids > 0).astype(jnp.float32)
    square = jnp.square(w - batch.targets.astype(jnp.float32) / 8)
    sums = {
      'cross_entropy': jnp.sum(batch.loss_weights * square),
      'balance': jnp.sum(valid * jnp.cos(w)),
    }
    return sums, state, {'tokens': (valid.sum(), 1.0)}

  def weights(batch):
    valid = jnp.sum(batch.segment_ids > 0, dtype=jnp.float32)
    return {'cross_entropy': batch.loss_weights.sum(), 'balance': valid}

  coefficients = {'cross_entropy': 1.0, 'balance': 0.5}
  return dataclasses.replace(
    toy, loss=loss, weights=weights, coefficients=coefficients
  )


def changes(model, batch, num_microbatches):
  """(change of the parameters, metrics) of one step."""
  sgd = optimizers.build(optax.sgd(1.0), clip_norm=0)
  train_step = step.make_train_step(model, sgd, CONSTANT, 0, num_microbatches)
  # NumPy makes parameters, since the model's initialisation compiles slowly.
  rng = np.random.RandomState(0)
  shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), batch)[:2])
  params, carried = jax.tree.map(
    lambda s: jnp.asarray(rng.normal(0, 0.5, s.shape), s.dtype), shapes
  )
  ts = state.create(params, carried, sgd)
  after, metrics = jax.jit(train_step)(ts, batch)
  return jax.tree.map(jnp.subtract, after.params, ts.params), metrics


def assert_close(got, wanted, **tolerance):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, **tolerance), got, wanted
  )


@pytest.mark.parametrize('num_microbatches', [2, 4])
def test_microbatches_give_the_gradient_of_the_whole(
  toy, padded, num_microbatches
):
  model, batch = two_terms(toy), padded._replace(tokens=padded.tokens // 2)
  whole, metrics = changes(model, batch, 1)
  parts, part_metrics = changes(model, batch, num_microbatches)
  assert float(jnp.abs(whole['w']).max()) > 0.1
  assert_close(parts, whole, rtol=1e-5, atol=1e-7)
  # Other metrics are not compared, since their weights count microbatches.
  for name in ('cross_entropy', 'balance', 'loss', 'grad_norm'):
    assert_close(part_metrics[name], metrics[name], rtol=1e-6)


def test_the_gradient_is_of_sums_over_weights_by_hand(toy, padded):
  # The gradient of both terms, each a sum divided by its weight, is compared
  # with a finite difference.
  model, batch = two_terms(toy), padded._replace(tokens=padded.tokens // 2)
  change, metrics = changes(model, batch, 2)

  def loss(shift):
    w = np.random.RandomState(0).normal(0, 0.5, (16, 8))
    w[2, 3] += shift
    moved = {'w': jnp.asarray(w, jnp.float32)}
    sums, _, _ = model.loss(moved, {}, batch, None, True)
    square = float(sums['cross_entropy']) / batch.loss_weights.sum()
    balance = float(sums['balance']) / np.count_nonzero(batch.segment_ids)
    return square + 0.5 * balance

  assert loss(0.0) == pytest.approx(float(metrics['loss'][0]), rel=1e-5)
  slope = (loss(0.01) - loss(-0.01)) / 0.02
  assert float(change['w'][2, 3]) == pytest.approx(-slope, rel=1e-2)


@pytest.mark.slow
def test_microbatches_of_a_sparse_model_give_the_gradient_of_the_whole(
  sparse_model, padded
):
  # The terms are cross-entropy, balance and both z-losses; rows differ in
  # padding and weights.
  model = language.language_model(
    Functional(sparse_model),
    (8, 8),
    load_balance=1.0,
    router_z=0.5,
    logits_z=0.1,
  )
  whole, metrics = changes(model, padded, 1)
  mean = lambda name: float(metrics[name][0] / metrics[name][1])
  wanted = mean('cross_entropy') + mean('load_balance')
  wanted += 0.5 * mean('router_z') + 0.1 * mean('logits_z')
  assert mean('loss') == pytest.approx(wanted, rel=1e-5)
  assert float(metrics['cross_entropy'][1]) == padded.loss_weights.sum()
  # One sparse layer routes 40 tokens with two choices each.
  assert float(metrics['load_balance'][1]) == 40
  assert float(metrics['load'][0].sum()) == float(metrics['load'][1][0]) == 80
  assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(whole)) > 0.1
  for num_microbatches in (2, 4):
    parts, part_metrics = changes(model, padded, num_microbatches)
    assert_close(parts, whole, rtol=1e-4, atol=2e-6)
    assert set(part_metrics) == set(metrics)
    # The exchanged bytes are counted once per microbatch.
    counted = part_metrics.pop('bytes_exchanged')[1]
    assert counted.tolist() == [num_microbatches]
    assert_close(
      part_metrics, {name: metrics[name] for name in part_metrics}, rtol=1e-5
    )


def toy_step(toy, num_microbatches=1, seed=0, optimizer=None):
  optimizer = optimizer or optimizers.build(optimizers.adamw(CONSTANT))
  train_step = step.make_train_step(
    toy, optimizer, CONSTANT, seed, num_microbatches
  )
  params, carried, _ = toy.init(jax.random.key(0), None)
  return jax.jit(train_step), state.create(params, carried, optimizer)


def assert_same(got, wanted):
  jax.tree.map(np.testing.assert_array_equal, got, wanted)


@pytest.mark.parametrize('num_microbatches', [1, 2])
def test_a_non_finite_loss_changes_nothing_but_the_step_count(
  toy, make_batch, num_microbatches
):
  train_step, ts = toy_step(toy, num_microbatches)
  ts, metrics = train_step(ts, make_batch(0))
  assert float(metrics['skipped'][0]) == 0
  bad = make_batch(1)
  bad.tokens[-1, -1] = POISON
  after, metrics = train_step(ts, bad)
  assert np.isnan(float(metrics['loss'][0]))
  assert float(metrics['skipped'][0]) == 1
  assert int(after.step) == int(ts.step) + 1 == 2
  assert_same(after._replace(step=ts.step), ts)
  # The next good step starts from the parameters before the bad one.
  after, metrics = train_step(after, make_batch(2))
  assert float(metrics['skipped'][0]) == 0
  assert float(jnp.abs(after.params['w'] - ts.params['w']).max()) > 0
  assert np.all(np.isfinite(after.params['w']))


def test_a_non_finite_gradient_of_a_finite_loss_is_skipped_too(toy, make_batch):
  def loss(params, state, batch, key, train):
    # The square root of 0 is 0, but its gradient is infinite.
    return {'cross_entropy': jnp.sqrt(params['w']).sum()}, state, {}

  train_step, ts = toy_step(dataclasses.replace(toy, loss=loss))
  ts = ts._replace(params={'w': jnp.zeros((16, 8))})
  after, metrics = train_step(ts, make_batch(0))
  assert float(metrics['loss'][0]) == 0
  assert float(metrics['skipped'][0]) == 1
  assert_same(after.params, ts.params)


@pytest.mark.parametrize(
  ('rate', 'is_broken'), [(0.1, 0), (1e18, 0), (1e38, 1), (float('nan'), 1)]
)
def test_a_step_says_whether_training_can_go_on_from_its_result(
  toy, make_batch, rate, is_broken
):
  optimizer = optimizers.build(
    optimizers.adamw(optax.constant_schedule(rate), weight_decay=0.0)
  )
  train_step, ts = toy_step(toy, optimizer=optimizer)
  _, metrics = train_step(ts, make_batch(0))
  assert float(metrics['skipped'][0]) == 0
  assert float(metrics['broken'][0]) == is_broken


def gradient_dtypes(toy, batch, storage, num_microbatches):
  """Dtypes of (parameters in the model, gradients, stored parameters)."""
  seen = []

  def loss(params, state, batch, key, train):
    seen.append(str(params['w'].dtype))
    return toy.loss(params, state, batch, key, train)

  def update(grads, state, params):
    seen.append(str(grads['w'].dtype))
    return sgd.update(grads, state, params)

  sgd = optimizers.build(optax.sgd(1.0), clip_norm=0, storage=storage)
  train_step = step.make_train_step(
    dataclasses.replace(toy, loss=loss),
    sgd._replace(update=update),
    CONSTANT,
    0,
    num_microbatches,
  )
  params, carried, _ = toy.init(jax.random.key(0), None)
  ts = state.create(params, carried, sgd)
  after, _ = jax.eval_shape(train_step, ts, batch)
  assert after.params['w'].dtype == ts.params['w'].dtype
  return seen[0], seen[-1], str(ts.params['w'].dtype)


@pytest.mark.parametrize(
  'storage, num_microbatches, expected',
  [
    (Storage(), 2, ('float32', 'float32', 'float32')),
    (Storage(grads='bfloat16'), 1, ('bfloat16', 'bfloat16', 'float32')),
    (Storage(grads='bfloat16'), 2, ('bfloat16', 'float32', 'float32')),
    (
      Storage(grads='bfloat16', sums='bfloat16'),
      2,
      ('bfloat16', 'bfloat16', 'float32'),
    ),
    (Storage(params='bfloat16'), 1, ('float32', 'float32', 'bfloat16')),
  ],
)
def test_parameters_gradients_and_their_sums_have_the_formats_asked_for(
  toy, make_batch, storage, num_microbatches, expected
):
  found = gradient_dtypes(toy, make_batch(0), storage, num_microbatches)
  assert found == expected


def test_low_memory_formats_train_as_float32_does(toy, make_batch):
  def trained(optimizer):
    train_step, ts = toy_step(toy, optimizer=optimizer)
    for i in range(30):
      ts, metrics = train_step(ts, make_batch(i % 3))
    assert float(metrics['skipped'][0]) == 0
    return float(metrics['loss'][0])

  rate = optax.constant_schedule(0.02)
  low = Storage(params='bfloat16', grads='bfloat16')
  small = trained(
    optimizers.build(optimizers.adamw(rate, moment_dtype='int8'), storage=low)
  )
  whole = trained(optimizers.build(optimizers.adamw(rate)))
  assert whole < 0.8
  assert small == pytest.approx(whole, rel=0.1)


def test_a_skipped_step_leaves_codes_scales_and_rounded_parameters(
  toy, make_batch
):
  optimizer = optimizers.build(
    optimizers.adamw(CONSTANT, moment_dtype='int8'),
    storage=Storage(params='bfloat16', grads='bfloat16'),
  )
  train_step, ts = toy_step(toy, optimizer=optimizer)
  ts, _ = train_step(ts, make_batch(0))
  bad = make_batch(1)
  bad.tokens[-1, -1] = POISON
  after, metrics = train_step(ts, bad)
  assert float(metrics['skipped'][0]) == 1
  assert_same(after._replace(step=ts.step), ts)


def test_a_state_in_host_memory_gets_the_same_updates(toy, make_batch):
  # JAX knows both kinds of memory on CPUs, so the step can run here. A real run
  # on CPUs would be refused.
  def trained(on_host):
    table = lambda params: params['a'] + params['b']['scale']

    def loss(params, *args):
      return toy.loss({'w': table(params)}, *args)

    storage = Storage(params='bfloat16', optimizer_on_host=on_host)
    adamw = optimizers.adamw(CONSTANT, moment_dtype='int8')
    optimizer = optimizers.build(adamw, storage=storage)
    train_step = jax.jit(
      step.make_train_step(
        dataclasses.replace(toy, loss=loss), optimizer, CONSTANT, 0
      )
    )
    params = {'a': jnp.ones((16, 8)), 'b': {'scale': jnp.ones(8)}}
    ts = state.create(params, {'seen': jnp.zeros(())}, optimizer)
    for i in range(2):
      ts, _ = train_step(ts, make_batch(i))
      if on_host:
        kinds = {a.sharding.memory_kind for a in jax.tree.leaves(ts.opt_state)}
        assert 'pinned_host' in kinds
    return jax.device_get(ts)

  assert_same(trained(True), trained(False))


def test_noise_depends_on_seed_step_and_microbatch_alone(toy, make_batch):
  def error(train_step, ts, at=0):
    _, metrics = train_step(ts._replace(step=jnp.int32(at)), make_batch(0))
    return float(metrics['error'][0])

  sgd = optimizers.build(optax.sgd(1.0), clip_norm=0)
  plain = toy_step(toy, optimizer=sgd)
  assert error(*plain) == error(*plain)
  others = [
    error(*plain, at=1),
    error(*toy_step(toy, seed=1, optimizer=sgd)),
    error(*toy_step(toy, num_microbatches=2, optimizer=sgd)),
  ]
  assert len({error(*plain), *others}) == 4


def test_the_step_reports_gradient_norm_and_learning_rate(toy, make_batch):
  sgd = optimizers.build(optax.sgd(1.0), clip_norm=0)
  train_step, ts = toy_step(toy, optimizer=sgd)
  after, metrics = train_step(ts, make_batch(0))
  change = ts.params['w'] - after.params['w']
  norm = float(metrics['grad_norm'][0])
  assert norm == pytest.approx(float(jnp.linalg.norm(change)), rel=1e-5)
  assert float(metrics['learning_rate'][0]) == 0.25


def test_carried_state_reaches_the_next_step(toy, make_batch):
  train_step, ts = toy_step(toy)
  for i in range(2):
    ts, _ = train_step(ts, make_batch(i))
  assert float(ts.state['seen']) == 2 * 32


def test_evaluation_has_no_noise_and_changes_nothing(toy, make_batch):
  _, ts = toy_step(toy)
  eval_step = jax.jit(step.make_eval_step(toy))
  first, second = eval_step(ts, make_batch(0)), eval_step(ts, make_batch(0))
  assert_same(first, second)
  batch = make_batch(0)
  error = ts.params['w'][batch.tokens].sum(-1) - batch.targets / 8
  nats, weight = first['cross_entropy']
  assert float(nats) == pytest.approx(float((error**2).sum()), rel=1e-5)
  assert float(weight) == 32


@pytest.mark.parametrize(
  'rows_together, expected',
  [
    (1, [[0, 2, 4, 6], [1, 3, 5, 7]]),
    (2, [[0, 1, 4, 5], [2, 3, 6, 7]]),
  ],
)
def test_microbatches_take_the_rows_in_turn(
  make_batch, rows_together, expected
):
  tokens = np.arange(8, dtype=np.int32)[:, None] + np.zeros((1, 4), np.int32)
  batch = make_batch(0)._replace(tokens=tokens)
  parts = step.split_microbatches(batch, 2, rows_together)
  assert parts.tokens[:, :, 0].tolist() == expected
  assert parts.loss_weights.shape == (2, 4, 4)


@pytest.mark.parametrize('rows_together', [1, 2])
def test_no_row_leaves_its_device_for_a_microbatch(make_batch, rows_together):
  mesh = jax.make_mesh((4,), ('data',), devices=jax.devices()[:4])
  placed = lambda *names: jax.NamedSharding(mesh, jax.P(*names))
  split = jax.jit(
    lambda batch: step.split_microbatches(batch, 2, rows_together),
    in_shardings=placed('data'),
    out_shardings=placed(None, 'data'),
  )
  text = split.lower(make_batch(0, B=16)).compile().as_text()
  assert not re.search(r'all-|collective-|reduce-scatter', text)


@pytest.mark.parametrize('num_microbatches, rows', [(3, 1), (2, 8)])
def test_a_batch_that_does_not_divide_is_refused(
  make_batch, num_microbatches, rows
):
  wanted = f'BATCH_SIZE=8.*={num_microbatches} times the {rows} rows'
  with pytest.raises(ValueError, match=wanted):
    step.split_microbatches(make_batch(0), num_microbatches, rows)
