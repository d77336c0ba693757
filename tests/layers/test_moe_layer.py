"""Tests the MoE layer: against plain loops, by properties, on many devices."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from moe.layers import moe_layer
from moe.layers.feed_forward import FeedForward
from moe.layers.moe_layer import MoE, TokenInfo
from moe.parallel import mesh as mesh_lib
from moe.parallel import rules
from moe.routing import dispatch, exchange, gates
from moe.types import Layout

B, T, D, E, F, M = 8, 8, 5, 8, 6, 4
P = functools.partial
# Tests share this object, so that `compiled` finds its result in the cache. The
# capacity is 1.5 * 4 * 2 / 8 = 1.5 slots per expert, rounded up to 2.
TIGHT = P(dispatch.Sorted, 1.5)

# Whether each token is valid. One row has 3 valid tokens, so its second group
# is padding.
VALID = np.arange(T) < np.array([[8, 8, 7, 8, 3, 8, 8, 6]]).T


def make(**options):
  return MoE(E, F, group_size=M, **options)


def info(valid=VALID):
  zeros = np.zeros(valid.shape, np.int32)
  return TokenInfo(zeros, zeros, valid)


def tokens(seed=0):
  return np.random.RandomState(seed).randn(B, T, D).astype(np.float32)


def make_params(module):
  """Draws random parameters without compiling `init`, which takes seconds."""
  shapes = jax.eval_shape(
    P(module.init, train=False), jax.random.key(0), tokens(), info()
  )
  random = np.random.RandomState(1)
  return jax.tree.map(
    lambda s: random.uniform(-1, 1, s.shape).astype(s.dtype),
    nn.meta.unbox(shapes['params']),
  )


@functools.cache
def compiled(train=True, **options):
  """(params, compiled function (x, valid) -> (y, LayerOutputs)) of a layer."""
  module = make(**options)
  params = make_params(module)
  run = lambda x_BTD, valid: module.apply(
    {'params': params}, x_BTD, info(valid), train
  )
  return params, jax.jit(run)


def expert(params, e, x_D):
  up, gate = (x_D @ params[n][e] for n in ('w_up_EDF', 'w_gate_EDF'))
  return (gate / (1 + np.exp(-gate)) * up) @ params['w_down_EFD'][e]


def oracle(params, x_BTD, valid, k, capacity):
  """(y, dropped) by a loop over every choice of every token."""
  x_GMD = x_BTD.reshape(-1, M, D)
  valid_GM = valid.reshape(-1, M)
  y_GMD = np.zeros_like(x_GMD)
  dropped = 0
  for g in range(len(x_GMD)):
    logits = x_GMD[g] @ params['router']
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    chosen = np.argsort(-probs, axis=-1)[:, :k]
    used = np.zeros(E)
    for a in range(k):
      for m in np.flatnonzero(valid_GM[g]):
        e = chosen[m, a]
        used[e] += 1
        if used[e] > capacity:
          dropped += 1
          continue
        weight = probs[m, e] / probs[m, chosen[m]].sum()
        y_GMD[g, m] += weight * expert(params, e, x_GMD[g, m])
  return y_GMD.reshape(B, T, D), dropped


def assert_close(one, other):
  np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_one_token_through_its_expert_by_hand():
  # The logits for x = 1 are (ln 3, 0), so expert 0 has the probability 3/4. The
  # hidden layer is silu(1) * 2 = .731059 * 2 = 1.462117. The last matrix makes
  # it 4 * 1.462117 = 5.848468, and the probability makes it 4.386351.
  params = {
    'router': np.array([[np.log(3), 0.0]], 'f4'),
    'w_up_EDF': np.array([2.0, 0.0], 'f4').reshape(2, 1, 1),
    'w_gate_EDF': np.array([1.0, 0.0], 'f4').reshape(2, 1, 1),
    'w_down_EFD': np.array([4.0, 0.0], 'f4').reshape(2, 1, 1),
  }
  layer = MoE(2, 1, top_k=1, router=gates.Switch, group_size=1)
  one = np.ones((1, 1), bool)
  y_BTD, _ = jax.jit(P(layer.apply, train=True))(
    {'params': params}, np.ones((1, 1, 1), 'f4'), info(one)
  )
  assert y_BTD.item() == pytest.approx(4.386351, rel=1e-6)


def test_with_capacity_it_equals_the_loop_over_experts():
  params, run = compiled(dispatch=TIGHT)
  y_BTD, outputs = run(tokens(), VALID)
  expected_BTD, dropped = oracle(params, tokens(), VALID, k=2, capacity=2)
  assert_close(y_BTD, expected_BTD)
  found, rows = map(float, outputs.metrics['dropped'])
  assert found == dropped > 0
  assert rows == 2 * VALID.sum()


@pytest.mark.parametrize(
  'train, dispatcher', [(False, TIGHT), (True, dispatch.Dropless)]
)
def test_dropless_it_equals_the_loop_without_capacity(train, dispatcher):
  params, run = compiled(train=train, dispatch=dispatcher)
  y_BTD, outputs = run(tokens(), VALID)
  assert_close(y_BTD, oracle(params, tokens(), VALID, 2, np.inf)[0])
  assert float(outputs.metrics['dropped'][0]) == 0


def test_with_all_experts_active_it_is_the_dense_mixture():
  # The capacity is 1.0 * 4 * 8 / 8 = 4, enough for every token of a group.
  params, run = compiled(top_k=E, dispatch=P(dispatch.Sorted, 1.0))
  everything = np.ones_like(VALID)
  y_BTD, _ = run(tokens(), everything)
  logits = tokens() @ params['router']
  probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
  mixture = sum(
    probs[..., e, None] * expert(params, e, tokens()) for e in range(E)
  )
  assert_close(y_BTD, mixture)


def test_permuting_tokens_permutes_outputs():
  _, run = compiled(train=False, dispatch=TIGHT)
  order = np.random.RandomState(5).permutation(B * T)

  def permuted(a):
    return a.reshape(B * T, *a.shape[2:])[order].reshape(a.shape)

  y_BTD, outputs = run(tokens(), VALID)
  of_permuted, same = run(permuted(tokens()), permuted(VALID))
  assert_close(of_permuted, permuted(np.asarray(y_BTD)))
  assert_close(same.metrics['load'][0], outputs.metrics['load'][0])


def test_padding_is_never_routed():
  _, run = compiled(dispatch=TIGHT)
  x_BTD = tokens()
  other_BTD = np.where(VALID[..., None], x_BTD, 100 * tokens(9))
  one, other = run(x_BTD, VALID), run(other_BTD, VALID)
  jax.tree.map(np.testing.assert_array_equal, one, other)
  y_BTD, outputs = one
  np.testing.assert_array_equal(y_BTD[~VALID], 0)
  load_E, rows = outputs.metrics['load']
  assert float(load_E.sum()) == float(rows) == 2 * VALID.sum()


def test_the_shared_expert_sees_every_token():
  params, run = compiled(train=False, dispatch=TIGHT)
  module = make(shared_d_ff=7)
  shared = make_params(module)['shared']

  @jax.jit
  def both(x_BTD):
    variables = {'params': {**params, 'shared': shared}}
    y_BTD, _ = module.apply(variables, x_BTD, info(), False)
    return y_BTD, FeedForward(7).apply({'params': shared}, x_BTD)

  y_BTD, shared_BTD = both(tokens())
  assert_close(y_BTD, run(tokens(), VALID)[0] + shared_BTD)
  assert np.abs(shared_BTD[~VALID]).min() > 0


@dataclasses.dataclass(frozen=True)
class Noisy(gates.TopK):
  """TopK whose noise depends on the keys of the groups."""

  def route(self, inputs, state, keys_G, train):
    # Any function of the key is noise here; `random.normal` compiles slowly.
    seed_G11 = jax.random.key_data(keys_G)[:, :1, None] % 97
    places_ME = jnp.arange(M * E, dtype=jnp.float32).reshape(M, E)
    noise_GME = jnp.sin(seed_G11.astype(jnp.float32) * places_ME)
    inputs = inputs._replace(logits_GME=inputs.logits_GME + 3 * noise_GME)
    return super().route(inputs, state, keys_G, train)


def trained(mesh_shape, num_devices, **options):
  """((loss, (y, LayerOutputs)), gradients for parameters and tokens)."""
  mesh = mesh_lib.make_mesh(mesh_shape, jax.devices()[:num_devices])
  options = dict(router=Noisy, dispatch=TIGHT, shared_d_ff=4, **options)
  params = make_params(make(**options))
  module = make(layout=rules.layout(rules.table('standard'), mesh), **options)

  def loss(params, x_BTD):
    rngs = {'router': jax.random.key(4)}
    y_BTD, outputs = module.apply(
      {'params': params}, x_BTD, info(), True, rngs=rngs
    )
    scale = jnp.arange(y_BTD.size, dtype=jnp.float32).reshape(y_BTD.shape)
    total = jnp.sum(jnp.sin(scale) * y_BTD)
    for sum_, weight in outputs.losses.values():
      total += 10.0 * sum_ / weight
    # A single device sends no bytes, so this count is not compared.
    outputs.metrics.pop('bytes_exchanged')
    return total, (y_BTD, outputs)

  with jax.set_mesh(mesh):
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    return jax.tree.map(np.asarray, run(params, tokens()))


@pytest.fixture(scope='module')
def one_device():
  return trained(mesh_lib.MeshShape(), 1)


@pytest.mark.slow
@pytest.mark.parametrize(
  'axes, exchanger',
  [
    (dict(data=2, expert=4), exchange.AllToAll),
    (dict(data=2, expert=2, model=2), exchange.AllToAll),
    (dict(data=2, expert=2, context=2), exchange.AllToAll),
    (dict(data=2, fsdp=2, expert=2), exchange.AllGather),
  ],
  ids=['expert', 'model', 'context', 'fsdp_all_gather'],
)
def test_eight_devices_equal_one(one_device, axes, exchanger):
  eight = trained(mesh_lib.MeshShape(**axes), 8, exchange=exchanger)
  jax.tree.map(assert_close, eight, one_device)


def test_evaluation_on_eight_devices_equals_one():
  params, run = compiled(train=False, dispatch=TIGHT)
  mesh = mesh_lib.make_mesh(mesh_lib.MeshShape(data=2, expert=4))
  module = make(layout=rules.layout(rules.table('standard'), mesh))
  with jax.set_mesh(mesh):
    y_BTD, _ = jax.jit(P(module.apply, train=False))(
      {'params': params}, tokens(), info()
    )
  assert_close(y_BTD, run(tokens(), VALID)[0])


@pytest.mark.parametrize('batch', [1, 2])
def test_a_batch_too_small_for_the_mesh_is_evaluated_all_the_same(batch):
  # Two rows can only be sharded over the data axis, and one row over no axis.
  params, run = compiled(train=False, dispatch=TIGHT)
  mesh = mesh_lib.make_mesh(mesh_lib.MeshShape(data=2, expert=4))
  module = make(layout=rules.layout(rules.table('standard'), mesh))
  few = tokens()[:batch], VALID[:batch]
  with jax.set_mesh(mesh):
    y_BTD, outputs = jax.jit(
      lambda x_BTD, valid: module.apply(
        {'params': params}, x_BTD, info(valid), False
      )
    )(*few)
  assert_close(y_BTD, run(tokens(), VALID)[0][:batch])
  assert float(outputs.metrics['dropped'][1]) == 2 * few[1].sum()


def test_shapes_dtypes_and_logical_axes():
  module = make(shared_d_ff=7, dtype=jnp.bfloat16)
  x_BTD = jax.ShapeDtypeStruct((B, T, D), jnp.bfloat16)
  (y_BTD, outputs), variables = jax.eval_shape(
    P(module.init_with_output, train=False), jax.random.key(0), x_BTD, info()
  )
  assert y_BTD == x_BTD
  scalar = jax.ShapeDtypeStruct((), jnp.float32)
  load_E = jax.ShapeDtypeStruct((E,), jnp.float32)
  assert outputs.losses == {
    'load_balance': (scalar, scalar),
    'router_z': (scalar, scalar),
    'local_entropy': (scalar, scalar),
    'global_entropy': (scalar, scalar),
  }
  assert outputs.metrics['load'] == (load_E, scalar)
  assert outputs.metrics['dropped'] == (scalar, scalar)
  found = {
    name: (box.value.shape, box.value.dtype, box.names)
    for name, box in variables['params'].items()
    if name != 'shared'
  }
  f32 = jnp.float32
  up = ((E, D, F), f32, ('expert', 'embed', 'expert_mlp'))
  assert found == {
    'router': ((D, E), f32, ('embed', None)),
    'w_up_EDF': up,
    'w_gate_EDF': up,
    'w_down_EFD': ((E, F, D), f32, ('expert', 'expert_mlp', 'embed')),
  }


def layout(**sizes):
  """The layout of a mesh; `sizes` has the size of each mesh axis by name."""
  use = lambda axis: (axis,) if axis in sizes else ()
  return Layout(
    use('data') + use('expert'),
    use('context'),
    use('expert'),
    use('model'),
    tuple(sizes.items()),
  )


@pytest.mark.parametrize(
  ('length', 'size'),
  [
    (16, 16),
    (128, 128),
    (1024, 1024),
    (2048, 1024),
    (1500, 750),
    (2053, 2053),  # This length is a prime number.
  ],
)
def test_a_group_is_by_default_an_even_part_of_a_sequence(length, size):
  assert moe_layer.tokens_per_group(length) == size


def divided(sizes):
  """(number of devices that divide the batch, number that divide a row)."""
  return sizes.get('data', 1), sizes.get('context', 1)


@pytest.mark.parametrize(
  'batch, length, group_size, sizes',
  [
    (8, 16, 16, {}),
    (8, 16, 4, {'data': 2, 'context': 4}),  # A device has 4 x 4 tokens.
    (8, 16, 32, {'data': 4}),  # A device has 2 x 16 tokens, so one group.
  ],
)
def test_groups_that_fit_are_accepted(batch, length, group_size, sizes):
  moe_layer.check_groups(batch, length, group_size, *divided(sizes))


@pytest.mark.parametrize(
  'batch, length, group_size, sizes, message',
  [
    (8, 16, 6, {}, 'GROUP_SIZE=6 must divide the 8 x 16 tokens'),
    # In the next three cases, a group has the tokens of 1.5 rows, of 4 rows,
    # and of 1 row. A device has 8 rows, 2 rows, and 8 halves of rows.
    (8, 16, 24, {}, 'GROUP_SIZE=24 must divide'),
    (8, 16, 64, {'data': 4}, 'the 2 x 16 tokens'),
    (8, 16, 16, {'context': 2}, 'the 8 x 8 tokens'),
    (6, 16, 16, {'data': 4}, 'divisible by the 4 x 1 devices'),
    (8, 15, 15, {'context': 2}, 'divisible by the 1 x 2 devices'),
  ],
)
def test_groups_that_do_not_fit_are_refused(
  batch, length, group_size, sizes, message
):
  with pytest.raises(ValueError, match=message):
    moe_layer.check_groups(batch, length, group_size, *divided(sizes))


@pytest.mark.parametrize(
  'sizes, message',
  [
    (
      {'expert': 3},
      r"NUM_EXPERTS=8 must be divisible by the 'expert' mesh axis \(3\): use a"
      ' multiple of 3, or lower',
    ),
    (
      {'model': 4},
      r"EXPERT_D_FF=6 must be divisible by the 'model' mesh axis \(4\)",
    ),
  ],
)
def test_experts_that_do_not_divide_by_the_mesh_are_refused(sizes, message):
  with pytest.raises(ValueError, match=message):
    make(layout=layout(**sizes))


def test_replicated_tokens_are_refused_in_training_where_they_are_divided():
  module = make(layout=layout(data=2, expert=4), exchange=exchange.Replicated)
  with pytest.raises(ValueError, match=r"on all devices.*'expert'.*which div"):
    module.init(jax.random.key(0), tokens(), info(), train=True)


CHOICE = P(gates.ExpertChoice, max_per_token=3)


def evaluated(x_BTD, valid):
  """Outputs of a layer in evaluation; its router needs whole groups."""
  return compiled(train=False, router=CHOICE)[1](x_BTD, valid)[0]


def test_expert_choice_sees_the_groups_of_training_in_evaluation():
  # All groups are whole, so evaluation equals dropless training.
  _, run = compiled(train=True, router=CHOICE, dispatch=dispatch.Dropless)
  assert_close(evaluated(tokens(), VALID), run(tokens(), VALID)[0])


def test_a_rest_of_a_group_is_filled_up_with_padding():
  # 2 x 7 tokens are divided into three groups of 4 and one of 2.
  x_BTD, valid = tokens()[:2, :7], np.ones((2, 7), bool)
  flat = lambda a: a.reshape(1, 14, *a.shape[2:])
  fill = lambda a: np.pad(a, [(0, 0), (0, 2), *[(0, 0)] * (a.ndim - 2)])
  filled = evaluated(fill(flat(x_BTD)), fill(flat(valid)))
  assert_close(flat(evaluated(x_BTD, valid)), filled[:, :14])


@pytest.mark.slow
@pytest.mark.parametrize('batch, length', [(8, 8), (2, 8), (8, 2), (4, 3)])
def test_expert_choice_in_evaluation_is_the_same_on_eight_devices(
  batch, length
):
  # Groups have 4 tokens. There are four cases: a row has two groups; there are
  # 4 groups for 8 devices; a group spans two rows; there are only 12 tokens.
  x_BTD = tokens()[:batch, :length]
  valid = np.ones((batch, length), bool)
  params, _ = compiled(train=False, router=CHOICE)
  mesh = mesh_lib.make_mesh(mesh_lib.MeshShape(data=2, expert=4))
  module = make(
    layout=rules.layout(rules.table('standard'), mesh), router=CHOICE
  )
  with jax.set_mesh(mesh):
    y_BTD, _ = jax.jit(P(module.apply, train=False))(
      {'params': params}, x_BTD, info(valid)
    )
  assert_close(y_BTD, evaluated(x_BTD, valid))


def test_a_router_that_needs_later_tokens_cannot_read_token_by_token():
  one = np.ones((B, 1), bool)
  with pytest.raises(ValueError, match='cannot read token by token'):
    make(router=CHOICE).init(
      jax.random.key(0), tokens()[:, :1], info(one), train=False
    )


@dataclasses.dataclass(frozen=True)
class Seen(gates.TopK):
  """TopK that also returns its logits and choices as statistics."""

  def route(self, inputs, state, keys_G, train):
    plan = super().route(inputs, state, keys_G, train)
    one = jnp.float32(1)
    plan.statistics['logits'] = (inputs.logits_GME, one)
    plan.statistics['experts'] = (plan.expert_GR, one)
    return plan


def test_bfloat16_tokens_are_routed_by_a_product_in_float32():
  params, _ = compiled(dispatch=TIGHT)
  module = make(router=Seen, dtype=jnp.bfloat16)
  x_BTD = jnp.asarray(tokens(), jnp.bfloat16)
  run = lambda x_BTD: module.apply({'params': params}, x_BTD, info(), True)[1]
  metrics = jax.jit(run)(x_BTD).metrics
  exact = np.asarray(x_BTD, np.float64) @ np.float64(params['router'])
  exact_GME = exact.reshape(-1, M, E)
  # A product in bfloat16 would be off by about 1e-2.
  np.testing.assert_allclose(metrics['logits'][0], exact_GME, atol=1e-5)
  best_GM2 = np.argsort(-exact_GME, axis=-1)[..., :2]
  np.testing.assert_array_equal(
    metrics['experts'][0], best_GM2.swapaxes(1, 2).reshape(-1, 2 * M)
  )


def products(jaxpr):
  """All dot_general operations of a program."""
  for eqn in jaxpr.eqns:
    if eqn.primitive.name == 'dot_general':
      yield eqn
    for inner in core.jaxprs_in_params(eqn.params):
      yield from products(inner)


def test_the_routers_product_is_written_in_float32_at_full_precision():
  params, _ = compiled(dispatch=TIGHT)
  module = make(dtype=jnp.bfloat16)
  x_BTD = jnp.asarray(tokens(), jnp.bfloat16)
  program = jax.make_jaxpr(
    lambda x: module.apply({'params': params}, x, info(), True)[0]
  )(x_BTD)
  shape = params['router'].shape
  (product,) = [
    eqn
    for eqn in products(program.jaxpr)
    if shape in [v.aval.shape for v in eqn.invars]
  ]
  avals = [v.aval for v in (*product.invars, *product.outvars)]
  assert all(aval.dtype == jnp.float32 for aval in avals)
  highest = jax.lax.Precision.HIGHEST
  assert product.params['precision'] == (highest, highest)


def test_choices_that_a_router_takes_out_count_as_dropped():
  # All tokens may only use expert 0. A balanced assignment gives it one token
  # of each group of 4. The other tokens get closed experts, so the router drops
  # their choices.
  router = P(gates.ModalityGrouped, router=gates.Base, reserved=(1, 7))
  params, _ = compiled(dispatch=TIGHT)
  module = make(router=router, top_k=1)
  valid = np.ones((B, T), bool)
  _, outputs = jax.jit(P(module.apply, train=True))(
    {'params': params}, tokens(), info(valid)
  )
  assert tuple(map(float, outputs.metrics['dropped'])) == (48, 64)


def test_jitter_is_left_out_in_evaluation():
  module = make(router=P(gates.Switch, jitter=0.5), top_k=1)
  params, _ = compiled(dispatch=TIGHT)
  draws = {}
  for train in (False, True):
    run = lambda x, train=train: module.apply(
      {'params': params}, x, info(), train
    )
    draws[train] = 'random_bits' in str(jax.make_jaxpr(run)(tokens()))
  assert draws == {False: False, True: True}


def test_groups_are_checked_in_training():
  module = MoE(E, F, group_size=5)
  with pytest.raises(ValueError, match='GROUP_SIZE=5'):
    module.init(jax.random.key(0), tokens(), info(), train=True)
