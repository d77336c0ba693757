"""Forecasts for one layout before it is compiled."""

import pytest

from moe.parallel.mesh import make_mesh
from moe.planning import layout
from moe.scale import topology
from tests.planning.cases import loaded

pytest.importorskip('libtpu')


@pytest.fixture(scope='module')
def slice_():
  return topology.parse('v5e:2x2')


def test_blocks_of_the_prefix_take_memory_too(slice_):
  devices = topology.devices(slice_)

  def kept(**macros):
    run = loaded(REMAT="'none'", MESH_DATA=4, **macros)
    where = layout.place_run(run, make_mesh(run.mesh, devices))
    predicted = layout.predict_memory(run, where)
    return predicted.parts['kept for the backward pass']

  # At least the inputs of 4 more blocks are stored: 16 * 2048 tokens, width
  # 1024, 2 bytes per number.
  more = kept(NUM_LAYERS=6, NUM_DENSE_PREFIX=4) - kept(NUM_LAYERS=2)
  assert more >= 4 * 16 * 2048 * 1024 * 2


TWIN = dict(DENSE_TWIN=True, MESH_DATA=4)


def test_a_dense_twin_has_no_rows_of_experts(slice_):
  # A dense layer of twice the width replaces two active experts of width 4096.
  run = loaded(**TWIN)
  sizes = layout.sizes_of(run, make_mesh(run.mesh, topology.devices(slice_)))
  assert (sizes.expert_width, sizes.expert_rows) == (0, 0)
  assert sizes.dense_width == 2 * 4096


def test_the_forecast_of_a_dense_twin_sends_no_rows(slice_):
  run = loaded(**TWIN)
  where = layout.place_run(run, make_mesh(run.mesh, topology.devices(slice_)))
  demand = layout._demand(run, where, layout.sizes_of(run, where.mesh))
  assert demand.exchanged == demand.sparse_layers == 0
  assert demand.rows_per_expert == 0


def test_a_dense_twin_needs_no_routing_groups():
  # Groups of 3,000 tokens do not divide sequences of 2,048 tokens.
  layout.check(loaded(**TWIN, GROUP_SIZE=3000), 4)
  with pytest.raises(ValueError, match='GROUP_SIZE=3000 must divide'):
    layout.check(loaded(MESH_DATA=4, GROUP_SIZE=3000), 4)
