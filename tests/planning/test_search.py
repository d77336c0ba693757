"""Forecasts, refusals and what saves memory, without compiling."""

import pytest

from launch.configs import configuration
from moe.parallel.mesh import make_mesh
from moe.planning import search
from moe.scale import compile as compile_lib
from moe.scale import topology

pytest.importorskip('libtpu')

FILES = [
  'models/tiny.gin',
  'parallel/data.gin',
  'tasks/builtin.gin',
  'runs/train.gin',
]
# 0.9 billion parameters on 4 chips of 16 GB: 14 GB of state, replicated.
MACROS = {
  'D_MODEL': 1024,
  'NUM_LAYERS': 8,
  'MOE_EVERY': 2,
  'D_FF': 4096,
  'EXPERT_D_FF': 4096,
  'NUM_EXPERTS': 16,
  'NUM_HEADS': 8,
  'NUM_KV_HEADS': 8,
  'HEAD_DIM': 128,
  'VOCAB_SIZE': 16384,
  'DTYPE': "'bfloat16'",
  'REMAT': "'full'",
  'SEQUENCE_LENGTH': 2048,
  'GROUP_SIZE': 1024,
  'BATCH_SIZE': 64,
  'TRAIN_STEPS': 200,
  'LEARNING_RATE': 0.001,
}


def loaded(**macros):
  return configuration.load(
    FILES, [f'{k}={v}' for k, v in (MACROS | macros).items()]
  )


@pytest.fixture(scope='module')
def slice_():
  return topology.parse('v5e:2x2')


@pytest.fixture(scope='module')
def offered(slice_):
  """Everything that may save memory on replicas, not the best three alone."""
  run = loaded(MESH_DATA=4)
  devices = topology.devices(slice_)
  before = search.forecast_of(run, slice_, devices)
  return before, {
    name: search.forecast_of(change(), slice_, devices)
    for name, change in search._savings(run)
    if 'MICROBATCHES' not in name
  }


@pytest.mark.parametrize(
  'name',
  [
    "GRAD_DTYPE='bfloat16'",
    "PARAM_DTYPE='bfloat16'",
    "MOMENT_DTYPE='int8'",
    'OPTIMIZER=@optimizers.adafactor',
    'OPTIMIZER_ON_HOST=True',
    'MESH_DATA=1 MESH_FSDP=4',
  ],
)
def test_a_smaller_state_saves_memory(offered, name):
  before, after = offered
  assert after[name].peak_bytes < before.peak_bytes


def test_smaller_moments_save_more(offered):
  _, after = offered
  peak = lambda name: after[name].peak_bytes
  assert peak("MOMENT_DTYPE='int8'") < peak("MOMENT_DTYPE='bfloat16'")


def test_the_way_to_the_host_and_back_takes_time(offered):
  before, after = offered
  assert after['OPTIMIZER_ON_HOST=True'].seconds > before.seconds


def test_every_change_is_a_flag_that_the_run_understands():
  names = [name for name, _ in search._savings(loaded(MESH_DATA=4))]
  for name in names:
    configuration.load(
      FILES, [*(f'{k}={v}' for k, v in MACROS.items()), *name.split()]
    )
  assert len(names) > 8


@pytest.mark.slow
def test_knobs_that_are_enough_come_first(slice_):
  found = search.knobs(loaded(MESH_DATA=4), slice_)
  assert len(found) == 3
  assert all(k['knob'].startswith('--gin.') for k in found)
  assert all('then' in k['effect'] and 'GiB' in k['effect'] for k in found)
  first = float(found[0]['effect'].split('then ')[1].split()[0])
  assert first <= 15.75


@pytest.fixture(scope='module')
def searched(slice_):
  return search.search(loaded(NUM_LAYERS=4), slice_)


@pytest.mark.slow
def test_the_search_ranges_over_policies_and_formats(searched):
  found, _ = searched
  words = {w for f in found for w in f.changes}
  assert {"REMAT='attention'", "REMAT='exchange'", "REMAT='full'"} <= words
  assert 'NUM_MICROBATCHES=2' in words and "MOMENT_DTYPE='float32'" in words
  assert found == sorted(found, key=lambda f: round(f.seconds, 9)) or all(
    a.seconds < 1.02 * b.seconds for a, b in zip(found, found[1:], strict=False)
  )


@pytest.mark.slow
def test_less_exact_formats_are_taken_only_where_others_do_not_fit(
  searched, slice_
):
  found, _ = searched
  exact = [f for f in found if f.state == 0]
  less = [f for f in found if f.state > 0]
  assert exact
  limit = search._FILLED * slice_.chip.hbm_bytes
  assert all(f.peak_bytes <= limit for f in found)
  assert all("PARAM_DTYPE='float32'" in f.changes for f in exact)
  assert all(f.changes[-3:] != exact[0].changes[-3:] for f in less)


@pytest.mark.slow
def test_what_does_not_divide_is_refused_with_the_reason(slice_):
  # 4 sequences in 8 microbatches.
  _, refused = search.search(loaded(NUM_LAYERS=4, BATCH_SIZE=4), slice_)
  assert any('BATCH_SIZE=4 must divide by' in reason for reason in refused)


@pytest.mark.slow
def test_links_that_outlast_the_products_are_refused_with_the_reason(slice_):
  # 128 tokens a chip: gathers and sums of gradients take longer than products.
  run = loaded(NUM_LAYERS=4, BATCH_SIZE=4, SEQUENCE_LENGTH=128, GROUP_SIZE=128)
  found, refused = search.search(run, slice_)
  reasons = ' '.join(refused)
  assert 'outlasts all products' in reasons and 's against' in reasons
  hopeless = {'MESH_DATA=4', 'MESH_FSDP=4'}
  assert not any(hopeless & set(f.changes) for f in found)


def test_layouts_are_compiled_until_enough_of_them_fit():
  rows = [{'changes': (str(i),)} for i in range(5)]

  def compiled(changes):
    if changes[0] in '01':
      raise compile_lib.DoesNotFit('too large', 2.0, 1.0)
    return {'peak_bytes': int(changes[0])}

  search.verify(rows, compiled, wanted=2, most=5)
  assert [r.get('compiled') for r in rows] == [
    {'does_not_fit': 'too large'},
    {'does_not_fit': 'too large'},
    {'peak_bytes': 2},
    {'peak_bytes': 3},
    None,
  ]


def test_no_more_layouts_are_compiled_than_was_said():
  rows = [{'changes': (str(i),)} for i in range(5)]

  def compiled(changes):
    raise compile_lib.DoesNotFit('too large', 2.0, 1.0)

  search.verify(rows, compiled, wanted=2, most=3)
  assert sum('compiled' in r for r in rows) == 3


def test_blocks_of_the_prefix_take_memory_too(slice_):
  devices = topology.devices(slice_)

  def kept(**macros):
    run = loaded(REMAT="'none'", MESH_DATA=4, **macros)
    held = search.predict(run, make_mesh(run.mesh, devices))
    return held.parts['kept for the backward pass']

  # 4 blocks of 16 * 2048 tokens: their inputs, at least.
  more = kept(NUM_LAYERS=6, NUM_DENSE_PREFIX=4) - kept(NUM_LAYERS=2)
  assert more >= 4 * 16 * 2048 * 1024 * 2
