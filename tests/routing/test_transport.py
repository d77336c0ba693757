"""The collective that `transport.move` uses on each platform."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P

from moe.parallel.mesh import MeshShape, make_mesh
from moe.routing import transport

ROWS, WIDTH, DEVICES = 8, 4, 4


def lowered(platform):
  """Lowers an exchange with its gradients; returns the program's text."""
  mesh = make_mesh(MeshShape(expert=DEVICES), jax.devices()[:DEVICES])
  axes = ('expert',)

  def exchange(rows_UD, counts_n):
    counts_nn = jax.lax.all_gather(counts_n, axes)
    me = jax.lax.axis_index(axes)
    transfers = transport.make_transfers(counts_nn, DEVICES * ROWS, me)
    return transport.move(rows_UD, transfers, DEVICES * ROWS, axes, ROWS)

  def loss(rows_UD, counts_n):
    sharded = jax.shard_map(
      exchange, in_specs=P('expert'), out_specs=P('expert'), check_vma=False
    )
    return sharded(rows_UD, counts_n).sum()

  shapes = (
    jax.ShapeDtypeStruct((DEVICES * ROWS, WIDTH), jnp.float32),
    jax.ShapeDtypeStruct((DEVICES * DEVICES,), jnp.int32),
  )
  with jax.set_mesh(mesh):
    traced = jax.jit(jax.value_and_grad(loss)).trace(*shapes)
    return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize('platform', ['tpu', 'cuda'])
def test_accelerators_send_runs_without_padding(platform):
  program = lowered(platform)
  assert program.count('@ragged_all_to_all') == 2
  assert 'stablehlo.all_to_all' not in program


def test_cpus_send_padded_runs():
  program = lowered('cpu')
  assert 'ragged_all_to_all' not in program
  assert program.count('"stablehlo.all_to_all"') == 2
