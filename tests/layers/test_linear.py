"""Linear layers over the first and the last dim; layer norms."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers.linear import LayerNorm, Linear


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


def by_autodiff(x, scale, bias):
  """The layer norm as its definition; its gradients are JAX's."""
  centred = x - x.mean(axis=-1, keepdims=True)
  deviation = jnp.sqrt(jnp.mean(centred**2, axis=-1, keepdims=True) + 1e-5)
  return centred / deviation * scale + bias


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float64, jnp.bfloat16])
def test_the_gradients_of_a_norm_are_those_of_its_definition(dtype):
  random = np.random.RandomState(0)
  x, weight = random.randn(2, 2, 3, 5).astype('f4')
  scale, bias = random.randn(2, 5).astype('f4')

  def ours(x, scale, bias):
    params = {'scale': scale, 'bias': bias}
    y = LayerNorm('embed', dtype).apply({'params': params}, x.astype(dtype))
    return y.astype(jnp.float32)

  with jax.enable_x64(dtype == jnp.float64):
    found, expected = (
      jax.grad(lambda *given, f=f: jnp.sum(f(*given) * weight), (0, 1, 2))(
        *map(jnp.asarray, (x, scale, bias))
      )
      for f in (ours, by_autodiff)
    )
  error = 0.03 if dtype == jnp.bfloat16 else 1e-5
  for one, other in zip(found, expected, strict=True):
    np.testing.assert_allclose(one, other, rtol=error, atol=error)


@pytest.mark.parametrize('features', [(4,), (2, 3)])
def test_a_layer_over_the_first_dim_is_that_over_the_last(features):
  x = np.random.RandomState(0).randn(2, 3, 5).astype('f4')
  logical = ('embed', *[None] * len(features))
  last = Linear(features, logical)
  params = nn.unbox(last.init(jax.random.key(0), x))
  params['params']['bias'] += np.arange(np.prod(features), dtype='f4').reshape(
    features
  )
  turned = np.moveaxis(x, -1, 0)
  y = Linear(features, logical, is_first=True).apply(params, turned)
  ends = range(-len(features), 0)
  expected = jnp.moveaxis(last.apply(params, x), ends, range(len(features)))
  assert y.shape == (*features, 2, 3)
  np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
