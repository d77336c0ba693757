"""Predicted memory against the compiler's, for real slices."""

import pytest

from moe.parallel.mesh import make_mesh
from moe.scale import topology
from tests.scale import plans

pytest.importorskip('libtpu')

# Of these the peak is off by more than a tenth, from 12% too low to twice as
# high: they wait for a better forecast. What is stored is exact for all.
NOT_YET = (
  'experts beside replicas, after a dense prefix',
  'gated experts, two microbatches',
  'one key head for four queries, on half chips',
  'widths divided, keeping products',
)


@pytest.mark.slow
@pytest.mark.parametrize('name', plans.PLANS)
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
  is_near = predicted.peak == pytest.approx(facts['peak_bytes'], rel=0.1)
  if name in NOT_YET and not is_near:
    ratio = predicted.peak / facts['peak_bytes']
    pytest.xfail(f'the forecast of the peak is {ratio:.2f} times what it is')
  assert is_near, (predicted, facts['peak_bytes'])
