"""Router x dispatch x exchange x mesh, whole layers: eight devices against one.

The one device runs every expert on every token, masked by the rows that the
plan and the capacity keep; parts are proven where they are defined.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers.moe_layer import MoE, TokenInfo
from moe.parallel import mesh as mesh_lib
from moe.parallel import rules
from moe.routing import dispatch, exchange, gates
from moe.routing.plan import RouterInputs, group_keys
from tests.routing import oracle

B, T, D, E, F, M = 8, 16, 5, 8, 6, 8
P = functools.partial
VALID = np.arange(T) < np.array([[16, 16, 15, 9, 3, 16, 8, 14]]).T
INFO = TokenInfo(
  np.arange(B * T, dtype=np.int32).reshape(B, T) % 23,
  np.arange(B * T, dtype=np.int32).reshape(B, T) // 3 % 2,
  VALID,
)

TOP = gates.TopK
ROUTERS = {
  'top-2': TOP,
  'top-3 spilling': P(TOP, num_spare=1),
  'switch': P(gates.Switch, jitter=0.1),
  'gshard': gates.GShard,
  'noisy': gates.NoisyTopK,
  'expert choice': gates.ExpertChoice,
  'loss-free': P(gates.Sigmoid, num_groups=2, top_groups=1),
  'global balance': P(TOP, balance_scope='global'),
  'null': P(gates.NullExperts, num_null=3, num_copy=1),
  'modality': P(gates.ModalityGrouped, reserved=(2, 2)),
  'quantile': gates.Quantile,
  'base': gates.Base,
  'sinkhorn': gates.Sinkhorn,
  'hash': gates.Hash,
}
ACTIVE = {'switch': 1, 'base': 1, 'top-3 spilling': 3}
DISPATCHES = {
  'sorted': dispatch.Sorted,
  'by probability': P(dispatch.Sorted, priority='probability'),
  'dropless': dispatch.Dropless,
}
EXCHANGES = {
  'all-to-all': exchange.AllToAll,
  'worst case': P(exchange.Ragged, 0.0),
  'ample': P(exchange.Ragged, 8.0),
  'all-gather': exchange.AllGather,
}
MESHES = {
  'data expert': mesh_lib.MeshShape(data=2, expert=4),
  'fsdp expert': mesh_lib.MeshShape(fsdp=2, expert=4),
  'expert model': mesh_lib.MeshShape(expert=4, model=2),
  'expert context': mesh_lib.MeshShape(expert=4, context=2),
  'expert': mesh_lib.MeshShape(expert=8),
}
STACKS = [
  ('top-2', 'sorted', 'all-to-all', 'data expert'),
  ('loss-free', 'dropless', 'worst case', 'data expert'),
  ('null', 'sorted', 'all-to-all', 'expert model'),
  ('top-2', 'by probability', 'all-to-all', 'fsdp expert'),
  ('top-2', 'dropless', 'ample', 'expert'),
  ('top-2', 'dropless', 'all-gather', 'expert model'),
  ('top-3 spilling', 'sorted', 'all-to-all', 'data expert'),
  ('top-3 spilling', 'dropless', 'all-gather', 'expert'),
  ('switch', 'sorted', 'all-to-all', 'fsdp expert'),
  ('switch', 'dropless', 'worst case', 'expert context'),
  ('gshard', 'sorted', 'all-gather', 'data expert'),
  ('noisy', 'dropless', 'worst case', 'expert model'),
  ('expert choice', 'sorted', 'all-to-all', 'data expert'),
  ('expert choice', 'dropless', 'worst case', 'expert'),
  ('loss-free', 'sorted', 'all-to-all', 'expert model'),
  ('global balance', 'sorted', 'all-to-all', 'fsdp expert'),
  ('null', 'dropless', 'worst case', 'data expert'),
  ('modality', 'sorted', 'all-to-all', 'expert'),
  ('quantile', 'dropless', 'all-gather', 'fsdp expert'),
  ('base', 'sorted', 'all-to-all', 'data expert'),
  ('sinkhorn', 'dropless', 'worst case', 'expert'),
  ('hash', 'sorted', 'all-to-all', 'expert model'),
]
KEY = 4


def tokens():
  return np.random.RandomState(0).randn(B, T, D).astype(np.float32)


def make(router, dispatcher, **options):
  return MoE(
    E,
    F,
    top_k=ACTIVE.get(router, 2),
    router=ROUTERS[router],
    dispatch=DISPATCHES[dispatcher],
    group_size=M,
    **options,
  )


@functools.cache
def variables(router):
  """Random parameters and a bias, by shapes alone."""
  module = make(router, 'sorted')
  shapes = jax.eval_shape(
    P(module.init, train=False), jax.random.key(0), tokens(), INFO
  )
  random = np.random.RandomState(1)
  return jax.tree.map(
    lambda s: random.uniform(-1, 1, s.shape).astype(s.dtype),
    nn.meta.unbox(shapes),
  )


def total(y_BTD, losses):
  scale = jnp.arange(y_BTD.size, dtype=jnp.float32).reshape(y_BTD.shape)
  value = jnp.sum(jnp.sin(scale) * y_BTD)
  for sum_, weight in losses.values():
    value += 10.0 * sum_ / weight
  return value


def sharded(router, dispatcher, exchanger, mesh_name):
  """((loss, (y, losses, metrics, state)), gradients) on eight devices."""
  mesh = mesh_lib.make_mesh(MESHES[mesh_name])
  layout = rules.layout(rules.table('standard'), mesh)
  module = make(
    router, dispatcher, exchange=EXCHANGES[exchanger], layout=layout
  )
  given = variables(router)

  def loss(params, x_BTD):
    (y_BTD, outputs), updated = module.apply(
      dict(given, params=params),
      x_BTD,
      INFO,
      True,
      rngs={'router': jax.random.key(KEY)},
      mutable=['state'],
    )
    kept = {
      name: outputs.metrics[name]
      for name in ('load', 'dropped', 'padding')
      if name in outputs.metrics
    }
    return total(y_BTD, outputs.losses), (
      y_BTD,
      outputs.losses,
      kept,
      updated.get('state', {}),
    )

  with jax.set_mesh(mesh):
    run = jax.jit(jax.value_and_grad(loss, argnums=(0, 1), has_aux=True))
    return jax.device_get(run(given['params'], tokens()))


def router_key():
  """The key that flax gives the layer's router for a run's key."""

  class Keys(nn.Module):
    @nn.compact
    def __call__(self):
      return self.make_rng('router')

  return Keys().apply({}, rngs={'router': jax.random.key(KEY)})


def whole(router, dispatcher, exchanger):
  """The same without a mesh: every expert on every token."""
  module = make(router, dispatcher)
  given = variables(router)
  gate = module.make_router()
  state = given.get('state', {}).get('router', {})
  groups = lambda a: jnp.asarray(a).reshape(-1, M, *a.shape[2:])
  keys_G = group_keys(router_key(), jnp.arange(B * T // M, dtype=jnp.int32))

  def routed(params, x_GMD):
    logits_GME = jnp.einsum(
      'GMD,DE->GME',
      gate.perturb(x_GMD, keys_G, True),
      params['router'],
      precision='highest',
    )
    inputs = RouterInputs(x_GMD, logits_GME, *map(groups, INFO), T)
    return gate.route(inputs, state, keys_G, True)

  fixed = jax.device_get(routed(given['params'], groups(tokens())))
  kept_GR = np.asarray(fixed.valid_GR)
  dispatch_ = module.dispatch()
  A = fixed.rows_GMA.shape[-1]
  pooled = exchanger in ('worst case', 'ample')
  assert dispatch_.is_dropless or not pooled  # the oracle has single groups
  rows = (
    10**6
    if dispatch_.is_dropless
    else dispatch_.room(M, gate.mean_active(E), E)
  )
  priority = getattr(dispatch_, 'priority', 'position')
  kept_GR = oracle.kept_rows(fixed, E, rows, priority)

  def loss(params, x_BTD):
    x_GMD = groups(x_BTD)
    plan = routed(params, x_GMD)

    def expert(e, x_GMD):
      up, gate_ = (x_GMD @ params[n][e] for n in ('w_up_EDF', 'w_gate_EDF'))
      return (jax.nn.silu(gate_) * up) @ params['w_down_EFD'][e]

    masked = fixed._replace(weight_GR=plan.weight_GR)
    y_GMD = oracle.mixture(x_GMD, masked, kept_GR, expert, E)
    if plan.own_weight_GM is not None:
      y_GMD += plan.own_weight_GM[..., None] * x_GMD
    y_BTD = y_GMD.reshape(B, T, D)
    return total(y_BTD, plan.losses), (
      y_BTD,
      plan.losses,
      plan.statistics.get('load'),
    )

  run = jax.value_and_grad(loss, argnums=(0, 1), has_aux=True)
  del A
  return jax.device_get(run(given['params'], tokens())), kept_GR, fixed


def assert_close(one, other):
  np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
  'router, dispatcher, exchanger, mesh_name',
  [
    pytest.param(*stack, marks=() if i < 3 else pytest.mark.slow)
    for i, stack in enumerate(STACKS)
  ],
)
def test_eight_devices_equal_every_expert_on_every_token(
  router, dispatcher, exchanger, mesh_name
):
  eight, eight_gradients = sharded(router, dispatcher, exchanger, mesh_name)
  (one, gradients), kept_GR, plan = whole(router, dispatcher, exchanger)
  y_BTD, losses, metrics, _ = eight[1]
  assert_close(y_BTD, one[1][0])
  jax.tree.map(assert_close, losses, one[1][1])
  jax.tree.map(assert_close, eight_gradients, gradients)
  if one[1][2] is not None:
    jax.tree.map(assert_close, metrics['load'], one[1][2])
  k = plan.rows_GMA.shape[-1] - plan.num_spare
  rows_GMA = plan.rows_GMA[..., :k]
  asked = np.take_along_axis(
    plan.valid_GR, np.maximum(rows_GMA.reshape(len(rows_GMA), -1), 0), axis=1
  )
  asked &= rows_GMA.reshape(len(rows_GMA), -1) >= 0
  assert metrics['dropped'][0] == asked.sum() - kept_GR.sum()
  assert metrics['dropped'][1] == asked.sum()
  assert metrics['padding'][0] == np.sum(~VALID)
