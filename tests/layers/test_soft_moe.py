"""Soft MoE against plain loops and by its properties."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers.moe_layer import TokenInfo
from moe.layers.soft_moe import SoftMoE
from moe.parallel import mesh as mesh_lib
from moe.parallel import rules
from moe.types import Layout
from tests.models import factories

B, T, D, E, F, M = 8, 8, 5, 4, 6, 4
P = functools.partial
# Whether each token is valid. Row 1 has 4 valid tokens, and row 4 has 3. So
# their second groups are padding.
VALID = np.arange(T) < np.array([[8, 4, 7, 8, 3, 8, 8, 6]]).T


def make(**options):
  return SoftMoE(E, F, group_size=M, **options)


def info(valid=VALID):
  zeros = np.zeros(valid.shape, np.int32)
  return TokenInfo(zeros, zeros, valid)


def tokens(seed=0):
  return np.random.RandomState(seed).randn(B, T, D).astype(np.float32)


@functools.cache
def made():
  """(params, compiled function (params, x, valid) -> (y, LayerOutputs))."""
  module = make()
  shapes = jax.eval_shape(
    P(module.init, train=True), jax.random.key(0), tokens(), info()
  )
  random = np.random.RandomState(1)
  params = jax.tree.map(
    lambda s: random.uniform(-1, 1, s.shape).astype(s.dtype),
    nn.meta.unbox(shapes['params']),
  )
  run = lambda params, x, valid: module.apply(
    {'params': params}, x, info(valid), True
  )
  return params, jax.jit(run)


def softmax(a):
  a = np.exp(np.asarray(a, np.float64))
  return a / a.sum()


def loops(params, x_MD, valid_M):
  """Computes the outputs of one group by loops over slots and tokens."""
  C = M * 2 // E
  phi = np.asarray(params['router'], np.float64)
  phi = params['scale'] * phi / np.linalg.norm(phi, axis=0)
  real = np.flatnonzero(valid_M)
  unit = {m: x_MD[m] / np.linalg.norm(x_MD[m]) for m in real}
  y_MD = np.zeros((M, D))
  if not len(real):
    return y_MD
  outputs = {}
  for e in range(E):
    for c in range(C):
      weights = softmax([unit[m] @ phi[:, e, c] for m in real])
      slot = sum(w * x_MD[m] for w, m in zip(weights, real, strict=True))
      up, gate = (slot @ params[n][e] for n in ('w_up_EDF', 'w_gate_EDF'))
      hidden = gate / (1 + np.exp(-gate)) * up
      outputs[e, c] = hidden @ params['w_down_EFD'][e]
  for m in real:
    shares = softmax([unit[m] @ phi[:, e, c] for e, c in outputs])
    y_MD[m] = sum(
      s * out for s, out in zip(shares, outputs.values(), strict=True)
    )
  return y_MD


def test_it_equals_loops_over_slots_and_tokens():
  params, run = made()
  y_BTD, _ = run(params, tokens(), VALID)
  expected = [
    loops(params, x, v)
    for x, v in zip(
      tokens().reshape(-1, M, D), VALID.reshape(-1, M), strict=True
    )
  ]
  np.testing.assert_allclose(
    y_BTD, np.reshape(expected, (B, T, D)), rtol=1e-4, atol=1e-5
  )


def test_padding_gets_nothing_and_moves_nothing():
  params, run = made()
  other = np.where(VALID[..., None], tokens(), 100 * tokens(1))
  one, two = (run(params, x, VALID) for x in (tokens(), other))
  jax.tree.map(np.testing.assert_array_equal, one, two)
  np.testing.assert_array_equal(one[0][~VALID], 0)


def test_permuting_the_tokens_of_a_group_permutes_its_outputs():
  params, run = made()
  order = np.concatenate(
    [np.random.RandomState(3).permutation(M), [4, 5, 6, 7]]
  )
  y_BTD, _ = run(params, tokens(), VALID)
  moved, _ = run(params, tokens()[:, order], VALID[:, order])
  np.testing.assert_allclose(moved, y_BTD[:, order], rtol=1e-4, atol=1e-5)


def written_out(params, x_BTD):
  """Computes the outputs of `loops` for all groups, in differentiable JAX."""
  C = M * 2 // E
  unit = lambda a, dim: a / jnp.sqrt((a**2).sum(dim, keepdims=True) + 1e-6)
  phi_DEC = params['scale'] * unit(params['router'], 0)
  x_GMD, valid_GM1 = x_BTD.reshape(-1, M, D), VALID.reshape(-1, M, 1)
  y_GMD, total_GM1 = 0.0, 0.0
  for e in range(E):
    for c in range(C):
      score_GM1 = jnp.exp(unit(x_GMD, -1) @ phi_DEC[:, e, c])[..., None]
      mix_GM1 = jnp.where(valid_GM1, score_GM1, 0.0)
      mean_GM1 = mix_GM1 / (mix_GM1.sum(axis=1, keepdims=True) + 1e-30)
      slot_GD = (mean_GM1 * x_GMD).sum(axis=1)
      up, gate = (slot_GD @ params[n][e] for n in ('w_up_EDF', 'w_gate_EDF'))
      out_GD = (jax.nn.silu(gate) * up) @ params['w_down_EFD'][e]
      y_GMD += score_GM1 * out_GD[:, None]
      total_GM1 += score_GM1
  return jnp.where(valid_GM1, y_GMD / total_GM1, 0.0).reshape(B, T, D)


def uneven(y_BTD):
  """A loss in which every entry of y has a different weight."""
  scale = jnp.arange(y_BTD.size, dtype=jnp.float32).reshape(y_BTD.shape)
  return jnp.sum(jnp.sin(scale) * y_BTD)


def assert_same_gradients(found, expected):
  close = P(np.testing.assert_allclose, rtol=1e-3, atol=1e-4)
  jax.tree.map(close, jax.device_get(found), jax.device_get(expected))
  for gradient in jax.tree.leaves(expected):
    assert np.abs(gradient).max() > 1e-2


@functools.cache
def gradients():
  """Gradients for all parameters and tokens, on one device."""
  params, run = made()
  loss = lambda params, x: uneven(run(params, x, VALID)[0])
  return jax.jit(jax.grad(loss, argnums=(0, 1)))(params, tokens())


def test_gradients_are_those_of_the_sums_written_out():
  loss = lambda params, x: uneven(written_out(params, x))
  expected = jax.jit(jax.grad(loss, argnums=(0, 1)))(made()[0], tokens())
  assert_same_gradients(gradients(), expected)


def test_the_statistics_are_shares_of_tokens():
  params, run = made()
  _, outputs = run(params, tokens(), VALID)
  load, weight = outputs.metrics['load']
  assert float(weight) == VALID.sum()
  assert float(load.sum()) == pytest.approx(VALID.sum(), rel=1e-5)
  entropy = float(outputs.metrics['entropy'][0] / weight)
  assert 0 < entropy <= np.log(E) + 1e-6
  assert outputs.losses == {}


def on_eight_devices():
  """(mesh, the function of `made`, its arguments on the mesh)."""
  params, _ = made()
  mesh = mesh_lib.make_mesh(mesh_lib.MeshShape(data=4, model=2))
  module = make(layout=rules.layout(rules.table('standard'), mesh))
  put = lambda a, *spec: jax.device_put(
    a, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
  )
  placed = dict(
    params,
    w_up_EDF=put(params['w_up_EDF'], None, None, 'model'),
    w_gate_EDF=put(params['w_gate_EDF'], None, None, 'model'),
    w_down_EFD=put(params['w_down_EFD'], None, 'model'),
  )
  run = lambda params, x, valid: module.apply(
    {'params': params}, x, info(valid), True
  )
  return mesh, run, (placed, put(tokens(), 'data'), put(VALID, 'data'))


def test_eight_devices_give_what_one_gives():
  params, run = made()
  mesh, sharded, args = on_eight_devices()
  with jax.set_mesh(mesh):
    found = jax.jit(sharded)(*args)
  close = P(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  jax.tree.map(close, found, run(params, tokens(), VALID))


def test_gradients_on_eight_devices_are_those_on_one():
  mesh, sharded, args = on_eight_devices()
  loss = lambda *args: uneven(sharded(*args)[0])
  with jax.set_mesh(mesh):
    found = jax.jit(jax.grad(loss, argnums=(0, 1)))(*args)
  assert_same_gradients(found, gradients())


def test_one_token_alone_is_not_mixed():
  with pytest.raises(ValueError, match='cannot read token by token'):
    jax.eval_shape(
      P(SoftMoE(E, F).init, train=False),
      jax.random.key(0),
      tokens()[:, :1],
      info(VALID[:, :1]),
    )


def test_divided_experts_are_refused():
  layout = Layout(expert_axes=('expert',), sizes=(('expert', 2),))
  with pytest.raises(ValueError, match='set MESH_EXPERT = 1'):
    jax.eval_shape(
      P(make(layout=layout).init, train=True),
      jax.random.key(0),
      tokens(),
      info(),
    )


def test_groups_must_divide_the_sequence():
  with pytest.raises(ValueError, match='must divide the 8 tokens'):
    jax.eval_shape(
      P(SoftMoE(E, F, group_size=3).init, train=True),
      jax.random.key(0),
      tokens(),
      info(),
    )


def test_it_takes_the_place_of_the_sparse_layer_in_a_model():
  sparse = P(SoftMoE, num_experts=4, expert_d_ff=10)
  block = P(factories.make_block(), moe=sparse)
  batch = factories.make_batch([[1, 1, 1, 2], [1, 1, 1, 0]])
  for twin in (False, True):
    decoder = factories.make_decoder(block=P(block, dense_twin=twin))
    outputs, _ = jax.eval_shape(
      P(decoder.init_with_output), jax.random.key(0), batch
    )
    assert outputs.hidden.shape == (2, 4, factories.D_MODEL)
  router = sparse(parent=None).anatomy().router
  assert router.mean_active(4) == 2 and not router.is_causal
