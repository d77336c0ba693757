"""Upcycling makes the experts of a sparse model from a dense model."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from launch.configs import configuration
from moe.checkpoint import restore, save, upcycle
from moe.layers.moe_layer import MoE, TokenInfo
from moe.parallel.mesh import MeshShape, make_mesh
from moe.runs import build

D, F, E, L = 4, 10, 3, 2


SIZES = {
  'D_MODEL': 16,
  'NUM_LAYERS': 2,
  'NUM_HEADS': 2,
  'NUM_KV_HEADS': 1,
  'HEAD_DIM': 8,
  'D_FF': 24,
  'EXPERT_D_FF': 24,
  'NUM_EXPERTS': 4,
  'VOCAB_SIZE': 64,
  'SEQUENCE_LENGTH': 16,
  'BATCH_SIZE': 4,
  'GROUP_SIZE': 16,
  'TRAIN_STEPS': 200,
  'LEARNING_RATE': 0.1,
  'MESH_DATA': -1,
}


def load(**macros):
  """A run with the values of `SIZES` and of `macros`; sparse by default."""
  files = ['models/tiny.gin', 'parallel/data.gin', 'tasks/builtin.gin']
  bindings = [f'{name}={value}' for name, value in (SIZES | macros).items()]
  return configuration.load([*files, 'runs/train.gin'], bindings)


def loss_of(program, ts):
  rng = np.random.default_rng(0)
  shape = program.batch_shapes.tokens.shape
  tokens = rng.integers(64, size=shape, dtype=np.int32)
  batch = jax.tree.map(lambda _: np.ones_like(tokens), program.batch_shardings)
  batch = batch._replace(
    tokens=tokens,
    targets=tokens[:, ::-1],
    loss_weights=np.ones(tokens.shape, np.float32),
    block_ids=np.zeros_like(tokens),
  )
  total, weight = program.eval_step(ts, program.put(batch))['cross_entropy']
  return float(total / weight)


def save_dense(directory, num_devices, **macros):
  """Saves a dense run with random parameters as step 3; returns its loss."""
  run = load(MOE_EVERY=0, **macros)
  program = build.build(run, jax.devices()[:num_devices])
  ts = program.init()
  saver = save.Checkpointer(directory)
  saver.save(3, {'params': ts.params}, {})
  saver.close()
  return loss_of(program, ts)


def upcycled_loss(dense, method, num_devices, **macros):
  """The loss of a sparse run that starts from a dense one."""
  run = load(INITIAL_CHECKPOINT=f"'{dense}'", UPCYCLE=method, **macros)
  program = build.build(run, jax.devices()[:num_devices])
  return loss_of(program, build.starting_state(run, program, {}))


def dense_and_sparse_loss(tmp_path, method, **macros):
  """Losses of a dense run and of a sparse one that starts from it."""
  dense = save_dense(tmp_path / 'dense', 1)
  sparse = upcycled_loss(tmp_path / 'dense', method, 4, MESH_EXPERT=4, **macros)
  return dense, sparse


@pytest.mark.slow
@pytest.mark.parametrize('method', ['@upcycle.Copy()', '@upcycle.Drop()'])
def test_eight_devices_upcycle_what_eight_have_trained_as_one_does(
  tmp_path, method
):
  sizes = {'BATCH_SIZE': 8, 'NUM_EXPERTS': 8}
  losses = [save_dense(tmp_path / f'{n}', n, **sizes) for n in (1, 8)]
  assert losses[1] == pytest.approx(losses[0], abs=1e-5)
  one = upcycled_loss(tmp_path / '1', method, 1, **sizes)
  mesh = {'MESH_DATA': 2, 'MESH_EXPERT': 4}
  eight = upcycled_loss(tmp_path / '8', method, 8, **mesh, **sizes)
  assert eight == pytest.approx(one, abs=1e-5)


@pytest.mark.slow
def test_a_run_that_starts_from_copies_computes_the_same_as_the_dense_run(
  tmp_path,
):
  dense, sparse = dense_and_sparse_loss(tmp_path, '@upcycle.Copy()')
  assert abs(sparse - dense) < 1e-5


@pytest.mark.slow
def test_copies_with_plain_probabilities_do_not_keep_the_function(tmp_path):
  macros = {'gates.TopK.renormalize': False}
  dense, sparse = dense_and_sparse_loss(tmp_path, '@upcycle.Copy()', **macros)
  assert abs(sparse - dense) > 1e-4


@pytest.mark.slow
def test_a_run_that_starts_from_drops_is_close_to_the_dense_run(tmp_path):
  dense, sparse = dense_and_sparse_loss(tmp_path, '@upcycle.Drop()')
  assert 1e-6 < abs(sparse - dense) < 1.0


def test_upcycling_needs_a_dense_run_to_start_from():
  with pytest.raises(ValueError, match='UPCYCLE needs INITIAL_CHECKPOINT'):
    load(UPCYCLE='@upcycle.Copy()')


def test_the_dense_model_is_divided_over_the_devices_of_the_experts():
  mesh = make_mesh(MeshShape(expert=4), jax.devices()[:8])
  shape = lambda shape, *names: jax.ShapeDtypeStruct(
    shape, jnp.float32, sharding=jax.NamedSharding(mesh, jax.P(*names))
  )
  experts = shape((L, 8, D, F), None, 'expert')
  sparse = {'block': {'moe': {'w_up_EDF': experts}}, 'norm': shape((L, D))}
  whole = jax.NamedSharding(mesh, jax.P())
  placement = upcycle.dense_placement(sparse, whole)
  dense = jax.ShapeDtypeStruct((L, D, F), jnp.float32)
  # 4 devices cannot divide 2 layers, so they divide the width D = 4.
  found = placement('params/block/feed_forward/w_up_DF', dense)
  assert found.shard_shape(dense.shape) == (L, D // 4, F)
  assert placement('params/norm', sparse['norm']) == sparse['norm'].sharding
  assert placement('state/anything', dense) == whole


@pytest.fixture
def weights(key):
  shapes = {'w_up_EDF': (L, D, F), 'w_gate_EDF': (L, D, F)}
  shapes |= {'w_down_EFD': (L, F, D)}
  keys = jax.random.split(key, 3)
  return {
    name: jax.random.normal(k, shape)
    for k, (name, shape) in zip(keys, shapes.items(), strict=True)
  }


def trees(weights):
  """Parameters of a dense model, and initial ones of a sparse model."""
  dense = {
    'feed_forward': {re.sub('_E', '_', name): w for name, w in weights.items()},
    'norm': jnp.full((L, D), 2.0),
  }
  zeros = {name: jnp.zeros((L, E, *w.shape[1:])) for name, w in weights.items()}
  router = jnp.full((L, D, E), 7.0)
  sparse = {'moe': {**zeros, 'router': router}, 'norm': jnp.zeros((L, D))}
  return {'block': dense}, {'block': sparse}


def test_each_expert_is_a_copy_and_the_rest_stays(weights, key):
  dense, sparse = trees(weights)
  made = upcycle.upcycle(dense, sparse, upcycle.Copy(), key)['block']
  for name, w in weights.items():
    for e in range(E):
      np.testing.assert_array_equal(made['moe'][name][:, e], w)
  assert (made['moe']['router'] == 7.0).all()
  assert (made['norm'] == 2.0).all()


def forward(x_BTD, weights):
  """A SwiGLU layer written by hand, from matrices without an expert dim."""
  up, gate = x_BTD @ weights['w_up_EDF'], x_BTD @ weights['w_gate_EDF']
  return (jax.nn.silu(gate) * up) @ weights['w_down_EFD']


@pytest.mark.slow
def test_a_layer_of_copies_with_renormalised_weights_is_the_dense_layer(
  weights, key
):
  layer = {name: w[0] for name, w in weights.items()}
  experts = upcycle.Copy().experts(layer, 4, key)
  moe = MoE(4, F, top_k=2, group_size=8)
  info = TokenInfo(*(jnp.ones((2, 8), jnp.int32),) * 2, jnp.ones((2, 8), bool))
  x_BTD = jax.random.normal(key, (2, 8, D))
  router = jax.random.normal(key, (D, 4))
  params = {**experts, 'router': router}
  y_BTD, _ = moe.apply({'params': params}, x_BTD, info, False)
  np.testing.assert_allclose(y_BTD, forward(x_BTD, layer), atol=1e-5)


def test_noise_stays_within_two_deviations_and_differs_by_expert(weights, key):
  made = upcycle.Noise(scale=0.1).experts(weights, E, key)
  for name, w in weights.items():
    noise = made[name] - w[:, None]
    bound = 0.2 * w.std(axis=(1, 2))[:, None, None, None]
    assert (jnp.abs(noise) <= bound + 1e-6).all()
    assert jnp.abs(noise).max() > 0.5 * bound.min()
    assert jnp.abs(noise[:, 0] - noise[:, 1]).max() > 0


def test_drop_draws_the_same_units_again_in_every_matrix(weights, key):
  made = upcycle.Drop(share=0.3).experts(weights, E, key)
  changed = {
    name: np.asarray(made[name] != w[:, None]).any(
      axis=-1 if 'down' in name else -2
    )
    for name, w in weights.items()
  }  # Each array has the dims [L, E, F].
  assert (changed['w_up_EDF'].sum(axis=-1) == 3).all()  # 0.3 of 10 units
  for name in ('w_gate_EDF', 'w_down_EFD'):
    np.testing.assert_array_equal(changed[name], changed['w_up_EDF'])
  assert len({tuple(row) for row in changed['w_up_EDF'].reshape(-1, F)}) > 1


def test_new_weights_have_the_mean_and_deviation_of_the_old_ones(key):
  shape = {'w_up_EDF': (64, 400), 'w_down_EFD': (400, 64)}
  old = {n: 3 + 2 * jax.random.normal(key, s) for n, s in shape.items()}
  new = upcycle.Drop(share=1.0).experts(old, 2, key)
  for name in shape:
    assert abs(new[name].mean() - 3) < 0.05
    assert abs(new[name].std() - 2) < 0.05


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda d: d['feed_forward'].pop('w_up_DF'), 'w_up_DF is missing'),
    (lambda d: d.update(bias=jnp.zeros(1)), 'block/bias has no use'),
    (
      lambda d: d.update(norm=jnp.zeros(9)),
      r'block/norm would be \(9,\) and must be \(2, 4\)',
    ),
  ],
)
def test_a_dense_model_that_does_not_fit_is_an_error(
  weights, key, change, message
):
  dense, sparse = trees(weights)
  change(dense['block'])
  with pytest.raises(ValueError, match=message):
    upcycle.upcycle(dense, sparse, upcycle.Copy(), key)


@pytest.mark.parametrize(
  'make', [lambda: upcycle.Noise(0.0), lambda: upcycle.Drop(1.5)]
)
def test_amounts_out_of_range_are_errors(make):
  with pytest.raises(ValueError, match='must be'):
    make()


def test_a_checkpoint_moves_between_expert_axis_sizes_bit_for_bit(
  tmp_path, key
):
  # The three meshes have expert axes of 4, 1 and 2 devices. The second and the
  # third mesh read what the mesh before them has saved.
  w_EDF = jax.random.normal(key, (8, 4, 6))
  bits = np.asarray(w_EDF).tobytes()
  placed = w_EDF
  for step, devices in enumerate((4, 1, 2)):
    mesh = jax.make_mesh(
      (devices,), ('expert',), devices=jax.devices()[:devices]
    )
    spec = jax.sharding.PartitionSpec('expert')
    sharding = jax.sharding.NamedSharding(mesh, spec)
    if step:
      target = {
        'w': jax.ShapeDtypeStruct(w_EDF.shape, w_EDF.dtype, sharding=sharding)
      }
      loaded, _ = restore.load_params(tmp_path, step, {'params': target})
      placed = loaded['params']['w']
    else:
      placed = jax.device_put(w_EDF, sharding)
    assert placed.sharding == sharding
    assert placed.addressable_shards[0].data.shape == (8 // devices, 4, 6)
    assert np.asarray(placed).tobytes() == bits
    saver = save.Checkpointer(tmp_path)
    saver.save(step + 1, {'params': {'w': placed}}, {})
    saver.close()
