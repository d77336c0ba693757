"""Multi-head latent attention against loops, a cache, and eight devices."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers import attention
from moe.layers.latent_attention import LatentAttention
from moe.parallel import mesh as mesh_lib
from moe.parallel import rules, shardings
from moe.types import Cache, TokenBatch

N, H, ROPE, V, D = 4, 6, 4, 5, 16
QUERY_RANK, KV_RANK = 12, 8
LAYER = LatentAttention(N, QUERY_RANK, KV_RANK, H, ROPE, V)
# Row 0 has two documents and padding. Row 1 has one document. Its tokens 2 to 4
# are a block.
SEGMENTS = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1] * 8], np.int32)
BLOCKS = np.array([[0] * 8, [0, 0, 7, 7, 7, 0, 0, 0]], np.int32)
B, T = SEGMENTS.shape


def make_batch(start=0, end=T):
  segments, blocks = SEGMENTS[:, start:end], BLOCKS[:, start:end]
  zeros = np.zeros_like(segments)
  positions = zeros + np.arange(start, end, dtype=np.int32)
  weights = zeros.astype(np.float32)
  return TokenBatch(zeros, zeros, weights, segments, positions, blocks, zeros)


def tokens():
  return np.random.RandomState(0).randn(B, T, D).astype('f4')


def boxed():
  mask = attention.mask_spec(make_batch(), None)
  return jax.eval_shape(LAYER.init, jax.random.key(0), tokens(), mask)


def make_params():
  random = np.random.RandomState(1)
  return jax.tree.map(
    lambda s: random.uniform(-0.6, 0.6, s.shape).astype(s.dtype),
    nn.meta.unbox(boxed())['params'],
  )


def apply(params, x_BTD, batch=None, cache=None):
  mask = attention.mask_spec(batch or make_batch(), cache)
  slots = None if cache is None else cache.layers
  return LAYER.apply({'params': params}, x_BTD, mask, slots)


def normed(x, scale):
  return x / np.sqrt(np.mean(x**2) + 1e-6) * scale


def turned(x, position):
  """Rotates features i and i + 2, as a complex number, by position / 100^i."""
  angle = position * 10_000.0 ** (-np.arange(0, ROPE, 2) / ROPE)
  z = (x[: ROPE // 2] + 1j * x[ROPE // 2 :]) * np.exp(1j * angle)
  return np.concatenate([z.real, z.imag])


def slow(params, x_BTD):
  """The layer's outputs, by loops over queries, heads and keys in float64."""
  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  y_BTD = np.zeros((B, T, D))
  for b in range(B):
    latents = [x.astype(np.float64) @ p['kv_down'] for x in x_BTD[b]]
    for t in range(T):
      query_latent = x_BTD[b, t].astype(np.float64) @ p['query_down']
      query_latent = normed(query_latent, p['query_norm']['scale'])
      for n in range(N):
        q = query_latent @ p['query_up'][:, n]
        scores, values = [], []
        for s in range(T):
          same_block = BLOCKS[b, s] == BLOCKS[b, t] != 0
          if SEGMENTS[b, s] != SEGMENTS[b, t] or (s > t and not same_block):
            continue
          latent = normed(latents[s][:KV_RANK], p['kv_norm']['scale'])
          score = q[:H] @ (latent @ p['key_up'][:, n])
          score += turned(q[H:], t) @ turned(latents[s][KV_RANK:], s)
          scores.append(score / np.sqrt(H + ROPE))
          values.append(latent @ p['value_up'][:, n])
        weights = np.exp(np.array(scores) - max(scores))
        out = weights / weights.sum() @ np.array(values)
        y_BTD[b, t] += out @ p['out'][n]
  return y_BTD


def test_it_equals_loops_over_queries_heads_and_keys():
  params, x_BTD = make_params(), tokens()
  y_BTD, cache = jax.jit(apply)(params, x_BTD)
  assert cache is None
  np.testing.assert_allclose(y_BTD, slow(params, x_BTD), rtol=1e-4, atol=1e-5)


def test_reading_in_parts_with_a_cache_equals_reading_at_once():
  params, x_BTD = make_params(), tokens()
  whole, _ = jax.jit(apply)(params, x_BTD)
  zeros = np.zeros((B, T), np.int32)
  slots = jax.tree.map(
    lambda s: jnp.zeros(s.shape, s.dtype), LAYER.cache_shapes(B, T)
  )
  cache = Cache(zeros, zeros, jnp.int32(0), slots)
  parts = []
  # The first part contains the whole block of row 1, tokens 2 to 4.
  for start, end in ((0, 5), (5, 6), (6, T)):
    batch = make_batch(start, end)
    y_BTD, slots = jax.jit(apply)(params, x_BTD[:, start:end], batch, cache)
    d = attention.mask_spec(batch, cache)
    cache = Cache(d.key_segments_BS, d.key_blocks_BS, jnp.int32(end), slots)
    parts.append(y_BTD)
  np.testing.assert_allclose(
    np.concatenate(parts, axis=1), whole, rtol=1e-4, atol=1e-5
  )


def test_the_cache_holds_one_latent_and_one_rotary_key_a_token():
  # The cache has 8 + 4 numbers per token. Keys and values of 4 heads would have
  # 4 * (10 + 5).
  latents, keys = LAYER.cache_shapes(3, 20)
  assert latents.shape == (3, 20, 1, KV_RANK)
  assert keys.shape == (3, 20, 1, ROPE)
  small = LAYER.clone(dtype=jnp.bfloat16)
  assert small.cache_shapes(3, 20)[0].dtype == jnp.bfloat16


def loss(params, x_BTD):
  # The weights are random, since a plain sum would not show swapped entries.
  weight_BTD = np.random.RandomState(2).randn(B, T, D).astype('f4')
  return jnp.sum(apply(params, x_BTD)[0] * weight_BTD)


@pytest.fixture(scope='module')
def one_device():
  return jax.jit(jax.value_and_grad(loss))(make_params(), tokens())


def test_every_matrix_has_a_finite_gradient(one_device):
  for path, gradient in jax.tree_util.tree_leaves_with_path(one_device[1]):
    name = jax.tree_util.keystr(path)
    assert np.isfinite(gradient).all(), name
    assert np.abs(gradient).max() > 0, name


def test_gradients_are_finite_where_only_padding_is_read():
  zeros = jax.tree.map(np.zeros_like, make_params())
  gradients = jax.jit(jax.grad(loss))(zeros, 0 * tokens())
  for gradient in jax.tree.leaves(gradients):
    assert np.isfinite(gradient).all()


def test_eight_devices_equal_one(one_device):
  mesh = mesh_lib.make_mesh(mesh_lib.MeshShape(data=2, fsdp=2, model=2))
  table = rules.table('standard')
  logical = jax.tree.map(
    lambda box: box.names,
    boxed()['params'],
    is_leaf=lambda x: isinstance(x, nn.Partitioned),
  )
  params = make_params()
  placed = shardings.param_shardings(params, logical, table, mesh)
  assert placed['query_up'].spec == jax.P('fsdp', 'model', None)
  assert placed['query_down'].spec == jax.P('fsdp', None)
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules.activation_rules(table)):
    found = jax.jit(jax.value_and_grad(loss))(
      jax.device_put(params, placed), tokens()
    )
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    found,
    one_device,
  )


def test_the_softmax_is_of_float32_in_a_bfloat16_layer():
  small = LAYER.clone(dtype=jnp.bfloat16)
  mask = attention.mask_spec(make_batch(), None)
  program = jax.make_jaxpr(small.apply)(
    {'params': make_params()}, tokens().astype(jnp.bfloat16), mask
  )
  assert f'f32[{B},{N},{T},{T}] = exp' in str(program)
  assert program.out_avals[0].dtype == jnp.bfloat16


def test_shapes_and_logical_axes():
  found = {
    name: (box.value.shape, box.names)
    for name, box in boxed()['params'].items()
    if 'norm' not in name
  }
  assert found == {
    'query_down': ((D, 12), ('embed', 'latent')),
    'query_up': ((12, 4, 10), ('latent', 'heads', 'kv')),
    'kv_down': ((D, 12), ('embed', 'latent')),
    'key_up': ((8, 4, 6), ('latent', 'heads', 'kv')),
    'value_up': ((8, 4, 5), ('latent', 'heads', 'kv')),
    'out': ((4, 5, D), ('heads', 'kv', 'embed')),
  }


def test_the_width_counts_scores_and_values():
  # Each of 4 heads has 6 + 4 features for scores and 5 for values. The mean of
  # 10 and 5 is 7.5, and 4 * 7.5 = 30.
  assert LAYER.anatomy().pair_width == 30
