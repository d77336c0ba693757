"""The stack: an unscanned prefix, then scanned periods."""

import functools
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from moe.layers.attention import mask_spec
from moe.layers.latent_attention import LatentAttention
from moe.layers.moe_layer import TokenInfo
from moe.models.stack import REMAT_NAMES, Period, Stack, after_each_period
from moe.parallel import rules
from moe.parallel.mesh import MeshShape, make_mesh
from moe.parallel.shardings import path_name
from moe.types import Cache, Layout
from tests.models import factories

BATCH = factories.make_batch([[1, 1, 1, 1, 2, 2, 2, 0], [1] * 8])
BLOCK = factories.make_block()


def arguments(cache=None):
  x_BTD = np.random.RandomState(0).randn(2, 8, factories.D_MODEL).astype('f4')
  info = TokenInfo(BATCH.tokens, BATCH.modality, BATCH.segment_ids > 0)
  return x_BTD, mask_spec(BATCH, cache), info


def shapes(stack, cache=None):
  """Returns the shapes of (outputs, parameters with axis names)."""
  x_BTD, mask, info = arguments(cache)
  outputs, variables = jax.eval_shape(
    functools.partial(stack.init_with_output, train=False),
    jax.random.key(0),
    x_BTD,
    mask,
    info,
    cache and cache.layers,
  )
  return outputs, variables['params']


def make_params(stack):
  random = np.random.RandomState(1)
  return jax.tree.map(
    lambda s: random.uniform(-0.6, 0.6, s.shape).astype(s.dtype),
    nn.meta.unbox(shapes(stack)[1]),
  )


@pytest.mark.parametrize(
  'layers, prefix, every, periods',
  [
    (6, 0, 1, 6),
    (6, 0, 2, 3),
    (7, 1, 2, 3),  # There are (7 - 1) / 2 periods.
    (3, 0, 0, 3),  # In a dense model every block is a period.
    (2, 2, 1, 0),
  ],
)
def test_layers_divide_into_periods(layers, prefix, every, periods):
  assert Stack(BLOCK, layers, every, prefix).num_periods() == periods


@pytest.mark.parametrize('layers, prefix, every', [(6, 1, 2), (1, 2, 1)])
def test_layers_that_do_not_divide_are_refused(layers, prefix, every):
  stack = Stack(BLOCK, layers, every, prefix)
  with pytest.raises(ValueError, match='must be a multiple of MOE_EVERY='):
    shapes(stack)


def test_parameters_lie_in_a_prefix_and_in_stacked_periods():
  # One of the five blocks is in the prefix. The others form two periods, each
  # with a dense and a sparse block.
  _, params = shapes(Stack(BLOCK, 5, moe_every=2, num_dense_prefix=1))
  assert set(params) == {'prefix_0', 'periods'}
  assert 'feed_forward' in params['prefix_0']
  assert 'feed_forward' in params['periods']['block_0']
  up = params['periods']['block_1']['moe']['w_up_EDF']
  assert up.names == ('layers', 'expert', 'embed', 'expert_mlp')
  assert up.value.shape == (2, 4, 16, 10)
  prefix_up = params['prefix_0']['feed_forward']['w_up_DF']
  assert prefix_up.value.shape == (16, 24)


def test_a_dense_stack_has_no_experts():
  (_, _, losses, metrics), params = shapes(Stack(BLOCK, 3, moe_every=0))
  assert set(params['periods']) == {'block_0'}
  assert 'feed_forward' in params['periods']['block_0']
  assert losses == metrics == {}


def test_a_scanned_stack_equals_a_loop_over_its_parameters():
  stack = Stack(BLOCK, 5, moe_every=2, num_dense_prefix=1)
  params = make_params(stack)
  x_BTD, mask, info = arguments()
  y_BTD, cache, losses, metrics = jax.jit(
    lambda x_BTD: stack.apply({'params': params}, x_BTD, mask, info, None, True)
  )(x_BTD)
  assert cache is None

  prefix = BLOCK()
  expected_BTD = jax.jit(
    lambda x_BTD: prefix.apply(
      {'params': params['prefix_0']}, x_BTD, mask, info, None, True
    )[0]
  )(x_BTD)
  period = Period(BLOCK, (False, True), Layout(), jnp.float32, train=True)

  @jax.jit
  def one(i, x_BTD):
    of_period = jax.tree.map(lambda a_L: jnp.asarray(a_L)[i], params['periods'])
    return period.apply({'params': of_period}, x_BTD, None, mask, info)

  found = []
  for i in range(2):
    expected_BTD, (_, outputs, _) = one(i, expected_BTD)
    found.append(outputs)

  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  close(y_BTD, expected_BTD)
  stacked = jax.tree.map(lambda *a: np.stack(a), *found)
  jax.tree.map(close, metrics, stacked.metrics)
  means = jax.tree.map(lambda a_L: a_L.mean(axis=0), stacked.losses)
  jax.tree.map(close, losses, means)


def test_a_stack_returns_the_maps_of_its_layers_in_their_order():
  attention = functools.partial(BLOCK.keywords['attention'], returns_maps=True)
  block = functools.partial(BLOCK, attention=attention)
  stack = Stack(block, 3, moe_every=2, num_dense_prefix=1)
  params = make_params(stack)
  x_BTD, mask, info = arguments()

  @jax.jit
  def found(params):
    y_BTD, maps, _, _ = stack.apply(
      {'params': params}, x_BTD, mask, info, None, False
    )
    return y_BTD, maps

  @jax.jit
  def one_by_one(params):
    (period,) = range(stack.num_periods())
    of_period = jax.tree.map(lambda a_L: a_L[period], params['periods'])
    layers = params['prefix_0'], of_period['block_0'], of_period['block_1']
    y_BTD, maps = x_BTD, []
    for is_sparse, layer in zip((False, False, True), layers, strict=True):
      y_BTD, kept, _ = block(is_sparse=is_sparse).apply(
        {'params': layer}, y_BTD, mask, info, None, False
      )
      maps.append(kept)
    return y_BTD, jnp.stack(maps)

  both = zip(found(params), one_by_one(params), strict=True)
  for got, wanted in both:
    np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-4)
  plain = Stack(BLOCK, 3, moe_every=2, num_dense_prefix=1)
  (_, kept, _, _), _ = shapes(plain)
  assert kept is None


def gradients(remat):
  x_BTD, mask, info = arguments()
  stack = Stack(BLOCK, 2, remat=remat)

  def loss(params):
    y_BTD, _, losses, _ = stack.apply(
      {'params': params}, x_BTD, mask, info, None, True
    )
    return jnp.sum(jnp.square(y_BTD)) + losses['load_balance'][0]

  return jax.jit(jax.grad(loss))(make_params(stack))


@pytest.fixture(scope='module')
def plain_gradients():
  return gradients('none')


@pytest.mark.slow
def test_recomputation_changes_no_gradient(plain_gradients):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3),
    gradients('full'),
    plain_gradients,
  )


@pytest.mark.parametrize('remat, more', [('full', 1), ('dots', 0)])
def test_recomputation_repeats_the_products_it_says(remat, more):
  # 'dots' stores the results of products with parameters; 'full' computes them
  # again.
  def products(remat):
    stack = Stack(BLOCK, 2, moe_every=0, remat=remat)
    params = make_params(stack)
    loss = lambda params: stack.apply(
      {'params': params}, *arguments(), None, True
    )[0].sum()
    text = str(jax.make_jaxpr(jax.grad(loss))(params))
    # The products with the up and gate matrices, [B T, D] x [D, F], give
    # results of this shape.
    return text.count(f'f32[16,{factories.WIDTH}] = dot_general')

  assert products(remat) - products('none') == 2 * more


def test_blocks_of_the_prefix_are_computed_again_too():
  def products(remat):
    stack = Stack(BLOCK, 2, num_dense_prefix=2, remat=remat)
    params = make_params(stack)
    loss = lambda params: stack.apply(
      {'params': params}, *arguments(), None, True
    )[0].sum()
    text = str(jax.make_jaxpr(jax.grad(loss))(params))
    return text.count(f'f32[16,{factories.WIDTH}] = dot_general')

  # Both blocks compute the products with the up and gate matrices again.
  assert products('full') - products('none') == 2 * 2


def test_a_stack_without_a_loop_gives_the_same():
  x_BTD, mask, info = arguments()
  loop, flat = (Stack(BLOCK, 2, remat='full', unroll=n) for n in (1, 2))
  params = make_params(loop)
  results = [
    stack.apply({'params': params}, x_BTD, mask, info, None, True)[0]
    for stack in (loop, flat)
  ]
  np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-5)
  # Both have the same parameters, so they can share checkpoints.
  jax.tree.map(np.testing.assert_array_equal, make_params(flat), params)


def named_tensors(jaxpr):
  """The names that `checkpoint_name` gave to tensors in a program."""
  found = set()
  for equation in jaxpr.eqns:
    if equation.primitive.name == 'name':
      found.add(equation.params['name'])
    for inner in core.jaxprs_in_params(equation.params):
      found |= named_tensors(inner)
  return found


def program_of(remat, layout=Layout(), outputs_only=False):  # noqa: B008
  stack = Stack(BLOCK, 1, remat=remat, layout=layout)
  params = make_params(Stack(BLOCK, 1))
  loss = lambda params: stack.apply(
    {'params': params}, *arguments(), None, True
  )[0].sum()
  return jax.make_jaxpr(loss if outputs_only else jax.grad(loss))(params).jaxpr


@pytest.fixture(scope='module')
def named():
  """Names of the tensors of a sparse block when two devices exchange rows."""
  mesh = make_mesh(MeshShape(data=1, expert=2), jax.devices()[:2])
  layout = rules.layout(rules.table('standard'), mesh)
  with jax.set_mesh(mesh):
    return named_tensors(program_of('none', layout, outputs_only=True))


@pytest.mark.parametrize('policy', sorted(REMAT_NAMES))
def test_a_policy_names_only_tensors_that_a_block_names(policy, named):
  # For a name that no tensor has, a policy would silently keep nothing.
  assert set(REMAT_NAMES[policy]) <= named


def test_a_tensor_that_a_policy_keeps_is_not_computed_again():
  # `products` counts the products of attention weights and values. Each result
  # has the shape [B, K, H, T * N / K].
  products = lambda remat: str(program_of(remat)).count(
    'f32[2,2,8,16] = dot_general'
  )
  counts = [products(remat) for remat in ('none', 'attention', 'full')]
  assert counts == [1, 1, 2]


def test_an_unknown_policy_is_refused():
  with pytest.raises(ValueError, match="REMAT='some' must be one of none,"):
    Stack(BLOCK, 2, remat='some')


@pytest.mark.parametrize(
  'layers, every, prefix', [(5, 2, 1), (2, 1, 2), (2, 0, 0)]
)
def test_cache_shapes_are_those_of_the_cache_that_comes_out(
  layers, every, prefix
):
  stack = Stack(BLOCK, layers, every, prefix, dtype=jnp.bfloat16)
  expected = stack.cache_shapes(2, 20)
  slots_BS = jax.ShapeDtypeStruct((2, 20), jnp.int32)
  index = jax.ShapeDtypeStruct((), jnp.int32)

  def run(cache):
    x_BTD, mask, info = arguments(cache)
    x_BTD = x_BTD.astype(jnp.bfloat16)
    return stack.init_with_output(
      jax.random.key(0), x_BTD, mask, info, cache.layers, False
    )[0][1]

  found = jax.eval_shape(run, Cache(slots_BS, slots_BS, index, expected))
  assert found == expected
  leaves = jax.tree.leaves(expected)
  assert sum(leaf.size for leaf in leaves) == layers * 2 * (2 * 20 * 2 * 8)


def test_latent_attention_read_in_parts_equals_reading_at_once():
  latent = functools.partial(LatentAttention, 2, 6, 5, 4, 4, 3)
  block = functools.partial(BLOCK, attention=latent)
  stack = Stack(block, 2, moe_every=0, num_dense_prefix=1)
  params = make_params(stack)
  run = jax.jit(lambda *a: stack.apply({'params': params}, *a, False)[:2])
  whole, _ = run(*arguments(), None)
  zeros = np.zeros((2, 8), np.int32)
  layers = jax.tree.map(
    lambda s: np.zeros(s.shape, s.dtype), stack.cache_shapes(2, 8)
  )
  cache = Cache(zeros, zeros, jnp.int32(0), layers)
  parts = []
  for start in (0, 4):
    cut = functools.partial(jax.tree.map, lambda a, s=start: a[:, s : s + 4])
    x_BTD, _, info = arguments()
    d = mask_spec(cut(BATCH), cache)
    y_BTD, layers = run(cut(x_BTD), d, cut(info), cache.layers)
    cache = Cache(
      d.key_segments_BS, d.key_blocks_BS, jnp.int32(start + 4), layers
    )
    parts.append(y_BTD)
  np.testing.assert_allclose(
    np.concatenate(parts, axis=1), whole, rtol=1e-4, atol=1e-4
  )


@pytest.mark.parametrize(
  ('output_init', 'scale'), [('depth', 0.5), ('zero', 0.0)]
)
def test_output_projections_begin_smaller_and_all_else_stays(
  output_init, scale
):
  # The model has two layers, so 'depth' divides by sqrt(2 x 2) = 2.
  def drawn(output_init):
    stack = Stack(
      factories.make_block(moe=dict(shared_d_ff=6)),
      2,
      num_dense_prefix=1,
      output_init=output_init,
    )
    init = lambda key: stack.init(key, *arguments(), None, True)['params']
    params = nn.meta.unbox(jax.jit(init)(jax.random.key(0)))
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    return {path_name(path): np.asarray(a) for path, a in flat}

  plain, changed = drawn('fan_in'), drawn(output_init)
  outputs = {name for name in plain if re.search('/(out|w_down.*)$', name)}
  # The output matrices are in two attention layers, a dense layer, the experts
  # and a shared expert.
  assert len(outputs) == 5
  for name, a in plain.items():
    wanted = scale * a if name in outputs else a
    np.testing.assert_allclose(changed[name], wanted, rtol=1e-6, err_msg=name)


def test_a_mean_of_periods_is_of_the_activations_after_each_period():
  stack = Stack(BLOCK, num_layers=3, mixes_states=True)
  params = make_params(stack)
  share_L = np.array([0.3, -0.4, 1.0], np.float32)
  apply = jax.jit(
    lambda params: stack.apply(
      {'params': params}, *arguments(), None, train=False
    )[0]
  )
  mean_BTD = apply({**params, 'state_mix': share_L})
  states_BTLD = after_each_period(apply, params, 3)
  assert states_BTLD.shape == (2, 8, 3, factories.D_MODEL)
  np.testing.assert_allclose(
    states_BTLD.swapaxes(2, 3) @ nn.softmax(share_L), mean_BTD, atol=1e-5
  )
  plain = Stack(BLOCK, num_layers=3)
  last_BTD = plain.apply({'params': params}, *arguments(), None, train=False)[0]
  np.testing.assert_allclose(states_BTLD[:, :, -1], last_BTD, atol=1e-5)
