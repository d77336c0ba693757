"""The layer norm keeps the digits that its result needs."""

import jax
import jax.numpy as jnp
import numpy as np

from moe.layers.linear import LayerNorm


def test_a_norm_in_bfloat16_has_the_statistics_of_float32():
  x = 64 + np.random.RandomState(0).randn(4, 128)
  x = jnp.asarray(x, jnp.bfloat16)
  params = LayerNorm('embed').init(jax.random.key(0), x)
  whole = LayerNorm('embed').apply(params, x)
  short = LayerNorm('embed', jnp.bfloat16).apply(params, x)
  assert short.dtype == jnp.bfloat16
  # The results are below 4, where bfloat16 has steps of 1/64.
  assert np.abs(whole).max() < 4
  assert np.abs(short.astype(jnp.float32) - whole).max() <= 1 / 128
