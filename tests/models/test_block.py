"""The transformer block."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers.attention import Attention, mask_spec
from moe.layers.feed_forward import FeedForward
from moe.layers.moe_layer import TokenInfo
from moe.models.block import Block
from moe.scale import cost
from tests.models import factories

BATCH = factories.make_batch([[1, 1, 1, 2], [1, 1, 1, 0]])


def arguments(width):
  x_BTD = np.random.RandomState(0).randn(2, 4, width).astype(np.float32)
  info = TokenInfo(BATCH.tokens, BATCH.modality, BATCH.segment_ids > 0)
  return x_BTD, mask_spec(BATCH, None), info, None


def shapes(block):
  """Returns the shapes of (outputs, variables with axis names)."""
  return jax.eval_shape(
    functools.partial(block.init_with_output, train=False),
    jax.random.key(0),
    *arguments(factories.D_MODEL),
  )


def make_params(block, width):
  found = jax.eval_shape(
    functools.partial(block.init, train=False),
    jax.random.key(0),
    *arguments(width),
  )
  random = np.random.RandomState(1)
  return jax.tree.map(
    lambda s: random.uniform(-1, 1, s.shape).astype(s.dtype),
    nn.meta.unbox(found['params']),
  )


def small(**options):
  """A dense block of width 2 with a hidden layer of width 1."""
  return Block(
    functools.partial(Attention, num_heads=1, num_kv_heads=1, head_dim=2),
    functools.partial(FeedForward, width=1),
    None,
    **options,
  )


def test_what_a_layer_reads_is_normalised_and_what_it_adds_to_is_not():
  block = small()
  params = make_params(block, 2)
  params['attention']['out'][:] = 0
  params['feed_forward_norm']['scale'][:] = 1
  params['feed_forward'] = {
    'w_up_DF': np.array([[1], [0]], 'f4'),
    'w_gate_DF': np.array([[0], [1]], 'f4'),
    'w_down_FD': np.array([[1, 0]], 'f4'),
  }
  x_BTD, *rest = arguments(2)
  x_BTD[:] = [3, 4]
  y_BTD, cache, outputs = jax.jit(
    functools.partial(block.apply, train=False, cache=None)
  )({'params': params}, x_BTD, *rest[:2])
  # The root mean square of (3, 4) is 3.53553, so the normalised input is
  # (.848528, 1.131371). The hidden layer is silu(1.131371) * .848528, about
  # .7258, which is added to 3.
  np.testing.assert_allclose(y_BTD[0, 0], [3.725856, 4], rtol=1e-5)
  assert cache is None and outputs == ({}, {})


def test_dropout_acts_in_training_alone():
  block = small(dropout_rate=0.5)
  params = make_params(block, 2)
  x_BTD, mask, info, _ = arguments(2)

  @functools.partial(jax.jit, static_argnums=1)
  def run(key, train):
    return block.apply(
      {'params': params},
      x_BTD,
      mask,
      info,
      None,
      train,
      rngs={'dropout': key},
    )[0]

  keys = jax.random.key(1), jax.random.key(2)
  evaluated, again = (run(key, False) for key in keys)
  trained, otherwise = (run(key, True) for key in keys)
  np.testing.assert_array_equal(evaluated, again)
  assert np.abs(trained - otherwise).max() > 1e-3
  assert np.abs(trained - evaluated).max() > 1e-3


@pytest.mark.parametrize(
  'options, layer',
  [
    (dict(is_sparse=False), 'feed_forward'),
    (dict(is_sparse=True), 'moe'),
    (dict(is_sparse=True, dense_twin=True), 'feed_forward'),
    (dict(is_sparse=False, dense_twin=True), 'feed_forward'),
  ],
)
def test_a_block_has_one_feed_forward_layer_of_its_kind(options, layer):
  block = factories.make_block()(**options)
  (y_BTD, _, outputs), variables = shapes(block)
  assert y_BTD.shape == (2, 4, factories.D_MODEL)
  norms = {'attention_norm', 'feed_forward_norm'}
  assert set(variables['params']) == norms | {'attention', layer}
  assert bool(outputs.losses) == bool(outputs.metrics) == (layer == 'moe')


def test_a_dense_block_keeps_its_width_beside_dense_twins():
  _, variables = shapes(factories.make_block()(dense_twin=True))
  w_DF = variables['params']['feed_forward']['w_up_DF'].value
  assert w_DF.shape == (factories.D_MODEL, factories.WIDTH)


@pytest.mark.parametrize('shared_d_ff, width', [(0, 20), (6, 26)])
@pytest.mark.parametrize('activation', ['swiglu', 'gelu'])
def test_the_dense_twin_has_the_active_flops_of_the_experts(
  shared_d_ff, width, activation
):
  # Two experts of width 10 and a shared expert of width 0 or 6 process each
  # token. So the dense layer has width 2 * 10 + 0 or 2 * 10 + 6.
  make = factories.make_block(
    moe=dict(shared_d_ff=shared_d_ff, activation=activation), is_sparse=True
  )
  twin = shapes(make(dense_twin=True))[1]['params']['feed_forward']
  assert twin['w_up_DF'].value.shape == (factories.D_MODEL, width)
  sparse = dict(shapes(make())[1]['params']['moe'])
  del sparse['router']
  # Each parameter of a matrix costs two FLOPs per token, so equal numbers of
  # parameters have equal FLOPs.
  names = lambda boxes: jax.tree.map(
    lambda box: box.names,
    boxes,
    is_leaf=lambda b: isinstance(b, nn.meta.AxisMetadata),
  )
  active = lambda boxes: cost.parameter_counts(
    nn.meta.unbox(boxes), names(boxes), num_active=2
  )[1]
  assert active(twin) == active(sparse)


def test_a_block_computes_in_its_dtype():
  block = factories.make_block()(is_sparse=True, dtype=jnp.bfloat16)
  (y_BTD, _, outputs), variables = jax.eval_shape(
    functools.partial(block.init_with_output, train=False),
    jax.random.key(0),
    jax.ShapeDtypeStruct((2, 4, factories.D_MODEL), jnp.bfloat16),
    *arguments(1)[1:],
  )
  assert y_BTD.dtype == jnp.bfloat16
  dtypes = {a.dtype for a in jax.tree.leaves((outputs, variables))}
  assert dtypes == {jnp.dtype('float32')}
