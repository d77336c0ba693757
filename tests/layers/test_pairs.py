"""Layers of pairs give known outputs of AlphaFold 2's layers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from moe import axes
from moe.layers import pairs
from tests import protein_data

DTYPES = {'float64': 1e-6, 'float32': 1e-4}
ALL = np.ones((1, 9), bool)


@pytest.fixture(params=DTYPES)
def dtype(request):
  with jax.enable_x64(True):
    yield request.param


def norm(param, name):
  return {'scale': param[f'{name}.weight'], 'bias': param[f'{name}.bias']}


def kernels(param, names):
  """Joins kernels of PyTorch, turned into [in, out], and joins their biases."""
  kernel = np.concatenate([param[f'{n}.weight'].T for n in names], axis=1)
  zeros = lambda n: np.zeros(len(param[f'{n}.weight']))
  bias = np.concatenate([param.get(f'{n}.bias', zeros(n)) for n in names])
  return kernel, bias


def assert_known_output(layer, params, known, dtype):
  cast = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)
  y = layer.apply({'params': cast(params)}, cast(known['in']['z'])[None], ALL)
  expected = known['out']['z_out']
  assert y.dtype == dtype
  error = DTYPES[dtype]
  atol = error * np.abs(expected).max()
  np.testing.assert_allclose(y[0], expected, rtol=error, atol=atol)


@protein_data.has_data
@pytest.mark.parametrize(
  ('case', 'direction'),
  [('tri_mul_out', pairs.OUTGOING), ('tri_mul_in', pairs.INCOMING)],
)
def test_triangle_multiplication_gives_the_known_output(case, direction, dtype):
  known = protein_data.case(case)
  param = known['param']
  names = {
    'one': 'a_p',
    'two': 'b_p',
    'one_gate': 'a_g',
    'two_gate': 'b_g',
    'gate': 'g',
    'out': 'z',
  }
  linear = {}
  for ours, theirs in names.items():
    kernel, bias = kernels(param, [f'linear_{theirs}'])
    linear[ours] = {'kernel': kernel, 'bias': bias}
  params = {
    'norm': norm(param, 'layer_norm_in'),
    direction: {'norm': norm(param, 'layer_norm_out'), **linear},
  }
  layer = pairs.TriangleMultiplication((direction,), 6, dtype)
  assert_known_output(layer, params, known, dtype)


@protein_data.has_data
@pytest.mark.parametrize('end', ['start', 'end'])
def test_triangle_attention_gives_the_known_output(end, dtype):
  known = protein_data.case(f'tri_att_{end}')
  param = known['param']
  kernel, bias = kernels(param, [f'mha.linear_{n}' for n in 'qkvg'])
  out_kernel, out_bias = kernels(param, ['mha.linear_o'])
  bias_kernel, bias_bias = kernels(param, ['linear'])
  params = {
    'norm': norm(param, 'layer_norm'),
    'bias': {'kernel': bias_kernel, 'bias': bias_bias},
    'attention': {
      'projections': {
        'kernel': kernel.reshape(5, 4, 7, 6),
        'bias': bias.reshape(4, 7, 6),
      },
      'out': {'kernel': out_kernel, 'bias': out_bias},
    },
  }
  layer = pairs.TriangleAttention(end == 'end', 7, 6, dtype)
  assert_known_output(layer, params, known, dtype)


@protein_data.has_data
def test_the_transition_of_pairs_gives_the_known_output(dtype):
  known = protein_data.case('pair_transition')
  param = known['param']
  params = {'norm': norm(param, 'layer_norm')}
  for ours, theirs in (('hidden', 'linear_1'), ('out', 'linear_2')):
    kernel, bias = kernels(param, [theirs])
    params[ours] = {'kernel': kernel, 'bias': bias}
  layer = pairs.PairTransition(3, dtype=dtype)
  cast = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)
  y = layer.apply({'params': cast(params)}, cast(known['in']['z']))
  expected = known['out']['z_out']
  error = DTYPES[dtype]
  atol = error * np.abs(expected).max()
  np.testing.assert_allclose(y, expected, rtol=error, atol=atol)


def test_triangle_attention_by_parts_is_that_of_the_whole(monkeypatch):
  random = np.random.RandomState(0)
  pair = random.randn(2, 6, 6, 4).astype('f4')
  valid = np.arange(6) < np.array([[6], [4]])
  layer = pairs.TriangleAttention(True, 2, 3)
  made = layer.init(jax.random.key(0), pair, valid)
  params = jax.tree.map(lambda x: random.randn(*x.shape).astype('f4'), made)

  def both(pair):
    y = layer.apply(params, pair, valid)
    return jnp.sum(jnp.square(y)), y

  whole = jax.value_and_grad(both, has_aux=True)(pair)
  # One row of the pairs of both chains has 2 * 6 * 6 scores in each head.
  monkeypatch.setattr(pairs, 'MOST_SCORES', 2 * (2 * 6 * 6) * 2)
  assert pairs.num_parts((2, 6, 6), 2) == 3
  parts = jax.value_and_grad(both, has_aux=True)(pair)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4),
    whole,
    parts,
  )


def test_devices_share_the_scores():
  assert pairs.num_parts((128, 256, 256), 4, 128) == 1
  assert pairs.num_parts((128, 256, 256), 4) == 64
  rules = [(axes.BATCH, ('data', 'fsdp')), (axes.LENGTH, 'context')]
  mesh = AbstractMesh((2, 3, 5, 7), ('data', 'fsdp', 'context', 'tensor'))
  assert pairs._num_devices() == 1
  with jax.sharding.use_abstract_mesh(mesh), nn.logical_axis_rules(rules):
    assert pairs._num_devices() == 30


def test_long_rows_are_attended_one_by_one():
  assert pairs.num_parts((8, 64, 64), 4) == 1
  assert pairs.num_parts((1, 1024, 1024), 4) == 32
  assert pairs.num_parts((1, 8192, 8192), 4) == 8192
