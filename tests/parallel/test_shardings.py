import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from moe import axes
from moe.optim import optimizers
from moe.parallel import rules, shardings
from moe.parallel.mesh import MeshShape, make_mesh
from moe.types import Field

STANDARD = rules.table('standard')


def shape(*dims):
  return jax.ShapeDtypeStruct(dims, jnp.float32)


def spec(dims, logical, mesh, table='standard'):
  return shardings.param_spec('w', dims, logical, rules.table(table), mesh)


def test_a_parameter_is_divided_by_the_rules_of_its_dims():
  mesh = make_mesh(MeshShape(data=1, fsdp=2, expert=2, model=2))
  logical = (axes.LAYERS, axes.EXPERT, axes.EMBED, axes.EXPERT_MLP)
  got = spec((3, 4, 8, 16), logical, mesh)
  assert got == P(None, 'expert', 'fsdp', 'model')


def test_axes_of_one_device_and_dims_without_a_name_divide_nothing():
  mesh = make_mesh(MeshShape(data=4, expert=2))
  assert spec((5, 7), (axes.EMBED, None), mesh) == P(None, None)


def test_a_mesh_axis_divides_the_first_of_two_dims_that_name_it():
  mesh = make_mesh(MeshShape(data=1, fsdp=2, expert=4))
  # The table gives 'expert' for both dims, and 'fsdp' for the second one.
  logical = (axes.EXPERT, axes.EMBED)
  got = spec((8, 8), logical, mesh, 'fsdp_over_expert')
  assert got == P('expert', 'fsdp')


def test_a_dim_that_is_not_divisible_is_named_with_its_size_and_axes():
  mesh = make_mesh(MeshShape(data=2, expert=4))
  tree = {'moe': {'w_up': shape(6, 8)}}
  logical = {'moe': {'w_up': (axes.EXPERT, axes.EMBED)}}
  with pytest.raises(ValueError) as error:
    shardings.param_shardings(tree, logical, STANDARD, mesh)
  message = str(error.value)
  for fragment in ('moe/w_up', "'expert'", ' 6 ', "('expert',)", '4 devices'):
    assert fragment in message


def test_optimizer_state_is_divided_over_the_data_axis_as_well():
  mesh = make_mesh(MeshShape(data=2, fsdp=2, expert=2))
  params = {
    'w_up': shape(2, 8, 12),
    'odd': shape(3, 10),
    'prime': shape(7),
  }
  logical = {
    'w_up': (axes.EXPERT, axes.EMBED, axes.EXPERT_MLP),
    'odd': (None, None),
    'prime': (None,),
  }
  placed = shardings.param_shardings(params, logical, STANDARD, mesh)
  opt = jax.eval_shape(optax.scale_by_adam().init, params)
  got = shardings.optimizer_shardings(opt, params, placed, mesh)
  assert got.count.spec == P()
  # 'data' divides the second dim, because 'expert' divides the first dim into
  # single experts.
  assert got.mu['w_up'].spec == P('expert', ('fsdp', 'data'), None)
  assert got.nu['w_up'].spec == got.mu['w_up'].spec
  assert got.mu['odd'].spec == P(None, 'data')
  assert got.mu['prime'].spec == P(None)
  # Parameters are replicated over 'data', unlike moments.
  assert placed['w_up'].spec == P('expert', 'fsdp', None)


def test_factored_state_follows_the_dims_that_it_has():
  mesh = make_mesh(MeshShape(data=2, fsdp=1, expert=4))
  params = {'w': shape(4, 64, 96)}
  logical = {'w': (axes.EXPERT, axes.EMBED, axes.EXPERT_MLP)}
  placed = shardings.param_shardings(params, logical, STANDARD, mesh)
  optimizer = optimizers.adafactor(optax.constant_schedule(1.0))
  opt = jax.eval_shape(optimizers.build(optimizer).init, params)
  got = shardings.optimizer_shardings(opt, params, placed, mesh)
  flat = jax.tree_util.tree_flatten_with_path(opt)[0]
  specs = {
    leaf.shape: s.spec
    for (_, leaf), s in zip(flat, jax.tree.leaves(got), strict=True)
  }
  assert specs[4, 64] == P('expert', 'data')
  assert specs[4, 96] == P('expert', 'data')
  assert specs[1,] == P()  # Adafactor's placeholder has size 1.


def test_codes_are_divided_like_their_parameter_and_scales_by_whole_blocks():
  mesh = make_mesh(MeshShape(data=2, expert=2, model=2))
  params = {'w': shape(4, 64, 512), 'narrow': shape(4, 64, 128)}
  logical = dict.fromkeys(params, (axes.EXPERT, axes.EMBED, axes.EXPERT_MLP))
  placed = shardings.param_shardings(params, logical, STANDARD, mesh)
  adamw = optimizers.adamw(optax.constant_schedule(1.0), moment_dtype='int8')
  opt = jax.eval_shape(optimizers.build(adamw).init, params)
  got = shardings.optimizer_shardings(opt, params, placed, mesh)
  flat = jax.tree_util.tree_flatten_with_path(opt)[0]
  specs = {
    (shardings.path_name(path).split('/')[-1], str(leaf.dtype)): s.spec
    for (path, leaf), s in zip(flat, jax.tree.leaves(got), strict=True)
    if leaf.shape
  }
  whole = P(('expert', 'data'), None, 'model')
  assert specs['w', 'int8'] == specs['w', 'uint8'] == whole
  assert specs['w', 'float32'] == whole  # Each device has 2 of 4 blocks.
  # The last dim, 128, is one block of codes. Each device has half of it.
  assert specs['narrow', 'int8'] == whole
  assert specs['narrow', 'float32'] == P(('expert', 'data'), None, None)


def test_state_belongs_to_the_parameter_with_the_longest_matching_path():
  mesh = make_mesh(MeshShape(data=1, fsdp=8))
  params = {'scale': shape(8), 'norm': {'scale': shape(8)}}
  logical = {'scale': (None,), 'norm': {'scale': (axes.EMBED,)}}
  placed = shardings.param_shardings(params, logical, STANDARD, mesh)
  opt = jax.eval_shape(optax.trace(0.9).init, params)
  got = shardings.optimizer_shardings(opt, params, placed, mesh)
  assert got.trace['norm']['scale'].spec == P('fsdp')
  assert got.trace['scale'].spec == P(None)


def test_optimizer_state_in_host_memory_is_refused_on_cpus():
  mesh = make_mesh(MeshShape(data=8))
  with pytest.raises(ValueError, match='OPTIMIZER_ON_HOST=True needs devices'):
    shardings.on_host({'w': shape(8)}, {'w': shardings.replicated(mesh)}, mesh)


def test_all_axes_of_the_batch_divide_it():
  field = Field((16, 8), np.int32, (axes.BATCH, axes.LENGTH))
  fields = {'tokens': field}
  mesh = make_mesh(MeshShape(data=2, expert=4))
  tokens = shardings.batch_shardings(fields, STANDARD, mesh)['tokens']
  assert tokens.shard_shape((16, 6)) == (2, 6)
  # The axis 'context' divides the sequence.
  mesh = make_mesh(MeshShape(data=2, context=4))
  tokens = shardings.batch_shardings(fields, STANDARD, mesh)['tokens']
  assert tokens.shard_shape((16, 8)) == (8, 2)


def test_a_field_of_a_batch_is_divided_by_the_axes_it_names():
  mesh = make_mesh(MeshShape(data=4, context=2))
  pictures = Field((8, 6, 6, 3), np.float32, (axes.BATCH, None, None, None))
  placed = shardings.batch_shardings({'pictures': pictures}, STANDARD, mesh)
  assert placed['pictures'].shard_shape((8, 6, 6, 3)) == (2, 6, 6, 3)


def test_bytes_on_a_device_are_those_of_its_shard():
  mesh = make_mesh(MeshShape(data=2, expert=4))
  sharding = jax.NamedSharding(mesh, P('expert', None))
  assert shardings.device_bytes(shape(8, 3), sharding) == 2 * 3 * 4
  assert shardings.device_bytes(shape(), shardings.replicated(mesh)) == 4
