"""Token embedding and the output head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers import embedding

TABLE = np.array([[1, 2, 3, 4], [5, 6, 7, 8], [0, 0, 0, 1]], np.float32)


def test_a_token_reads_its_row_times_the_root_of_the_width():
  # The width is 4, so the row of token 1 is doubled.
  embed = embedding.Embedding(vocab_size=3, d_model=4)
  x_BTD = jax.jit(embed.apply)(
    {'params': {'table': TABLE}}, np.array([[1, 2]], np.int32)
  )
  np.testing.assert_array_equal(x_BTD, [[[10, 12, 14, 16], [0, 0, 0, 2]]])


def test_vectors_start_with_features_of_unit_size():
  embed = embedding.Embedding(vocab_size=64, d_model=256)
  tokens = np.arange(64, dtype=np.int32)[None]
  x_BTD, _ = jax.jit(embed.init_with_output)(jax.random.key(0), tokens)
  assert float(jnp.std(x_BTD)) == pytest.approx(1.0, rel=0.05)


def test_logits_are_products_with_every_row():
  # The products of (1, 0, 0, 1) with the three rows are 1 + 4, 5 + 8 and 0 + 1.
  hidden = np.array([1, 0, 0, 1], np.float32)
  found = jax.jit(embedding.logits)(hidden, TABLE)
  np.testing.assert_array_equal(found, [5, 13, 1])


def test_logits_of_bfloat16_are_float32_and_added_up_in_float32():
  # bfloat16 has 8 significant bits and rounds 256 + 1 to 256; float32 does not.
  hidden = jnp.ones((2,), jnp.bfloat16)
  found = jax.jit(embedding.logits)(hidden, np.array([[256, 1]], np.float32))
  assert found.dtype == jnp.float32
  np.testing.assert_array_equal(found, [257])


def test_shapes_and_logical_axes():
  tokens = jax.ShapeDtypeStruct((2, 5), jnp.int32)
  embed = embedding.Embedding(vocab_size=3, d_model=4, dtype=jnp.bfloat16)
  x_BTD, variables = jax.eval_shape(
    embed.init_with_output, jax.random.key(0), tokens
  )
  assert x_BTD == jax.ShapeDtypeStruct((2, 5, 4), jnp.bfloat16)
  head = embedding.OutputHead(vocab_size=3, d_model=4)
  table_VD, head_variables = jax.eval_shape(
    head.init_with_output, jax.random.key(0)
  )
  assert table_VD == jax.ShapeDtypeStruct((3, 4), jnp.float32)
  for found in (variables, head_variables):
    assert found['params']['table'].names == ('vocab', 'embed')
    assert found['params']['table'].value == table_VD


def test_an_extra_outside_of_its_table_gives_nan():
  extra = embedding.ExtraEmbedding(size=3, d_model=2)
  params = {'params': {'table': TABLE[:, :2]}}
  values = np.array([[2, 3, -1]], np.int32)
  x_BTD = extra.apply(params, values)
  np.testing.assert_array_equal(x_BTD[0, 0], TABLE[2, :2])
  assert np.isnan(x_BTD[0, 1:]).all()


def test_only_tokens_with_a_patch_get_its_vector():
  layer = embedding.Patches(2)
  # The patches are white, black and missing.
  patches = jnp.array([[[255, 255], [1, 1], [0, 0]]], jnp.uint8)
  kernel = jnp.array([[1.0, 2.0], [3.0, 4.0]])
  found = layer.apply({'params': {'linear': {'kernel': kernel}}}, patches)
  np.testing.assert_allclose(found, [[[4, 6], [-4, -6], [0, 0]]], atol=1e-6)
