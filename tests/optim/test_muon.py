import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from moe.optim import matrices, muon, optimizers
from moe.parallel import shardings
from moe.parallel.mesh import MeshShape, make_mesh

CONSTANT = optax.constant_schedule(0.1)
LAYERS, E, D, F = 4, 4, 32, 48
EXPERTS = 'periods/block_0/moe/w_up_EDF'
DOWN = 'periods/block_0/moe/w_down_EFD'
QUERY = 'periods/block_0/attention/query'
OUT = 'periods/block_0/attention/out'
DENSE = 'prefix_0/feed_forward/w_up_DF'


def tree_of(arrays):
  """Makes a nested tree from path -> array."""
  tree = {}
  for path, array in arrays.items():
    *rooms, last = path.split('/')
    node = tree
    for room in rooms:
      node = node.setdefault(room, {})
    node[last] = array
  return tree


def draw(*shape, seed=0):
  return np.random.RandomState(seed).randn(*shape).astype('f4')


def direction(name, grad):
  """Returns the direction of a parameter's first update."""
  muon_direction, grads = muon.scale_by_muon(0.95), tree_of({name: grad})
  updates, _ = muon_direction.update(grads, muon_direction.init(grads))
  return jax.tree.leaves(updates)[0]


def updated(optimizer, params, grads, steps=1):
  @jax.jit
  def run(params):
    state = optimizer.init(params)
    for _ in range(steps):
      updates, state = optimizer.update(grads, state, params)
      params = optax.apply_updates(params, updates)
    return params, state

  return run(params)


def test_singular_values_come_near_one_and_their_vectors_stay():
  x = draw(3, 16, 40)
  got = np.asarray(jax.jit(muon.orthogonalise)(x))
  u, _, v = np.linalg.svd(x, full_matrices=False)
  # In the basis of the singular vectors of x, the result must be diagonal.
  values = np.einsum('bri,brc,bjc->bij', u, got, v)
  diagonal = np.einsum('bii->bi', values)
  assert 0.65 < diagonal.min() and diagonal.max() < 1.25
  np.testing.assert_allclose(values, np.eye(16) * diagonal[:, None], atol=1e-5)


def test_a_matrix_of_zeros_stays_zero():
  assert not np.asarray(muon.orthogonalise(jnp.zeros((1, 4, 8)))).any()


@pytest.mark.parametrize('shape', [(24, 40), (40, 24)])
def test_one_matrix_gets_the_direction_of_optax(shape):
  grads = [draw(*shape, seed=s) for s in range(3)]
  ours = muon.scale_by_muon(0.95)
  theirs = optax.contrib.scale_by_muon(
    weight_dimension_numbers={'w_DF': optax.contrib.MuonDimensionNumbers()}
  )
  state = ours.init({'w_DF': grads[0]})
  other = theirs.init({'w_DF': grads[0]})
  with jax.numpy_dtype_promotion('standard'):
    for g in grads:
      got, state = ours.update({'w_DF': g}, state)
      wanted, other = theirs.update({'w_DF': g}, other)
  gain = 0.2 * 40**0.5
  np.testing.assert_allclose(got['w_DF'], gain * wanted['w_DF'], atol=1e-5)


def test_each_expert_of_each_layer_is_a_matrix_of_its_own():
  x = draw(LAYERS, E, D, F)
  together = direction(EXPERTS, x)
  alone = direction('w_DF', x[2, 1])
  np.testing.assert_allclose(together[2, 1], alone, atol=5e-6)


def test_heads_are_columns_of_one_matrix():
  x = draw(D, 4, 8)
  heads = direction(QUERY, x)
  flat = direction('w_DF', x.reshape(D, 32))
  np.testing.assert_allclose(heads, flat.reshape(D, 4, 8), atol=5e-6)


def test_an_update_is_as_large_as_one_of_adam():
  # If all 16 singular values are 1, the mean square of the 16 x 64 entries is
  # 16 / (16 x 64) = 1 / 64. The factor 0.2 x sqrt(64) makes the root mean
  # square 0.2. It is a little less here, since the singular values are only
  # near 1.
  got = direction('w_DF', draw(16, 64))
  rms = float(jnp.sqrt(jnp.mean(jnp.square(got))))
  assert rms == pytest.approx(0.2 * 0.9, rel=0.15)


def test_tables_routers_and_norms_are_adams():
  others = ['embedding/table', 'a/moe/router', 'a/last_norm/scale']
  params = tree_of({name: jnp.ones((D, F)) for name in [*others, DENSE]})
  grads = tree_of({name: draw(D, F) for name in [*others, DENSE]})
  run = lambda made: updated(
    optimizers.build(made(CONSTANT, weight_decay=0.0)), params, grads
  )[0]
  got, wanted = run(optimizers.muon), run(optimizers.adamw)
  same = jax.tree.map(lambda a, b: bool(jnp.allclose(a, b)), got, wanted)
  assert same == tree_of({**dict.fromkeys(others, True), DENSE: False})


@pytest.mark.parametrize('moment_dtype', ['float32', 'bfloat16', 'int8'])
def test_the_momentum_takes_the_bytes_of_its_format(moment_dtype):
  optimizer = optimizers.build(
    optimizers.muon(CONSTANT, moment_dtype=moment_dtype)
  )
  params = {'w_DF': jax.ShapeDtypeStruct((64, 1024), jnp.float32)}
  state = jax.eval_shape(optimizer.init, params)
  num_bytes = sum(a.size * a.dtype.itemsize for a in jax.tree.leaves(state))
  # Bytes per number; 128 int8 codes share one float32 scale.
  wanted = {'float32': 4, 'bfloat16': 2, 'int8': 1 + 4 / 128}[moment_dtype]
  assert num_bytes / params['w_DF'].size == pytest.approx(wanted, abs=0.001)


@pytest.mark.parametrize('moment_dtype', ['bfloat16', 'int8'])
def test_a_momentum_in_few_bits_takes_the_steps_of_a_whole_one(moment_dtype):
  def trained(moment_dtype):
    made = optimizers.muon(
      CONSTANT, weight_decay=0.0, moment_dtype=moment_dtype
    )
    optimizer = optimizers.build(made, clip_norm=0)
    params = {'w_DF': jnp.zeros((8, 128))}

    def body(carry, key):
      params, state = carry
      grads = jax.random.normal(key, (8, 128)) + draw(8, 128)
      updates, state = optimizer.update({'w_DF': grads}, state, params)
      return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(0), 20)
    run = jax.jit(lambda c: jax.lax.scan(body, c, keys)[0])
    return np.asarray(run((params, optimizer.init(params)))[0]['w_DF'])

  whole, small = trained('float32'), trained(moment_dtype)
  gap = np.linalg.norm(small - whole) / np.linalg.norm(whole)
  assert 0 < gap < 0.05


def placed(mesh, arrays):
  """Returns (params, their shapes with shardings)."""
  specs = {
    EXPERTS: P(None, 'expert', 'fsdp', 'model'),
    DOWN: P(None, 'expert', 'model', 'fsdp'),
    QUERY: P(None, 'fsdp', 'model', None),
    OUT: P(None, 'model', None, 'fsdp'),
    DENSE: P('fsdp', 'model'),
    'embedding/table': P('model', 'fsdp'),
  }
  params = tree_of(arrays)
  shapes = tree_of(
    {
      name: jax.ShapeDtypeStruct(
        a.shape, a.dtype, sharding=jax.NamedSharding(mesh, specs[name])
      )
      for name, a in arrays.items()
    }
  )
  return params, shapes


ARRAYS = {
  EXPERTS: draw(LAYERS, E, D, F),
  DOWN: draw(LAYERS, E, F, D),
  QUERY: draw(LAYERS, D, 4, 8),
  OUT: draw(3, 4, 8, D),
  DENSE: draw(D, F),
  'embedding/table': draw(64, D),
}


@pytest.mark.parametrize('moment_dtype', ['float32', 'int8'])
@pytest.mark.parametrize(
  'sizes',
  [
    {'data': 1, 'fsdp': 2, 'expert': 2, 'model': 2},
    {'data': 2, 'fsdp': 1, 'expert': 4},
    {'data': 1, 'fsdp': 8},
  ],
)
def test_devices_together_make_the_update_of_one(sizes, moment_dtype):
  mesh = make_mesh(MeshShape(**sizes))
  params, shapes = placed(mesh, ARRAYS)
  optimizer = optimizers.build(
    optimizers.muon(CONSTANT, moment_dtype=moment_dtype)
  )

  def step(optimizer, params, state):
    grads = jax.tree.map(jnp.sin, params)
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  wanted, _ = jax.jit(lambda p, s: step(optimizer, p, s))(params, state)
  there = jax.tree.map(lambda s: s.sharding, shapes)
  state_there = shardings.optimizer_shardings(state, shapes, there, mesh)
  divided = optimizers.placed(optimizer, shapes)
  run = jax.jit(
    lambda p, s: step(divided, p, s),
    in_shardings=(there, state_there),
    out_shardings=(there, state_there),
  )
  with jax.set_mesh(mesh):
    text = run.lower(params, state).compile().as_text()
    got, _ = run(
      jax.device_put(params, there), jax.device_put(state, state_there)
    )
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5)
  if sizes.get('data') == 1:
    # No gathered array is as large as one matrix, so no device gets a whole
    # stack of matrices.
    assert 'all-to-all' in text
    assert largest_gather(text) < D * F


def largest_gather(text):
  """Size of the largest result of an all-gather in a compiled program."""
  found = re.findall(r'= [a-z0-9]+\[([0-9,]*)\]\S* all-gather\(', text)
  sizes = [np.prod([int(n) for n in dims.split(',') if n]) for dims in found]
  return max(sizes, default=0)


def test_whole_matrices_are_shared_before_columns_are_divided():
  mesh = make_mesh(MeshShape(data=1, fsdp=2, expert=2, model=2))
  named = lambda *spec: jax.NamedSharding(mesh, P(*spec))
  stack = matrices.matrix_of(EXPERTS, (LAYERS, E, D, F))
  shared = matrices.division(stack, named(None, 'expert', 'fsdp', 'model'))
  assert shared.used == (('expert', 'fsdp', 'model'), (), ())
  alone = matrices.matrix_of(DENSE, (D, F))
  shared = matrices.division(alone, named('fsdp', 'model'))
  assert shared.used == ((), (), ('fsdp', 'model'))


def test_a_layout_that_leaves_a_matrix_in_parts_is_refused_with_a_reason():
  mesh = make_mesh(MeshShape(data=1, fsdp=8))
  # The 8 rows are stored on 8 devices, one on each. To orthogonalise, Muon
  # divides matrices or columns instead, but 8 divides neither 3 matrices nor 12
  # columns.
  stack = matrices.matrix_of(EXPERTS, (1, 3, 8, 12))
  sharding = jax.NamedSharding(mesh, P(None, None, 'fsdp', None))
  with pytest.raises(ValueError) as error:
    matrices.division(stack, sharding)
  for fragment in ("'fsdp' (8 devices)", EXPERTS, '3 matrices', 'side 12'):
    assert fragment in str(error.value)


def test_flops_are_those_of_five_steps_of_three_products():
  stack = matrices.matrix_of(EXPERTS, (1, 3, 8, 12))
  # 3 matrices have 5 iterations of three products. The Gram matrix takes 2 x 8
  # x 8 x 12 = 1536 FLOPs, its square 2 x 8^3 = 1024, the product with x 1536.
  assert muon.flops(stack) == 3 * 5 * (1536 + 1024 + 1536)


def test_matrices_and_tables_are_decayed_and_routers_are_not():
  # If the gradient is 0, only the decay changes a parameter: 1 - 0.1 x 0.5.
  names = ('embedding/table', 'a/moe/router', 'a/last_norm/scale', DENSE)
  params = tree_of({name: jnp.ones((D, F)) for name in names})
  grads = jax.tree.map(jnp.zeros_like, params)
  made = optimizers.muon(CONSTANT, weight_decay=0.5)
  got, _ = updated(optimizers.build(made), params, grads)
  values = [0.95, 1.0, 1.0, 0.95]
  wanted = tree_of(dict(zip(names, values, strict=True)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-6), got, wanted)
