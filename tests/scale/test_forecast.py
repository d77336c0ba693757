"""Forecasts of transfers, and reasons to refuse a layout."""

import types

import jax
import numpy as np
import pytest

from launch.configs import configuration
from moe.parallel import rules
from moe.parallel.mesh import DATA, EXPERT, FSDP, make_mesh
from moe.planning import layout
from moe.runs import build
from moe.scale import forecast, hlo, memory, topology, work
from moe.scale.collectives import Transfer
from tests.scale import layouts

TOKEN_AXES = rules.token_axes(rules.table('standard'))


def loaded(**macros):
  written = [f'{k}={v}' for k, v in (layouts.MODEL | macros).items()]
  return configuration.load(layouts.FILES, written)


def placed(run):
  return layout.place_run(run, make_mesh(run.mesh, jax.devices()[:8]))


def numbers(tree):
  return sum(a.size for a in jax.tree.leaves(tree))


def test_gradients_are_summed_over_the_batch_axes_that_divide_no_dim():
  # The rules 'standard' shard only the matrices of experts over 'expert'.
  where = placed(loaded(MESH_DATA=2, MESH_EXPERT=4))
  params = where.abstract.params
  moe = params['stack']['periods']['block_1']['moe']
  experts = numbers(moe) - numbers(moe['router'])
  found = forecast._summed(params, TOKEN_AXES)
  found = {
    tuple(a for a in over if where.mesh.shape[a] > 1): n
    for over, n in found.items()
  }
  assert found == {
    (DATA, EXPERT): numbers(params) - experts,
    (DATA,): experts // 4,
  }


def test_parameters_divided_over_the_batch_axes_need_no_sum():
  where = placed(loaded(MESH_DATA=1, MESH_EXPERT=8, RULES="'fsdp_over_expert'"))
  found = forecast._summed(where.abstract.params, TOKEN_AXES)
  used = {a for over in found for a in over if where.mesh.shape[a] > 1}
  # Only the scales of queries and keys are replicated, since they have no
  # 'embed' dim. The model has 2 layers, each with these 2 scales.
  head = layouts.MODEL['HEAD_DIM']
  assert used == {EXPERT}
  assert sum(n for over, n in found.items() if EXPERT in over) == 2 * 2 * head


def test_latents_are_gathered_like_the_width():
  files = ['models/latent_decoder.gin', *layouts.FILES[1:]]
  macros = layouts.MODEL | {
    'QUERY_RANK': 32,
    'KV_RANK': 16,
    'CONTENT_DIM': 16,
    'ROPE_DIM': 8,
    'VALUE_DIM': 16,
    'TOP_K': 2,
    'MESH_DATA': 1,
    'MESH_FSDP': 8,
  }
  del macros['NUM_KV_HEADS'], macros['HEAD_DIM']
  run = configuration.load(files, [f'{k}={v}' for k, v in macros.items()])
  where = placed(run)
  gathered = sum(
    num_bytes * times
    for (over, times), num_bytes in forecast._gathers(
      where.abstract.params, where.logical_axes
    ).items()
    if FSDP in over
  )
  divided = [
    a
    for a in jax.tree.leaves(where.abstract.params)
    if any('fsdp' in (e or ()) for e in a.sharding.spec)
  ]
  up = where.abstract.params['stack']['periods']['block_0']['attention']
  assert any(up['query_up'] is a for a in divided)
  assert gathered == 2 * numbers(divided)


@pytest.mark.slow
@pytest.mark.parametrize('remat', ['none', 'dots', 'exchange', 'full'])
def test_rows_cross_the_expert_axis_as_often_as_forecast(remat):
  run = loaded(MESH_DATA=1, MESH_EXPERT=8, REMAT=f"'{remat}'", NUM_LAYERS=4)
  program = build.build(run, jax.devices()[:8])
  lowered = program.train_step.lower(program.abstract, program.batch_shapes)
  compiled = lowered.compile()
  done = work.count(hlo.parse(compiled.as_text()), dict(program.mesh.shape))
  # A device sends the rows of 2 groups to 8 experts. In a group, an expert has
  # 64 * 2 / 8 * 1.25 = 20 slots, each for 64 numbers of 4 bytes. The exchange
  # of combine weights has fewer bytes.
  rows = 2 * 8 * 20 * 64 * 4
  times = sum(
    t.times
    for t in done.transfers
    if t.kind == 'all-to-all' and t.bytes == rows
  )
  assert times == 2 * forecast.exchanges(remat)


def refusal(seconds):
  transfers = (
    Transfer('all-to-all', ('expert',), 1, 1, (0, 1), forecast.ROWS),
    Transfer('all-gather', ('fsdp',), 1, 1, (0, 1), forecast.WEIGHTS),
    Transfer('reduce-scatter', ('fsdp',), 1, 1, (0, 1), forecast.WEIGHTS),
  )
  done = work.StepWork(4e12, 0, (), transfers, 0, 0, ())
  return forecast.refusal(done, seconds, 1e12)  # 4 s of products


def test_a_layout_is_refused_if_one_kind_of_transfer_outlasts_all_products():
  assert refusal([3.9, 2.0, 1.9]) is None
  assert 'exchange of rows' in refusal([4.1, 2.0, 1.9])
  reason = refusal([3.9, 2.1, 2.0])
  assert 'weights' in reason and '4.1 s against 4 s' in reason


RING = topology.parse('v5p:4x4x4')


def warned(axis, **sizes):
  """Warnings for a mesh with one axis, along a ring of 4 chips."""
  shape = {'data': 1, 'fsdp': 1, 'expert': 1, 'context': 1, 'model': 1}
  devices = [
    types.SimpleNamespace(coords=(0, 0, i), core_on_chip=0) for i in range(4)
  ]
  mesh = types.SimpleNamespace(
    shape=shape | {axis: 4}, devices=np.array(devices)
  )
  known = {
    'tokens': 1, 'd_model': 1, 'scores': 0, 'attention_width': 1,
    'result_width': 1, 'dense_width': 0, 'matrices': 2, 'expert_width': 1,
    'expert_rows': 1, 'periods': 1, 'blocks': 1, 'remat': 'full',
    'loss_chunks': 1, 'num_microbatches': 1, 'dtype_bytes': 2,
  }  # fmt: skip
  rows = sizes.pop('rows_per_expert', 1)
  demand = forecast.StepDemand(
    1.0, 1, sizes.pop('sparse_layers', 1), 1, 1, rows
  )
  return forecast.warnings(
    RING, mesh, memory.MicrobatchSizes(**known | sizes), demand
  )


def test_an_exchange_around_a_ring_needs_wide_experts():
  # A chip has 459e12 FLOP/s and two links of 90e9 bytes/s. So it does 459e12 /
  # 180e9 = 2,550 FLOPs in the time of one byte. In experts with two matrices, a
  # row takes 2 * 2 D F FLOPs, and 2 D bytes each way. So experts do F FLOPs per
  # byte, and F = 2,500 is too small.
  assert warned('expert', expert_width=2500)
  assert not warned('expert', expert_width=2600)


def test_gated_experts_may_be_narrower():
  # A row takes 2 * 3 D F FLOPs, and 2 D bytes each way. So experts with three
  # matrices do 6 F / 4 FLOPs per byte. These are 2,550 (see the test above) if
  # F = 1,700.
  assert warned('expert', expert_width=1650, matrices=3)
  assert not warned('expert', expert_width=1750, matrices=3)


def test_gathered_experts_need_rows_and_not_the_tokens_of_all_devices():
  # A device receives 3/4 of each weight from the 3 others. A row does one FLOP
  # per byte of a weight, so an expert needs 2,550 * 3 / 4 = 1,912 rows.
  assert warned('fsdp', rows_per_expert=1900)
  assert not warned('fsdp', rows_per_expert=1925)


def test_divided_widths_need_columns():
  # On a ring of 4 chips, an all-reduce sends 3/4 of each byte twice. A chip
  # does 2,550 FLOPs in the time of one byte. So hiding a byte of the result
  # takes 2 * 3/4 * 2,550 = 2 * 1,912 FLOPs. F columns of two matrices do 4 D F
  # FLOPs per token for its 2 D bytes, which is 2 F per byte. So F must be at
  # least 1,912.
  dense = {'sparse_layers': 0}
  assert warned('model', dense_width=1900, **dense)
  assert not warned('model', dense_width=1925, **dense)
