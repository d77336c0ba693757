import contextlib
import dataclasses

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from moe import axes
from moe.checkpoint.save import Checkpointer
from moe.data.reader import Reader
from moe.modalities.text import train_vocabulary
from moe.models.functional import make_functional
from moe.objectives import language
from moe.optim import optimizers, schedules
from moe.optim.storage import Storage
from moe.parallel import rules
from moe.parallel.mesh import MeshShape, make_mesh
from moe.train.program import make_program, parameter_table
from tests.data.conftest import LINES, write_texts

CONSTANT = optax.constant_schedule(0.25)
TABLE = rules.table('standard')
MESH = MeshShape(data=2, fsdp=2, expert=2)


def toy_program(toy, shape=MESH, num_devices=8, batch_size=8, **options):
  return make_program(
    dataclasses.replace(toy, fields=lambda: language.fields(batch_size, 4)),
    optimizers.build(optimizers.adamw(CONSTANT)),
    CONSTANT,
    TABLE,
    make_mesh(shape, jax.devices()[:num_devices]),
    seed=3,
    **options,
  )


@pytest.fixture(scope='module')
def program(toy):
  return toy_program(toy)


@pytest.fixture(scope='module')
def first(program):
  """The initial state on eight devices; tests must not donate its buffers."""
  return program.init()


def test_parameters_are_sharded_from_the_start(program, first):
  w = first.params['w']
  assert w.shape == (16, 8)
  assert w.sharding.spec == P(None, 'fsdp')
  assert {s.data.shape for s in w.addressable_shards} == {(16, 4)}
  for a, abstract in zip(
    jax.tree.leaves(first), jax.tree.leaves(program.abstract), strict=True
  ):
    assert a.sharding.is_equivalent_to(abstract.sharding, a.ndim)
    assert (a.shape, a.dtype) == (abstract.shape, abstract.dtype)


def test_the_data_axis_divides_the_optimizer_state(first):
  moments = [a for a in jax.tree.leaves(first.opt_state) if a.shape == (16, 8)]
  assert len(moments) == 2
  for moment in moments:
    # A device has a quarter: fsdp shards the width, and data shards the rows.
    assert {s.data.shape for s in moment.addressable_shards} == {(8, 4)}


def test_parameters_do_not_depend_on_the_mesh(toy, first):
  alone = toy_program(toy, MeshShape(), 1).init()
  np.testing.assert_array_equal(first.params['w'], alone.params['w'])


def test_a_batch_arrives_whole_and_in_order(program, make_batch):
  batch = make_batch(0)
  placed_batch = program.put(batch)
  pairs = zip(*map(jax.tree.leaves, (placed_batch, batch)), strict=True)
  for got, wanted in pairs:
    np.testing.assert_array_equal(got, wanted)
    assert {s.data.shape for s in got.addressable_shards} == {(1, 4)}


def test_a_step_keeps_shardings_and_donates_the_old_state(program, make_batch):
  ts, batch = program.init(), program.put(make_batch(0))
  after, metrics = program.train_step(ts, batch)
  assert ts.params['w'].is_deleted()
  assert after.params['w'].sharding.spec == P(None, 'fsdp')
  assert metrics['loss'][0].sharding.is_fully_replicated
  assert program.eval_step(after, batch)['cross_entropy'][0].shape == ()


@pytest.mark.parametrize('num_microbatches', [1, 2])
def test_eight_devices_train_as_one_does(toy, make_batch, num_microbatches):
  options = {'batch_size': 16, 'num_microbatches': num_microbatches}
  ends = []
  for shape, num_devices in ((MESH, 8), (MeshShape(), 1)):
    program = toy_program(toy, shape, num_devices, **options)
    ts = program.init()
    for i in range(3):
      batch = program.put(make_batch(i, B=16))
      ts, metrics = program.train_step(ts, batch)
    ends.append((ts.params['w'], metrics['loss'][0], metrics['grad_norm'][0]))
  for got, wanted in zip(*ends, strict=True):
    np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_a_batch_of_the_reader_is_the_same_on_eight_devices_and_one(
  toy, tmp_path
):
  vocabulary = train_vocabulary(LINES, 320, tmp_path / 'v.model', 'char')
  texts = [line[: 2 + n % 9] for n in range(50) for line in LINES]
  store = write_texts(tmp_path / 'train', vocabulary, texts)

  def arrived(shape, num_devices, step):
    """Fields of a batch, put together from the shards on the devices."""
    program = toy_program(toy, shape, num_devices, batch_size=16)
    reader = Reader([store], [1], 4, 16, seed=5)
    fields = []
    for field in jax.tree.leaves(program.put(reader.batch(step))):
      whole = np.full(field.shape, -1, field.dtype)
      for shard in field.addressable_shards:
        whole[shard.index] = shard.data
      fields.append(whole)
    return fields

  for step in (0, 1000):
    eight, one = arrived(MESH, 8, step), arrived(MeshShape(), 1, step)
    assert len(np.unique(one[0])) > 3
    for got, wanted in zip(eight, one, strict=True):
      np.testing.assert_array_equal(got, wanted)


def test_an_error_in_evaluation_is_found_while_building(toy):
  def loss(params, carried, batch, key, train):
    if not train:
      raise ValueError('sizes do not fit in evaluation')
    return toy.loss(params, carried, batch, key, train)

  with pytest.raises(ValueError, match='do not fit in evaluation'):
    toy_program(dataclasses.replace(toy, loss=loss))


def test_a_step_compiled_ahead_is_the_same_step(toy, make_batch):
  results = []
  for is_ahead in (True, False):
    program = toy_program(toy)
    if is_ahead:
      program.train_step.compile(program.abstract, program.batch_shapes)
    batch = program.put(make_batch(0))
    results.append(program.train_step(program.init(), batch))
  jax.tree.map(np.testing.assert_array_equal, *results)


@pytest.mark.parametrize(
  ('batch_size', 'num_microbatches'), [(12, 1), (8, 2), (24, 4)]
)
def test_a_batch_that_the_devices_do_not_divide_is_refused(
  toy, batch_size, num_microbatches
):
  wanted = f'BATCH_SIZE={batch_size} .*={num_microbatches} times the 8 devices'
  with pytest.raises(ValueError, match=wanted):
    toy_program(toy, batch_size=batch_size, num_microbatches=num_microbatches)


def test_a_parameter_that_does_not_divide_is_refused_while_building(toy):
  def init(key, shapes):
    params, carried, _ = toy.init(key, shapes)
    return params, carried, {'w': (axes.EXPERT, axes.EMBED)}

  odd = dataclasses.replace(toy, init=init)
  toy_program(odd)
  with pytest.raises(ValueError, match="'embed' of parameter w has 8"):
    toy_program(odd, MeshShape(data=1, fsdp=3, expert=2), 6, batch_size=6)


def test_the_table_has_every_parameter_and_adds_up(program):
  text = parameter_table(program)
  header, row, *rest = [line.split() for line in text.splitlines() if line]
  assert header[:2] == ['parameter', 'shape']
  # 16 x 8 floats are 512 bytes, and a device has half of them. A device has a
  # quarter of each of Adam's two moments. There are two counters of 4 bytes,
  # for Adam and for the learning rate.
  assert row == ['w', '16x8', 'vocab,embed', '(None,', "'fsdp')", '256']
  assert rest[0] == ['parameters', '128']
  assert 'parameters 256, optimizer 264' in text
  assert 'mesh stage=1 data=2 fsdp=2 expert=2 context=1 model=1' in text
  assert 'over 8 x cpu' in text


def test_the_table_of_a_model_names_the_axes_of_every_array(sparse_model):
  mesh = make_mesh(MeshShape(data=2, expert=4))
  layout = rules.layout(TABLE, mesh)
  functional = make_functional(
    sparse_model, rules.activation_rules(TABLE), layout
  )
  program = make_program(
    language.language_model(functional, (8, 8)),
    optimizers.build(optimizers.adamw(CONSTANT)),
    CONSTANT,
    TABLE,
    mesh,
    seed=0,
  )
  lines = parameter_table(program).splitlines()
  (experts,) = [line for line in lines if 'moe/w_up_EDF' in line]
  assert experts.split() == [
    'stack/periods/block_0/moe/w_up_EDF',
    '1x8x16x16',
    'layers,expert,embed,expert_mlp',
    '(None,',
    "'expert',",
    'None,',
    'None)',
    '2,048',  # 2 experts of 16 x 16 floats.
  ]
  num_parameters = len(jax.tree.leaves(program.abstract.params))
  assert sum('/' in line.split(' ')[0] for line in lines) == num_parameters


@pytest.mark.slow
@pytest.mark.optimized
def test_a_sparse_model_trains_alike_on_eight_devices_and_one(
  sparse_model, make_batch
):
  # In float32 the losses of 20 steps must agree to 1e-5.
  schedule = schedules.wsd(1e-2, 2, 20)
  losses = []
  for shape, num_devices in (
    (MeshShape(data=2, expert=4), 8),
    (MeshShape(), 1),
  ):
    mesh = make_mesh(shape, jax.devices()[:num_devices])
    functional = make_functional(
      sparse_model, rules.activation_rules(TABLE), rules.layout(TABLE, mesh)
    )
    program = make_program(
      language.language_model(functional, (16, 8), load_balance=0.1),
      optimizers.build(optimizers.adamw(schedule)),
      schedule,
      TABLE,
      mesh,
      seed=0,
    )
    ts, loss = program.init(), []
    for i in range(20):
      batch = program.put(make_batch(i, B=16, T=8, V=32))
      # No mesh is set here, so the step must compile on its own mesh.
      ts, metrics = program.train_step(ts, batch)
      loss.append(float(metrics['loss'][0]))
    losses.append(loss)
  eight, one = losses
  assert eight[0] != eight[-1]
  np.testing.assert_allclose(eight, one, rtol=1e-5)


def test_low_memory_formats_on_eight_devices_resume_bit_for_bit(
  toy, make_batch, tmp_path
):
  optimizer = optimizers.build(
    optimizers.adamw(CONSTANT, moment_dtype='int8'),
    storage=Storage(params='bfloat16', grads='bfloat16'),
  )
  mesh = make_mesh(MESH)
  program = make_program(toy, optimizer, CONSTANT, TABLE, mesh, seed=0)

  def trained(ts, steps):
    for i in steps:
      ts, _ = program.train_step(ts, program.put(make_batch(i)))
    return ts

  unbroken = trained(program.init(), range(4))
  with contextlib.closing(Checkpointer(tmp_path)) as checkpointer:
    checkpointer.save(2, trained(program.init(), range(2)), {}, {})
    checkpointer.wait()
    ts, _ = checkpointer.restore(None, program.abstract)
  resumed = trained(ts, range(2, 4))
  dtypes = {str(a.dtype) for a in jax.tree.leaves(resumed)}
  assert {'bfloat16', 'int8', 'uint8'} <= dtypes
  jax.tree.map(
    lambda a, b: np.testing.assert_array_equal(
      np.asarray(a).astype('f4'), np.asarray(b).astype('f4')
    ),
    resumed,
    unbroken,
  )
