"""The structure module against known outputs, and under rigid motions."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moe.layers import structure
from moe.modalities import rigid
from moe.modalities.rigid import Rigid
from tests import protein_data

pytestmark = pytest.mark.slow

DTYPES = {'float64': 1e-6, 'float32': 1e-4}
N, C, QUERY, VALUE = 7, 6, 12, 13
D, Z, I = 16, 8, 10
SMALL = functools.partial(structure.InvariantPointAttention, 2, 4, 3, 5)
ATTENTION = SMALL(start='linear')


def linear(param, name, *shape, order=None):
  """Converts parameters of PyTorch, whose weights are [out, in]."""
  kernel, bias = param[f'{name}.weight'], param[f'{name}.bias']
  kernel = kernel.T.reshape(-1, *shape) if shape else kernel.T
  bias = bias.reshape(shape) if shape else bias
  if order:  # PyTorch's dims of point projections are (xyz, head, point).
    kernel = kernel.transpose(0, *(1 + i for i in order))
    bias = bias.transpose(order)
  return {'kernel': kernel, 'bias': bias}


def attention_params(param):
  params = {
    name: linear(param, f'linear_{name[0]}', N, C)
    for name in ('query', 'key', 'value')
  }
  for name, num in (('query', QUERY), ('key', QUERY), ('value', VALUE)):
    points = linear(
      param, f'linear_{name[0]}_points', 3, N, num, order=(1, 2, 0)
    )
    params[f'{name}_points'] = points
  out = linear(param, 'linear_out')
  # The features are values, points (xyz, head, point), norms of points, pairs.
  cuts = np.cumsum([N * C, 3 * N * VALUE, N * VALUE])
  value, points, norm, pair = np.split(out['kernel'], cuts)
  points = points.reshape(3, N, VALUE, -1).transpose(1, 2, 0, 3)
  points = points.reshape(3 * N * VALUE, -1)
  out['kernel'] = np.concatenate([value, points, norm, pair])
  return params | {
    'pair_bias': linear(param, 'linear_b'),
    'point_weight': param['head_weights'],
    'out': out,
  }


def cast(tree, dtype):
  return jax.tree.map(lambda x: jnp.asarray(x, dtype), tree)


def of_matrices(whole):
  return Rigid(whole[None, :, :3, :3], whole[None, :, :3, 3])


def known_points(given):
  """Moves dim I to the front: [N, P, I, 3] becomes [1, I, N, P, 3]."""
  point = lambda x: jnp.moveaxis(x, 2, 0)[None]
  feature = lambda x: jnp.moveaxis(x, 1, 0)[None]
  found = {k: given.get(k) for k in ('q', 'k', 'v', 'qp', 'kp', 'vp')}
  moved = [
    None if x is None else (point if len(name) == 2 else feature)(x)
    for name, x in found.items()
  ]
  return structure.Points(*moved)


@pytest.fixture(params=DTYPES)
def dtype(request):
  with jax.enable_x64(True):
    yield request.param


def assert_known(ours, known, dtype):
  assert ours.dtype == dtype
  error = DTYPES[dtype]
  scale = np.abs(known).max()
  np.testing.assert_allclose(ours, known, rtol=error, atol=error * scale)


@protein_data.has_data
def test_the_projections_are_the_known_ones(dtype):
  known = protein_data.case('ipa_prepare')
  layer = structure.InvariantPointAttention(N, C, QUERY, VALUE, dtype=dtype)
  frames = rigid.identity((1, I), dtype)
  _, found = layer.apply(
    {'params': cast(attention_params(known['param']), dtype)},
    cast(known['in']['s'][None], dtype),
    jnp.zeros((1, I, I, 5), dtype),
    frames,
    jnp.ones((1, I), bool),
    capture_intermediates=True,
  )
  expected = known_points(known['out'])
  for name, value in expected._asdict().items():
    ours = found['intermediates'][name]['__call__'][0]
    assert_known(ours, value, dtype)


@protein_data.has_data
def test_the_attention_weights_are_the_known_ones(dtype):
  known = protein_data.case('ipa_scores')
  given, param = cast(known['in'], dtype), cast(known['param'], dtype)
  bias = given['z'] @ param['linear_b.weight'].T + param['linear_b.bias']
  weights = structure.point_attention(
    known_points(given),
    bias[None],
    param['head_weights'],
    of_matrices(given['T']),
    jnp.ones((1, I), bool),
  )
  assert_known(weights[0], known['out']['att'], dtype)


@protein_data.has_data
def test_the_gathered_results_are_the_known_ones(dtype):
  known = protein_data.case('ipa_outputs')
  given = cast(known['in'], dtype)
  results = structure.point_results(
    known_points(given),
    given['att_scores'][None],
    given['z'][None],
    of_matrices(given['T']),
  )
  points = jnp.moveaxis(results['points'], -1, 2)
  for ours, name in (
    (results['value'], 'v_out'),
    (points, 'vp_out'),
    (results['norm'], 'vp_outnorm'),
    (results['pair'], 'pairwise_out'),
  ):
    assert_known(ours.reshape(I, -1), known['out'][name], dtype)


@protein_data.has_data
def test_invariant_point_attention_gives_the_known_output(dtype):
  known = protein_data.case('ipa')
  given = cast(known['in'], dtype)
  layer = structure.InvariantPointAttention(N, C, QUERY, VALUE, dtype=dtype)
  y = layer.apply(
    {'params': cast(attention_params(known['param']), dtype)},
    given['s'][None],
    given['z'][None],
    of_matrices(given['T']),
    jnp.ones((1, I), bool),
  )
  assert_known(y[0], known['out']['out'], dtype)


@protein_data.has_data
def test_the_transition_gives_the_known_output(dtype):
  known = protein_data.case('transition')
  param = known['param']
  params = {f'linear_{i}': linear(param, f'linear_{i + 1}') for i in range(3)}
  params['norm'] = {
    'scale': param['layer_norm.weight'],
    'bias': param['layer_norm.bias'],
  }
  layer = structure.Transition(dtype)
  s = cast(known['in']['s'], dtype)[None]
  y = layer.apply({'params': cast(params, dtype)}, s)
  assert_known(y[0], known['out']['s_out'], dtype)


@protein_data.has_data
def test_the_backbone_update_gives_the_known_motions(dtype):
  known = protein_data.case('backbone_update')
  params = {'linear': linear(known['param'], 'linear')}
  motion = structure.BackboneUpdate(dtype).apply(
    {'params': cast(params, dtype)}, cast(known['in']['s'], dtype)[None]
  )
  assert_known(motion.rotation[0], known['out']['T_out'][:, :3, :3], dtype)
  assert_known(motion.translation[0], known['out']['T_out'][:, :3, 3], dtype)


def torsion_params(param, num_blocks):
  params = {
    'state': linear(param, 'linear_in'),
    'first': linear(param, 'linear_initial'),
    'out': linear(param, 'linear_out', 7, 2),
  }
  for i in range(num_blocks):
    params[f'block_{i}_in'] = linear(param, f'layers.{i}.linear_1')
    params[f'block_{i}_out'] = linear(param, f'layers.{i}.linear_2')
  return params


@protein_data.has_data
def test_the_torsions_are_the_known_ones(dtype):
  known = protein_data.case('angle_resnet')
  layer = structure.TorsionAngles(6, 2, dtype)
  y = layer.apply(
    {'params': cast(torsion_params(known['param'], 2), dtype)},
    cast(known['in']['s'], dtype)[None],
    cast(known['in']['s_initial'], dtype)[None],
  )
  assert_known(y[0], known['out']['alpha'], dtype)


@protein_data.has_data
def test_a_block_of_the_torsions_gives_the_known_output(dtype):
  known = protein_data.case('angle_layer')
  a, param = known['in']['a'], known['param']
  # The layer applies relu to its input (a, -a). The kernel of 'state' subtracts
  # the second half from the first, which gives a again. The kernel of 'out'
  # passes the positive part of the block's result on as torsions.
  eye, none = np.eye(6), np.zeros(6)
  params = {
    'state': {'kernel': np.concatenate([eye, -eye]), 'bias': none},
    'first': {'kernel': np.zeros((12, 6)), 'bias': none},
    'block_0_in': linear(param, 'linear_1'),
    'block_0_out': linear(param, 'linear_2'),
    'out': {'kernel': np.zeros((6, 7, 2)), 'bias': np.zeros((7, 2))},
  }
  params['out']['kernel'][range(6), range(6), 0] = 1
  s = np.concatenate([a, -a], axis=-1)[None]
  y = structure.TorsionAngles(6, 1, dtype).apply(
    {'params': cast(params, dtype)}, cast(s, dtype), cast(0 * s, dtype)
  )
  expected = np.maximum(known['out']['a_out'], 0)
  assert (expected > 0).mean() > 0.3
  assert_known(y[0, :, :6, 0], expected, dtype)


def make_params(layer, *inputs):
  boxed = jax.eval_shape(layer.init, jax.random.key(0), *inputs)
  random = np.random.RandomState(1)
  return jax.tree.map(
    lambda x: (0.3 * random.randn(*x.shape)).astype('f4'), nn.meta.unbox(boxed)
  )


def motion(seed, *shape):
  random = np.random.RandomState(seed)
  rotation = rigid.from_quaternion(jnp.asarray(random.randn(*shape, 4), 'f4'))
  shift = random.randn(*shape, 3)
  shift *= 10 / np.linalg.norm(shift, axis=-1, keepdims=True)
  return Rigid(rotation, jnp.asarray(shift, 'f4'))


@pytest.fixture(scope='module')
def inputs():
  random = np.random.RandomState(0)
  s = random.randn(2, 6, D).astype('f4')
  pair = random.randn(2, 6, 6, Z).astype('f4')
  return s, pair, np.ones((2, 6), bool)


def test_a_rigid_motion_of_ten_angstrom_does_not_change_the_attention(inputs):
  s, pair, valid = inputs
  frames = motion(3, 2, 6)
  frames = frames._replace(translation=frames.translation / 10)
  params = make_params(ATTENTION, s, pair, frames, valid)
  apply = jax.jit(ATTENTION.apply)
  y = apply(params, s, pair, frames, valid)
  whole = motion(4, 2, 1)
  moved = apply(params, s, pair, whole.compose(frames), valid)
  assert np.abs(y - moved).max() <= 1e-5
  # A mirror image must not give the same result.
  flip = jnp.array([1.0, 1, -1])
  mirrored = Rigid(frames.rotation, frames.translation * flip)
  assert np.abs(y - apply(params, s, pair, mirrored, valid)).max() > 1e-3


MODULE = structure.StructureModule(
  functools.partial(SMALL, start='linear'), num_layers=2, torsion_width=8
)


@pytest.fixture(scope='module')
def module_params(inputs):
  return make_params(MODULE, *inputs)


def test_a_rigid_motion_of_the_first_frames_moves_all_later_ones(
  inputs, module_params, monkeypatch
):
  found = MODULE.apply(module_params, *inputs)
  whole = motion(4, 2, 1)
  unit = MODULE.unit_length
  first = Rigid(whole.rotation, whole.translation / unit)
  first = first.compose(rigid.identity((2, 6), jnp.float32))
  monkeypatch.setattr(structure, 'identity', lambda shape, dtype: first)
  moved = MODULE.apply(module_params, *inputs)
  expected = whole.compose(found.frames)
  assert np.abs(found.frames.translation).max() > 1
  error = np.abs(moved.frames.translation - expected.translation) / unit
  assert error.max() <= 1e-5
  assert np.abs(moved.frames.rotation - expected.rotation).max() <= 1e-5


def test_padding_does_not_change_the_other_residues(inputs, module_params):
  s, pair, valid = inputs
  apply = jax.jit(MODULE.apply)
  whole = apply(module_params, s[:1, :4], pair[:1, :4, :4], valid[:1, :4])
  valid = np.arange(6)[None] < 4
  padded = apply(module_params, s[:1], pair[:1], valid)
  np.testing.assert_allclose(
    padded.frames.translation[:, :, :4], whole.frames.translation, atol=1e-4
  )
  np.testing.assert_allclose(
    padded.torsions[:, :, :4], whole.torsions, atol=1e-4
  )


def test_a_batch_gives_what_its_chains_give_alone(inputs, module_params):
  s, pair, valid = inputs
  apply = jax.jit(MODULE.apply)
  both = apply(module_params, s, pair, valid)
  one = apply(module_params, s[1:], pair[1:], valid[1:])
  np.testing.assert_allclose(
    both.frames.translation[:, 1:], one.frames.translation, atol=1e-4
  )


def test_a_new_module_starts_with_all_frames_at_the_identity(inputs):
  module = structure.StructureModule(SMALL, num_layers=2, torsion_width=8)
  params = module.init(jax.random.key(0), *inputs)
  found = module.apply(nn.meta.unbox(params), *inputs)
  assert found.frames.rotation.shape == (2, 2, 6, 3, 3)
  np.testing.assert_array_equal(found.frames.translation, 0)
  expected = np.tile(np.eye(3), (2, 2, 6, 1, 1))
  np.testing.assert_array_equal(found.frames.rotation, expected)


def test_gradients_are_finite_although_all_frames_start_at_one_point(inputs):
  s, pair, valid = inputs
  params = nn.meta.unbox(MODULE.init(jax.random.key(0), s, pair, valid))

  def loss(params):
    found = MODULE.apply(params, s, pair, valid)
    return jnp.sum(jnp.square(found.frames.translation - 1))

  gradient = jax.jit(jax.grad(loss))(params)
  leaves = jax.tree.leaves(gradient)
  assert all(np.isfinite(x).all() for x in leaves)
  update = gradient['params']['backbone_update']['linear']['bias']
  assert np.abs(update[3:]).max() > 0
