"""A model as pure functions, on one device and on eight."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.models import functional
from moe.models.decoder import Decoder
from moe.models.functional import Functional
from moe.objectives import language
from moe.parallel import mesh as mesh_lib
from moe.parallel import rules, shardings
from moe.routing import dispatch, gates
from tests.models import factories

# The capacity is 1.5 * 4 * 2 / 4 = 3 slots for groups of 4 tokens, so some rows
# are dropped.
MODULE = factories.make_decoder(
  factories.make_block(
    moe=dict(dispatch=functools.partial(dispatch.Sorted, 1.5), shared_d_ff=4)
  )
)
BATCH = factories.make_batch(
  [[1] * 8, [1] * 8, [1] * 3 + [2] * 5, [1] * 5 + [0] * 3] * 2
)


def logical_axes():
  found = {}

  def init():
    found['params'], found['state'], found['axes'] = Functional(MODULE).init(
      jax.random.key(0), BATCH
    )
    return found['params'], found['state']

  params, state = jax.eval_shape(init)
  return params, state, found['axes']


def test_every_dim_of_every_parameter_has_a_logical_axis_or_none():
  params, state, axes = logical_axes()
  assert state == {}
  is_axes = lambda a: isinstance(a, tuple)
  assert jax.tree.structure(params) == jax.tree.structure(axes, is_leaf=is_axes)
  for leaf, names in zip(
    jax.tree.leaves(params), jax.tree.leaves(axes, is_leaf=is_axes), strict=True
  ):
    assert len(names) == leaf.ndim
  assert axes['embedding']['table'] == ('vocab', 'embed')
  sparse = axes['stack']['periods']['block_0']['moe']
  assert sparse['w_down_EFD'] == ('layers', 'expert', 'expert_mlp', 'embed')
  assert sparse['router'] == ('layers', 'embed', None)


def test_shapes_are_enough_to_initialise():
  batch_shapes = jax.tree.map(
    lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), BATCH
  )
  init = lambda batch: Functional(MODULE).init(jax.random.key(0), batch)[:2]
  by_shapes = jax.eval_shape(lambda: init(batch_shapes))
  assert by_shapes == jax.eval_shape(lambda: init(BATCH))


def test_cache_shapes_take_the_compute_dtype():
  module = factories.make_decoder(
    num_layers=3, num_dense_prefix=1, decoder=dict(dtype='bfloat16')
  )
  one = lambda *lead: jax.ShapeDtypeStruct((*lead, 2, 20, 2, 8), jnp.bfloat16)
  assert Functional(module).cache_shapes(2, 20) == {
    'prefix': ((one(), one()),),
    'periods': ((one(2), one(2)),),
  }


def trained(mesh_shape, num_devices):
  """Returns ((loss, outputs), gradients) as NumPy arrays.

  They are computed from parameters and a batch that are placed as in training.
  """
  mesh = mesh_lib.make_mesh(mesh_shape, jax.devices()[:num_devices])
  table = rules.table('standard')
  f = functional.make_functional(
    MODULE, rules.activation_rules(table), rules.layout(table, mesh)
  )

  def loss(params, batch):
    outputs = f.apply(params, {}, batch, None, True)
    log_probs = jax.nn.log_softmax(f.head(params, outputs.hidden))
    chosen = jnp.take_along_axis(log_probs, batch.targets[..., None], axis=-1)
    total = -jnp.sum(chosen[..., 0] * batch.loss_weights)
    for sum_, weight in outputs.losses.values():
      total += 10.0 * sum_ / weight
    # One device sends no bytes, so this metric depends on the number of
    # devices.
    outputs.metrics.pop('bytes_exchanged')
    return total, outputs

  with jax.set_mesh(mesh):
    params = factories.make_params(MODULE, BATCH)
    placed = shardings.param_shardings(params, logical_axes()[2], table, mesh)
    batch = jax.device_put(
      BATCH, shardings.batch_shardings(language.fields(8, 8), table, mesh)
    )
    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return jax.tree.map(np.asarray, run(jax.device_put(params, placed), batch))


@pytest.fixture(scope='module')
def one_device():
  return trained(mesh_lib.MeshShape(), 1)


@pytest.mark.slow
def test_eight_devices_equal_one(one_device):
  eight = trained(mesh_lib.MeshShape(fsdp=2, expert=2, model=2), 8)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4),
    eight,
    one_device,
  )


def test_experts_of_a_placed_model_exchange_their_rows():
  mesh = mesh_lib.make_mesh(mesh_lib.MeshShape(data=2, expert=4))
  table = rules.table('standard')
  placed = functional.make_functional(
    MODULE, rules.activation_rules(table), rules.layout(table, mesh)
  )
  params = factories.make_params(MODULE, BATCH)

  def program(f):
    run = lambda params: f.apply(params, {}, BATCH, None, True).hidden
    with jax.set_mesh(mesh):
      return str(jax.make_jaxpr(run)(params))

  assert 'all_to_all' in program(placed)
  assert 'all_to_all' not in program(Functional(MODULE))


def test_statistics_are_those_of_each_layer(one_device):
  (_, outputs), _ = one_device
  tokens = (BATCH.segment_ids > 0).sum()
  load_LE, rows_L = outputs.metrics['load']
  np.testing.assert_array_equal(rows_L, [2 * tokens] * 2)
  np.testing.assert_array_equal(load_LE.sum(axis=-1), rows_L)
  assert np.abs(load_LE[0] - load_LE[1]).max() > 0
  assert outputs.metrics['dropped'][0].min() > 0
  for _, weight in outputs.losses.values():
    assert weight == tokens


def test_every_parameter_gets_a_gradient(one_device):
  gradients = one_device[1]
  for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
    assert np.abs(gradient).max() > 0, jax.tree_util.keystr(path)


class Towers(nn.Module):
  """A model of two decoders; each of them updates its own state."""

  fast: Decoder
  slow: Decoder

  def update_state(self, state):
    return {
      'fast': self.fast.update_state(state['fast']),
      'slow': self.slow.update_state(state['slow']),
    }


def test_each_router_updates_its_own_state():
  def tower(rate):
    router = functools.partial(gates.Sigmoid, bias_rate=rate)
    return factories.make_decoder(factories.make_block(dict(router=router)))

  def state_of(decoder):
    shapes = jax.eval_shape(
      lambda: Functional(decoder).init(jax.random.key(0), BATCH)[1]
    )
    state = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), shapes)
    # The router counted 8 rows for the first of four experts in both layers,
    # and none for the others.
    node = state['stack']['periods']['block_0']['moe']['router']
    node['load_E'][:, 0] = 8
    return state

  fast, slow = tower(0.5), tower(0.25)
  before = {'fast': state_of(fast), 'slow': state_of(slow)}
  after = Functional(Towers(fast, slow)).update(before)
  assert jax.tree.structure(after) == jax.tree.structure(before)
  for name, rate in (('fast', 0.5), ('slow', 0.25)):
    router = after[name]['stack']['periods']['block_0']['moe']['router']
    # The bias of the first expert falls by the decoder's rate, and the other
    # biases rise by this rate.
    want_LE = rate * np.array([[-1, 1, 1, 1]] * 2)
    np.testing.assert_array_equal(router['bias_E'], want_LE)
    assert not np.any(router['load_E'])
