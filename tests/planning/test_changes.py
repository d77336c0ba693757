"""Changes of a run that save memory according to the forecast."""

import pytest

from launch.configs import configuration
from moe.planning import changes, layout
from moe.scale import topology
from tests.planning.cases import FILES, MACROS, loaded

pytest.importorskip('libtpu')


@pytest.fixture(scope='module')
def slice_():
  return topology.parse('v5e:2x2')


@pytest.fixture(scope='module')
def offered(slice_):
  """Returns (forecast of a replicated run, change -> forecast with it)."""
  run = loaded(MESH_DATA=4)
  devices = topology.devices(slice_)
  before = layout.forecast_of(run, slice_, devices)
  return before, {
    name: layout.forecast_of(change(), slice_, devices)
    for name, change in changes.savings(run)
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


def test_an_optimizer_on_the_host_takes_time(offered):
  before, after = offered
  assert after['OPTIMIZER_ON_HOST=True'].seconds > before.seconds


def test_every_change_is_a_valid_gin_binding():
  names = [name for name, _ in changes.savings(loaded(MESH_DATA=4))]
  for name in names:
    configuration.load(
      FILES, [*(f'{k}={v}' for k, v in MACROS.items()), *name.split()]
    )
  assert len(names) > 8


@pytest.mark.slow
def test_changes_that_suffice_come_first(slice_):
  found = changes.knobs(loaded(MESH_DATA=4), slice_)
  assert len(found) == 3
  assert all(k['knob'].startswith('--gin.') for k in found)
  assert all('then' in k['effect'] and 'GiB' in k['effect'] for k in found)
  first = float(found[0]['effect'].split('then ')[1].split()[0])
  assert first <= 15.75
