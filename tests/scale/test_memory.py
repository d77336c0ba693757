"""Predicted memory against the compiler's, for real slices."""

import pytest

from moe.parallel.mesh import make_mesh
from moe.scale import topology
from tests.scale import plans

pytest.importorskip('libtpu')

# Plans whose peak is off by more than a tenth; the forecast is to be mended.
NOT_YET = (
  'gated experts, two microbatches',
  'one key head for four queries, on half chips',
  'widths divided, keeping products',
)
MISSED = pytest.mark.xfail(reason='the forecast of the peak is off')


@pytest.mark.slow
@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=MISSED) if name in NOT_YET else name
    for name in plans.PLANS
  ],
)
def test_memory_is_predicted_before_anything_is_compiled(
  name, tmp_path, monkeypatch
):
  from launch import plan, search

  monkeypatch.setenv('WUDAO_CACHE', str(tmp_path))
  text, run = plans.loaded(name)
  slice_ = topology.parse(text)
  mesh = make_mesh(run.mesh, topology.devices(slice_))
  predicted = search.predict(run, mesh)
  facts = plan.plan_topology(run, slice_, plan.plan_shapes(run))
  assert predicted.arguments == pytest.approx(facts['argument_bytes'], rel=0.01)
  assert predicted.peak == pytest.approx(facts['peak_bytes'], rel=0.1)
