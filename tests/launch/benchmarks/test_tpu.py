"""Tests programs for TPUs that are compiled on a machine without TPUs."""

import functools
import re
from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from moe.layers import attention, feed_forward, moe_layer
from moe.models.block import Block
from moe.parallel import rules
from moe.parallel.mesh import MeshShape, make_mesh
from moe.planning import benchmark_devices as device_lib
from moe.routing import dispatch, exchange
from moe.scale import dumps, hlo
from tests.layers.test_attention import mask_of

B, T, D, E = 4, 384, 256, 8
# Operations that each platform uses for the same block, as `marks` names them.
TPU = {'splash', 'ragged_dot', 'ragged-all-to-all'}
CPU = {'scores', 'loop over blocks of rows', 'all-to-all'}


def lowered(devices):
  """Lowers the gradients of a dropless sparse block on an expert axis of 4."""
  mesh = make_mesh(MeshShape(expert=4), devices)
  block = Block(
    functools.partial(
      attention.Attention, num_heads=2, num_kv_heads=1, head_dim=128
    ),
    functools.partial(feed_forward.FeedForward, 512),
    functools.partial(
      moe_layer.MoE,
      E,
      512,
      dispatch=dispatch.Dropless,
      exchange=functools.partial(exchange.Ragged, 0),
      group_size=T,
    ),
    is_sparse=True,
    layout=rules.layout(rules.table('standard'), mesh),
    dtype=jnp.bfloat16,
  )
  zeros_BT = np.zeros((B, T), np.int32)
  mask = mask_of(zeros_BT + 1)
  info = moe_layer.TokenInfo(zeros_BT, zeros_BT, zeros_BT == 0)

  def loss(params, x_BTD):
    y_BTD, _, _ = block.apply(params, x_BTD, mask, info, None, True)
    # The result is squared, so that the gradient depends on it.
    return jnp.sum(jnp.square(y_BTD.astype(jnp.float32)))

  x_BTD = jax.ShapeDtypeStruct((B, T, D), jnp.bfloat16)
  init = lambda x_BTD: nn.meta.unbox(
    block.init(jax.random.key(0), x_BTD, mask, info, None, True)
  )
  with jax.set_mesh(mesh):
    shapes = jax.tree.map(
      lambda s: jax.ShapeDtypeStruct(
        s.shape, s.dtype, sharding=NamedSharding(mesh, P())
      ),
      (jax.eval_shape(init, x_BTD), x_BTD),
    )
    return jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*shapes)


def marks(text):
  """Operation -> count, for operations that differ between platforms."""
  computations = hlo.parse(text).computations.values()
  found = Counter()
  for i in (i for c in computations for i in c.values()):
    if 'custom_call_target="tpu_custom_call"' in i.attributes:
      is_splash = 'splash' in i.name
      found['splash'] += is_splash
      found['ragged_dot'] += i.name.startswith('ragged-dot-none')
    elif i.opcode in ('all-to-all', 'ragged-all-to-all'):
      found[i.opcode] += 1
    elif i.opcode == 'while' and re.search(r'[/(]experts\)*/', i.op_name):
      found['loop over blocks of rows'] += 1
    # Queries are computed in four parts. The scores of the last part are
    # [B, K, T / 4 * query heads per key head, T].
    found['scores'] += any(s.dims[-2:] == (2 * T // 4, T) for s in i.shapes)
  return +found


def test_collectives_are_counted_with_their_bytes():
  text = """HloModule c

ENTRY %main (x: bf16[2,4]) -> bf16[9] {
    %a = bf16[2,4]{1,0:T(8,128)} all-to-all(%x), channel_id=1
    %b = bf16[2,4]{1,0:T(8,128)} all-to-all(%a), channel_id=2
    %c = (f32[3]{0}, f32[]) all-reduce(%y, %z), to_apply=%add
    %d = (f32[4]{0}, f32[64]{0}) all-gather-start(%y), dimensions={0}
    %e = f32[64]{0} all-gather-done(%d)
    ROOT %f = bf16[9]{0} fusion(%all-to-all.1), kind=kLoop
}
"""
  found = {row['name']: row for row in dumps.collectives(text)}
  assert set(found) == {'all-to-all', 'all-reduce', 'all-gather'}
  assert (found['all-to-all']['bytes'], found['all-to-all']['count']) == (16, 2)
  assert found['all-reduce']['bytes'] == 4 * 3 + 4
  assert found['all-gather']['bytes'] == 4 * 64


def test_the_costliest_operations_count_every_iteration_of_a_loop():
  estimate = 'backend_config={"estimated_cycles":"%d"}'
  text = f"""HloModule layer

%body (p.1: (s32[])) -> (s32[]) {{
  %p.1 = (s32[]) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %one.1 = s32[] constant(1)
  %next.1 = s32[] add(%i.1, %one.1), {estimate % 10}
  ROOT %t.1 = (s32[]) tuple(%next.1)
}}

%cond (p.2: (s32[])) -> pred[] {{
  %p.2 = (s32[]) parameter(0)
  %i.2 = s32[] get-tuple-element(%p.2), index=0
  %n.2 = s32[] constant(4)
  ROOT %lt.2 = pred[] compare(%i.2, %n.2), direction=LT
}}

ENTRY %main (x: f32[4]) -> f32[4] {{
  %x = f32[4] parameter(0)
  %zero = s32[] constant(0)
  %init = (s32[]) tuple(%zero)
  %while = (s32[]) while(%init), condition=%cond, body=%body
  ROOT %y = f32[4] copy(%x), {estimate % 60}
}}
"""
  assert dumps.costliest(text, 2) == [
    {'name': 'y', 'cycles': 60, 'share': 0.6},
    {'name': 'next.1', 'cycles': 40, 'share': 0.4},
  ]


@pytest.fixture(scope='module')
def on_tpu():
  pytest.importorskip('libtpu')
  devices = device_lib.v5p('2x2x1')
  return marks(dumps.dump(lowered(devices)).optimized)


@pytest.mark.slow
def test_a_program_for_tpus_made_on_a_cpu_has_their_kernels(on_tpu):
  assert jax.default_backend() == 'cpu'
  # There are three kernels: for the forward pass, for the gradient of queries,
  # and for the gradients of keys and values.
  assert on_tpu['splash'] == 3
  # Each of three matrices needs a product and two gradients, which is 9. The
  # backward pass computes the two products of the hidden layer again: 11.
  assert on_tpu['ragged_dot'] == 11
  # The forward pass has 3 exchanges: rows are sent, their weights and numbers
  # are sent, and rows come back. The backward pass has as many.
  assert on_tpu['ragged-all-to-all'] == 6


@pytest.mark.slow
def test_a_program_for_tpus_made_on_a_cpu_has_no_cpu_operations(on_tpu):
  assert set(on_tpu) == TPU


@pytest.mark.slow
def test_a_program_for_cpus_has_only_cpu_operations():
  devices = jax.devices('cpu')[:4]
  assert set(marks(lowered(devices).compile().as_text())) == CPU
