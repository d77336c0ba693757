"""Grouped-query attention and its mask."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.data import examples
from moe.layers import attention
from moe.layers.attention import Attention, MaskSpec
from moe.types import Cache, Layout, TokenBatch


def make_batch(segments, blocks=None, positions=None):
  segments = np.asarray(segments, np.int32)
  zeros = np.zeros_like(segments)
  blocks = zeros if blocks is None else np.asarray(blocks, np.int32)
  if positions is None:
    positions = zeros + np.arange(segments.shape[1], dtype=np.int32)
  weights = zeros.astype(np.float32)
  return TokenBatch(zeros, zeros, weights, segments, positions, blocks, zeros)


def mask_of(segments, blocks=None):
  return attention.mask_spec(make_batch(segments, blocks), None)


def seen(mask):
  return np.asarray(attention.visible(mask)[0]).astype(int).tolist()


def test_a_causal_token_sees_its_own_document_up_to_itself():
  assert seen(mask_of([[1, 1, 2, 2]])) == [
    [1, 0, 0, 0],
    [1, 1, 0, 0],
    [0, 0, 1, 0],
    [0, 0, 1, 1],
  ]


def test_tokens_of_one_block_see_each_other_and_what_came_before():
  # Tokens 1 and 2 form block 7; tokens 0 and 3 are causal.
  assert seen(mask_of([[1, 1, 1, 1]], [[0, 7, 7, 0]])) == [
    [1, 0, 0, 0],
    [1, 1, 1, 0],
    [1, 1, 1, 0],
    [1, 1, 1, 1],
  ]


def test_a_block_ends_with_its_document():
  assert seen(mask_of([[1, 2, 2]], [[7, 7, 7]])) == [
    [1, 0, 0],
    [0, 1, 1],
    [0, 1, 1],
  ]


def test_padding_is_seen_by_no_document():
  visible = np.array(seen(mask_of([[1, 1, 0, 0]])))
  assert not visible[:2, 2:].any() and not visible[2:, :2].any()


def test_with_a_cache_a_token_sees_filled_slots_and_skips_padding():
  # The cache has four entries. A prompt of one token and one padding place was
  # read before; now two tokens go to entries 2 and 3.
  cache = Cache(
    jnp.array([[1, 0, 0, 0]]),
    jnp.zeros((1, 4), jnp.int32),
    jnp.array(2, jnp.int32),
    {},
  )
  mask = attention.mask_spec(make_batch([[1, 1]]), cache)
  np.testing.assert_array_equal(mask.key_segments_BS, [[1, 0, 1, 1]])
  assert seen(mask) == [[1, 0, 1, 0], [1, 0, 1, 1]]


def test_attention_is_the_softmax_of_products_by_hand():
  # There is one head of width 1. The products of query 1 with the two keys are
  # 0 and ln 3, so the softmax is (1/4, 3/4). The values are 0 and 4, so the
  # output is 3. Query 0 sees only token 0, so its output is 0.
  q_BTNH = np.array([5.0, 1.0], 'f4').reshape(1, 2, 1, 1)
  k_BSKH = np.array([0.0, np.log(3)], 'f4').reshape(1, 2, 1, 1)
  v_BSKH = np.array([0.0, 4.0], 'f4').reshape(1, 2, 1, 1)
  out = jax.jit(attention.attend)(q_BTNH, k_BSKH, v_BSKH, mask_of([[1, 1]]))
  np.testing.assert_allclose(out[0, :, 0, 0], [0, 3], rtol=1e-6)


def test_products_are_divided_by_the_root_of_the_head_width():
  # The head has width 4, so products are divided by sqrt(4) = 2. The product
  # 4 * ln 3 / 2 = 2 ln 3 then gives the score ln 3. The other score is 0.
  q_BTNH = np.ones((1, 2, 1, 4), 'f4')
  k_BSKH = np.stack([np.zeros(4), np.full(4, np.log(3) / 2)]).astype('f4')
  v_BSKH = np.array([[0.0] * 4, [4.0] * 4], 'f4')
  shape = (1, 2, 1, 4)
  out = jax.jit(attention.attend)(
    q_BTNH, k_BSKH.reshape(shape), v_BSKH.reshape(shape), mask_of([[1, 1]])
  )
  np.testing.assert_allclose(out[0, 1, 0], [3] * 4, rtol=1e-5)


def test_grouped_heads_equal_repeated_ones():
  random = np.random.RandomState(0)
  q_BTNH = random.randn(2, 5, 6, 4).astype('f4')
  k_BSKH, v_BSKH = random.randn(2, 2, 5, 2, 4).astype('f4')
  mask = mask_of([[1, 1, 1, 2, 2], [1, 1, 1, 1, 0]])
  # Query heads 0, 1, 2 share key head 0. Query heads 3, 4, 5 share key head 1.
  repeat = lambda a: np.repeat(a, 3, axis=2)
  attend = jax.jit(attention.attend)
  grouped = attend(q_BTNH, k_BSKH, v_BSKH, mask)
  full = attend(q_BTNH, repeat(k_BSKH), repeat(v_BSKH), mask)
  np.testing.assert_allclose(grouped, full, rtol=1e-5, atol=1e-6)


def attended_whole_and_by_parts(longest_block):
  """(output, gradients) of whole attention, and the same of attention by parts.

  In row 1 a block of 5 tokens, and the place that predicts the first of them,
  lie in two parts.
  """
  random = np.random.RandomState(0)
  q_BTNH = random.randn(2, 16, 4, 8).astype('f4')
  k_BTKH, v_BTKH = random.randn(2, 2, 16, 2, 8).astype('f4')
  segments = [[1] * 5 + [2] * 9 + [0] * 2, [1] * 16]
  tokens = np.array([0] * 5 + [1] * 5 + [0] * 7)
  blocks = [[0] * 16, examples.place_blocks(tokens[:-1], tokens[1:])]
  d = mask_of(segments, blocks)

  def both(f):
    out, pull = jax.vjp(f, q_BTNH, k_BTKH, v_BTKH)
    return out, *pull(jnp.cos(out))

  parts = lambda *qkv: attention.attend_by_parts(*qkv, d, 4, longest_block)
  whole = jax.jit(lambda: both(lambda *qkv: attention.attend(*qkv, d)))
  return whole(), jax.jit(lambda: both(parts))()


def test_attention_by_parts_is_attention_forward_and_backward():
  whole, by_parts = attended_whole_and_by_parts(longest_block=5)
  for want, got in zip(whole, by_parts, strict=True):
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_a_block_longer_than_declared_makes_attention_by_parts_nan():
  _, by_parts = attended_whole_and_by_parts(longest_block=4)
  assert np.isnan(by_parts[0]).all()


def test_only_a_long_sequence_that_no_device_divides_has_parts():
  divided = Layout(sequence_axes=('context',), sizes=(('context', 2),))
  assert attention.num_parts(512, Layout()) == 4
  assert attention.num_parts(128, Layout()) == 1
  assert attention.num_parts(512, divided) == 1


LAYER = Attention(num_heads=4, num_kv_heads=2, head_dim=8)
B, T, D = 2, 6, 16


@pytest.fixture(scope='module')
def layer():
  """Compiled function (x, mask, slots) -> (y, slots) with fixed parameters."""
  x_BTD = np.zeros((B, T, D), 'f4')
  shapes = jax.eval_shape(
    LAYER.init, jax.random.key(0), x_BTD, mask_of([[1] * T] * B)
  )
  random = np.random.RandomState(0)
  variables = jax.tree.map(
    lambda s: random.uniform(-0.5, 0.5, s.shape).astype(s.dtype),
    nn.meta.unbox(shapes),
  )
  return jax.jit(lambda x, d, c=None: LAYER.apply(variables, x, d, c))


def tokens():
  return np.random.RandomState(3).randn(B, T, D).astype('f4')


def test_what_a_token_does_not_see_does_not_change_it(layer):
  segments = [[1, 1, 1, 1, 2, 2], [1, 1, 1, 1, 1, 1]]
  x_BTD = tokens()
  changed = x_BTD.copy()
  changed[:, 3] += 1.0  # In row 1, tokens 4 and 5 also see token 3.
  y, of_changed = (layer(x, mask_of(segments))[0] for x in (x_BTD, changed))
  differs = np.abs(y - of_changed).max(axis=-1) > 1e-6
  np.testing.assert_array_equal(
    differs, [[0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 1]]
  )


def test_only_differences_of_positions_matter(layer):
  segments = [[1] * T] * B
  near = attention.mask_spec(make_batch(segments), None)
  far = near._replace(positions_BT=near.positions_BT + 40)
  spread = near._replace(positions_BT=near.positions_BT * 3)
  x_BTD = tokens()
  y, of_far, of_spread = (layer(x_BTD, d)[0] for d in (near, far, spread))
  np.testing.assert_allclose(of_far, y, rtol=1e-4, atol=1e-5)
  assert np.abs(of_spread - y).max() > 1e-3


def test_reading_in_two_parts_equals_reading_at_once(layer):
  x_BTD = tokens()
  whole, _ = layer(x_BTD, mask_of([[1] * T] * B))
  zeros = jnp.zeros((B, T), jnp.int32)
  cache = Cache(zeros, zeros, jnp.array(0, jnp.int32), None)
  slots = (jnp.zeros((B, T, 2, 8)),) * 2
  parts = []
  for start, end in ((0, 4), (4, T)):
    positions = np.arange(start, end, dtype=np.int32) + np.zeros((B, 1), 'i4')
    segments = [[1] * (end - start)] * B
    batch = make_batch(segments, positions=positions)
    d = attention.mask_spec(batch, cache)
    y_BTD, slots = layer(x_BTD[:, start:end], d, slots)
    cache = Cache(
      d.key_segments_BS, d.key_blocks_BS, jnp.array(end, jnp.int32), None
    )
    parts.append(y_BTD)
  np.testing.assert_allclose(
    np.concatenate(parts, axis=1), whole, rtol=1e-5, atol=1e-5
  )


def test_shapes_dtypes_and_logical_axes():
  small = Attention(4, 2, 8, dtype=jnp.bfloat16)
  x_BTD = jax.ShapeDtypeStruct((B, T, D), jnp.bfloat16)
  d = MaskSpec(*(jax.ShapeDtypeStruct((B, T), jnp.int32),) * 5, None)
  (y_BTD, cache), variables = jax.eval_shape(
    small.init_with_output, jax.random.key(0), x_BTD, d
  )
  assert y_BTD == x_BTD and cache is None
  found = {
    name: (box.value.shape, box.value.dtype, box.names)
    for name, box in variables['params'].items()
    if 'norm' not in name
  }
  f32 = jnp.float32
  assert found == {
    'query': ((D, 4, 8), f32, ('embed', 'heads', 'kv')),
    'key': ((D, 2, 8), f32, ('embed', 'heads', 'kv')),
    'value': ((D, 2, 8), f32, ('embed', 'heads', 'kv')),
    'out': ((4, 8, D), f32, ('heads', 'kv', 'embed')),
  }


def test_normalised_queries_do_not_grow_with_the_input(layer):
  # If x is 100 times as large, normalised queries and keys give the same
  # scores, so values and outputs are 100 times as large.
  x_BTD = tokens()
  d = mask_of([[1] * T] * B)
  np.testing.assert_allclose(
    layer(100 * x_BTD, d)[0], 100 * layer(x_BTD, d)[0], rtol=1e-3, atol=1e-3
  )


def test_key_heads_must_divide_the_query_heads():
  with pytest.raises(ValueError, match='NUM_HEADS=4 must be a multiple'):
    Attention(4, 3, 8).init(
      jax.random.key(0), jnp.zeros((1, 2, D)), mask_of([[1, 1]])
    )
