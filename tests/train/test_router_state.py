"""Steps change the state of routers, and checkpoints hold it."""

import functools

import jax
import numpy as np
import optax
import pytest

from moe.checkpoint import restore
from moe.checkpoint.save import Checkpointer
from moe.optim import optimizers
from moe.parallel.mesh import MeshShape
from moe.routing import gates
from tests.train import programs

RATE = 0.01
MOE = dict(router=functools.partial(gates.Sigmoid, bias_rate=RATE))
ADAMW = optimizers.build(optimizers.adamw(optax.constant_schedule(0.1)))


def bias_of(state):
  """The routers' biases [L, E] of the L sparse layers."""
  return jax.device_get(state['stack']['periods']['block_0']['moe']['router'])[
    'bias_E'
  ]


@pytest.fixture(scope='module')
def alone():
  """A program on one device."""
  return programs.make(MOE, programs.ONE)


@pytest.fixture(scope='module')
def first_step(alone):
  """(state, metrics) after a step on one device."""
  ts, metrics = programs.train(alone)
  return jax.device_get(ts), metrics


@pytest.mark.slow
@pytest.mark.parametrize(
  'shape, num_microbatches', [(programs.ONE, 2), (programs.EIGHT, 1)]
)
def test_a_loss_free_bias_moves_alike_on_any_devices_and_microbatches(
  first_step, shape, num_microbatches
):
  ts, metrics = first_step
  # The bias starts at 0. The step adds the rate for a load below the mean load
  # of the whole batch, and subtracts the rate for a load above the mean.
  load_LE = metrics['load'][0]
  expected_LE = RATE * np.sign(load_LE.mean(axis=1, keepdims=True) - load_LE)
  assert len(np.unique(expected_LE)) >= 2
  np.testing.assert_allclose(bias_of(ts.state), expected_LE, rtol=1e-6)
  other = programs.make(MOE, shape, num_microbatches)
  other_ts, other_metrics = programs.train(other)
  np.testing.assert_array_equal(other_metrics['load'][0], load_LE)
  np.testing.assert_array_equal(bias_of(other_ts.state), bias_of(ts.state))
  # The second step changes the bias by the rate again.
  after, _ = programs.train(other, other_ts)
  moved_LE = np.abs(bias_of(after.state) - expected_LE)
  assert moved_LE.max() == pytest.approx(RATE, rel=1e-4)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """(a random state, the directory of the checkpoint that 4 devices wrote)."""
  program = programs.make(MOE, MeshShape(data=1, expert=4), optimizer=ADAMW)
  random = np.random.RandomState(0)

  def draw(a):
    values = random.uniform(1, 100, a.shape).astype(a.dtype)
    return jax.device_put(values, a.sharding)

  ts = jax.tree.map(draw, programs.start(program))
  directory = tmp_path_factory.mktemp('run')
  saver = Checkpointer(directory)
  saver.save(7, ts, {'seed': 0})
  saver.close()
  return jax.device_get(ts), directory


def assert_same(got, wanted):
  assert jax.tree.structure(got) == jax.tree.structure(wanted)
  jax.tree.map(np.testing.assert_array_equal, got, wanted)


@pytest.mark.slow
@pytest.mark.parametrize('expert', [1, 2])
def test_a_whole_state_moves_between_sizes_of_the_expert_axis(saved, expert):
  ts, directory = saved
  shape = MeshShape(data=2, expert=expert)
  program = programs.make(MOE, shape, optimizer=ADAMW)
  got, _ = Checkpointer(directory).restore(None, program.abstract)
  assert bias_of(got.state).any()
  assert_same(jax.device_get(got), ts)
  up = got.params['stack']['periods']['block_0']['moe']['w_up_EDF']
  # The dims are [layers, experts, ...]. The expert axis divides the 4 experts.
  assert {s.data.shape[1] for s in up.addressable_shards} == {4 // expert}


def initial(directory, program, assignment=()):
  """(initial state of a new run, this state after a checkpoint is loaded)."""
  ts = programs.start(program)
  params, state, meta = restore.load_initial(
    directory, ts.params, ts.state, assignment
  )
  assert meta['step'] == 7
  return ts, ts._replace(params=params, state=state)


def test_a_new_run_begins_with_the_bias_of_its_router(saved, alone):
  theirs, directory = saved
  _, given = initial(directory, alone)
  assert_same(jax.device_get(given.params), theirs.params)
  assert_same(jax.device_get(given.state), theirs.state)


def test_the_state_of_another_router_is_loaded_where_it_fits(saved):
  theirs, directory = saved
  # The state of this router is a bias, a price and a count, without a load.
  program = programs.make(dict(router=gates.Quantile), programs.ONE)
  _, given = initial(directory, program)
  router = given.state['stack']['periods']['block_0']['moe']['router']
  np.testing.assert_array_equal(router['bias_E'], bias_of(theirs.state))
  assert not np.any(router['price_E']) and not np.any(router['tokens'])


def test_a_router_without_state_loads_none(saved):
  program = programs.make(dict(router=gates.TopK), programs.ONE)
  _, given = initial(saved[1], program)
  assert not jax.tree.leaves(given.state)


def test_a_router_with_new_weights_keeps_its_own_bias(saved, alone):
  ts, given = initial(saved[1], alone, [('.*/moe/router', None)])
  assert_same(given.state, ts.state)
  moe = given.params['stack']['periods']['block_0']['moe']
  own = ts.params['stack']['periods']['block_0']['moe']
  np.testing.assert_array_equal(moe['router'], own['router'])
  assert np.any(moe['w_up_EDF'] != own['w_up_EDF'])


def test_state_follows_its_parameter_to_another_path(saved, alone):
  theirs, directory = saved
  ts = programs.start(alone)
  params, state, _ = restore.load_initial(
    directory,
    {'tower': ts.params['stack']},
    {'tower': ts.state['stack']},
    [('tower/(.*)', r'stack/\1')],
  )
  assert_same(jax.device_get(params['tower']), theirs.params['stack'])
  assert_same(jax.device_get(state['tower']), theirs.state['stack'])
