"""Predicted memory equals hand-worked bytes and is near the compiler's."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from moe import axes
from moe.parallel.mesh import MeshShape, make_mesh
from moe.planning import layout, plan
from moe.scale import memory, topology
from moe.train.state import TrainState
from tests.scale import plans

# The prediction is a fifth too high for this plan. Its stack has one period, so
# there is no loop over periods. In that case the compiler does not allocate the
# gradients of all layers in advance.
NOT_YET = ('experts beside replicas, after a dense prefix, keeping attention',)
# Three periods, each with a dense and a sparse block.
SIZES = memory.MicrobatchSizes(
  tokens=10,
  d_model=4,
  scores=0,
  attention_width=16,
  result_width=4,
  dense_width=8,
  matrices=2,
  expert_width=6,
  expert_rows=20,
  periods=3,
  blocks=2,
  remat='full',
  loss_chunks=1,
  num_microbatches=1,
  dtype_bytes=2,
)


def held(**changes) -> memory.DeviceBytes:
  """Predicted bytes of a model that has only a table of 100 rows."""
  mesh = make_mesh(MeshShape(), jax.devices()[:1])
  whole = NamedSharding(mesh, PartitionSpec())
  table = jax.ShapeDtypeStruct((100, 4), jnp.float32, sharding=whole)
  ts = TrainState(None, {'table': table}, None, None)
  names = {'table': (axes.VOCAB, axes.EMBED)}
  return memory.predict(ts, names, {}, dataclasses.replace(SIZES, **changes))


def kept(**changes) -> int:
  return held(**changes).parts['kept for the backward pass']


def test_full_remat_keeps_the_input_of_each_period():
  assert kept() == 3 * 10 * 4 * 2


def test_products_of_experts_are_not_kept_with_those_of_parameters():
  # Numbers per token: each of two blocks stores queries, keys and values (12)
  # and the attention output (4). The dense layer stores its hidden layer (8)
  # and its output (4). Experts store nothing.
  more = 10 * (12 + 4) * 2 + 10 * (8 + 4)
  assert kept(remat='dots') - kept() == 3 * more * 2
  assert kept(remat='dots', expert_width=60) == kept(remat='dots')


def test_exchanged_rows_are_kept_before_and_after_the_experts():
  # Both blocks store the residual stream of 10 tokens. One block also stores 20
  # rows before and after its experts. The width is 4.
  more = 2 * 10 * 4 + 2 * 20 * 4
  assert kept(remat='exchange') - kept() == 3 * more * 2


def test_kept_arrays_are_not_computed_again():
  period = lambda **changes: held(**changes).parts['one period']
  assert period(remat='none') < period(remat='dots') < period(remat='full')


def test_gradients_of_layers_do_not_exist_while_the_loss_is_computed():
  # The loss has logits of 10 tokens and 100 columns in float32, and takes more
  # bytes than the layers.
  loss = held(periods=1)
  without = loss.arguments + sum(
    loss.parts[name]
    for name in (
      'copies of parameters',
      'kept for the backward pass',
      'logits',
      'table',
    )
  )
  assert loss.peak == without
  # With 10 chunks the loss takes fewer bytes than the layers, so the peak is in
  # the layers.
  layers = held(loss_chunks=10, tokens=100, expert_rows=200)
  more = held(loss_chunks=10, tokens=100, expert_rows=200, grad_bytes=8)
  assert more.peak - layers.peak == 4 * 400


def test_gradients_and_their_sums_are_in_memory_together():
  one, two = (held(num_microbatches=n) for n in (1, 2))
  assert two.peak - one.peak == 4 * 400


@pytest.mark.optimized
@pytest.mark.parametrize(
  'name',
  [
    pytest.param(
      name,
      marks=pytest.mark.slow if name in plans.QUICK else pytest.mark.nightly,
    )
    for name in plans.PLANS
  ],
)
def test_memory_is_predicted_before_anything_is_compiled(
  name, tmp_path, monkeypatch
):
  pytest.importorskip('libtpu')
  monkeypatch.setenv('WUDAO_CACHE', str(tmp_path))
  text, run = plans.loaded(name)
  slice_ = topology.parse(text)
  mesh = make_mesh(run.mesh, topology.devices(slice_))
  predicted = layout.predict_memory(run, layout.place_run(run, mesh))
  facts = plan.plan_topology(run, slice_, plan.plan_shapes(run))
  assert predicted.arguments == pytest.approx(facts['argument_bytes'], rel=0.01)
  is_near = predicted.peak == pytest.approx(facts['peak_bytes'], rel=0.1)
  if name in NOT_YET and not is_near:
    ratio = predicted.peak / facts['peak_bytes']
    pytest.xfail(f'the predicted peak is {ratio:.2f} times the compiled one')
  assert is_near, (predicted, facts['peak_bytes'])
