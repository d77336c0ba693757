import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec as P

from moe.optim import optimizers
from moe.parallel.mesh import MeshShape, make_mesh
from moe.scale import orthogonal

RATE = optax.constant_schedule(0.1)
SHAPES = {
  'moe': {'w_up_EDF': (4, 2, 8, 12), 'router': (4, 8, 2)},
  'prefix': {'w_up_DF': (8, 12)},
}
# FLOPs of five iterations on a matrix [8, 12]. An iteration has two products of
# 2 x 8 x 8 x 12 = 1536, and a square of 2 x 8^3 = 1024.
ONE = 5 * (2 * 1536 + 1024)


def params(mesh=None):
  """Shapes of parameters; with a mesh they have shardings on it."""
  specs = {'w_up_EDF': P(None, 'expert', 'fsdp'), 'w_up_DF': P('fsdp')}

  def one(path, shape):
    sharding = mesh and jax.NamedSharding(mesh, specs.get(path[-1].key, P()))
    return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)

  return jax.tree_util.tree_map_with_path(
    one, SHAPES, is_leaf=lambda node: isinstance(node, tuple)
  )


def state(optimizer, **options):
  return jax.eval_shape(optimizers.build(optimizer, **options).init, params())


def test_flops_of_an_update_count_every_matrix_and_no_router():
  assert orthogonal.flops(state(optimizers.muon(RATE))) == 9 * ONE
  assert orthogonal.flops_with_muon(params()) == 9 * ONE


def test_an_update_element_by_element_has_no_products():
  assert orthogonal.flops(state(optimizers.adamw(RATE))) == 0


def test_frozen_matrices_cost_nothing():
  frozen = state(optimizers.muon(RATE), frozen=('moe/w_up_EDF',))
  assert orthogonal.flops(frozen) == ONE


def test_devices_share_the_products_and_exchange_parts_of_matrices():
  mesh = make_mesh(MeshShape(data=1, fsdp=2, expert=2), jax.devices()[:4])
  done = orthogonal.update(state(optimizers.muon(RATE)), params(mesh))
  # 8 matrices of experts are sharded over 4 devices. The columns of the matrix
  # of the prefix are sharded over the 2 devices of the axis fsdp, but both
  # compute the square.
  assert done.flops == 8 * ONE / 4 + 5 * (2 * 1536 / 2 + 1024)
  # Three float32 copies of 2 matrices [8, 12] and of their products [8, 8].
  assert done.working_bytes == 3 * 4 * 2 * (8 * 12 + 8 * 8)
  kinds = [(t.kind, t.axis, t.num_bytes, t.times) for t in done.transfers]
  # Before the products, devices exchange parts of matrices, and afterwards they
  # exchange them back. Each of five iterations sums an [8, 8] product over
  # devices.
  assert kinds == [
    ('all-to-all', 'fsdp', 4 * 2 * 8 * 12, 2),
    ('all-to-all', 'fsdp', 4 * 8 * 6, 2),
    ('all-reduce', 'fsdp', 4 * 8 * 8, 5),
  ]


def test_devices_that_share_whole_matrices_gather_the_update():
  mesh = make_mesh(MeshShape(data=1, fsdp=2, expert=2), jax.devices()[:4])
  shape, spec = (4, 8, 12), P(None, 'fsdp')
  name = {'prefix': {'w_up_DF': 0}}
  made = lambda sharding: jax.tree.map(
    lambda _: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding), name
  )
  optimizer = optimizers.build(optimizers.muon(RATE), clip_norm=0)
  opt_state = jax.eval_shape(optimizer.init, made(None))
  placed = made(jax.NamedSharding(mesh, spec))
  done = orthogonal.update(opt_state, placed)
  # A device stores half of each of the 4 matrices. An exchange over fsdp gives
  # it 2 whole matrices. Devices along 'expert' have copies of the parameter, so
  # each of the two works on one of these matrices and needs the other update.
  assert done.flops == ONE
  kinds = [(t.kind, t.axis, t.num_bytes, t.times) for t in done.transfers]
  assert kinds == [
    ('all-to-all', 'fsdp', 4 * 2 * 8 * 12, 2),
    ('all-gather', 'expert', 4 * 2 * 8 * 12, 1),
  ]


def test_working_bytes_are_about_what_a_compiled_update_holds():
  shape = {'w_up_EDF': jax.ShapeDtypeStruct((4, 64, 96), jnp.float32)}
  mesh = make_mesh(MeshShape(), jax.devices()[:1])
  here = jax.NamedSharding(mesh, P())
  placed = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=here), shape
  )
  optimizer = optimizers.build(optimizers.muon(RATE), clip_norm=0)
  opt_state = jax.eval_shape(optimizer.init, shape)
  step = jax.jit(optimizer.update, donate_argnums=(0, 1))
  compiled = step.lower(shape, opt_state, shape).compile()
  temporary = compiled.memory_analysis().temp_size_in_bytes
  predicted = orthogonal.update(opt_state, placed).working_bytes
  assert temporary == pytest.approx(predicted, rel=0.5)
