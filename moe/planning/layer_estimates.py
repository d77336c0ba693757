"""Compares one MoE layer with variants, run here or compiled for TPUs.

Compiling for TPUs needs no TPU. Times for TPUs are the compiler's estimates,
not measurements.
"""

import argparse
import dataclasses
from typing import Any

import jax
import numpy as np

from moe.parallel.mesh import MeshShape, make_mesh
from moe.planning import benchmark_devices as devices
from moe.planning import layer_comparisons
from moe.planning.benchmark_layer import UNIT, LayerSizes, make_layer, num_slots
from moe.scale.dumps import (
  Dumped,
  account,
  collectives,
  costliest,
  dump,
  estimate,
)

SIZES = {
  'd_model': 4096,
  'd_ff': 14336,
  'experts': 8,
  'top_k': 2,
  'tokens': 8192,
  'group_size': 1024,
  'capacity_factor': 1.25,
  'dtype': 'bfloat16',
}
MEMORY_SIZES = {**SIZES, 'experts': 64, 'tokens': 32 * 2048}
# The mesh of `compare_memory`: 32 v5p chips, with an expert axis of 16.
CHIPS, EXPERT_DEVICES = '2x4x4', 16


def dump_layer(
  sizes: LayerSizes,
  dispatcher: type,
  exchanger: type,
  mesh: jax.sharding.Mesh,
) -> Dumped:
  """The compiled forward and backward pass of a layer on a mesh."""
  layer = make_layer(sizes, dispatcher, exchanger, mesh)
  with jax.set_mesh(layer.mesh):
    return dump(layer.jitted.lower(*layer.abstract))


def compare_fine(
  args: argparse.Namespace, dispatcher: type, exchanger: type
) -> dict[str, Any]:
  """Compares layers on one TPU chip with 1, 4 and 8 times as many experts.

  All layers do the same work, since their experts are smaller in proportion.
  """
  sizes = layer_comparisons.sizes_of(args, SIZES)
  mesh = make_mesh(MeshShape(), devices.v5p('2x2x1')[:1])
  runs = []
  for factor in (1, 4, 8):
    finer = sizes.finer(factor)
    dumped = dump_layer(finer, dispatcher, exchanger, mesh)
    seconds = estimate(dumped, mesh)
    run = {
      'name': str(finer),
      'seconds': seconds,
      'tokens_per_second': sizes.tokens / seconds,
    }
    if runs:
      run['ratio'] = seconds / runs[0]['seconds']
      run['ratio_of'] = f'time of {finer} over {runs[0]["name"]}'
    runs.append(run)
  return {
    **{k: v for k, v in runs[-1].items() if k != 'name'},
    'unit': f"{UNIT}, the compiler's estimate, loops multiplied out",
    'sizes': dataclasses.asdict(sizes),
    'device': str(mesh.devices.flat[0].device_kind),
    'runs': runs,
    'costliest': costliest(dumped.generated),
  }


def compare_memory(
  args: argparse.Namespace, dispatcher: type, exchanger: type
) -> dict[str, Any]:
  """Bytes of a layer on 32 chips, with its experts sharded over 16 of them.

  The report covers the forward pass alone, and both passes. With SwiGLU the
  backward pass holds up to four arrays of width F: the two factors of the
  hidden layer, the gradient of the hidden layer, and the gradient of one
  factor.
  """
  sizes = layer_comparisons.sizes_of(args, MEMORY_SIZES)
  shape = MeshShape(data=-1, expert=EXPERT_DEVICES)
  mesh = make_mesh(shape, devices.v5p(CHIPS))
  layer = make_layer(sizes, dispatcher, exchanger, mesh)
  forward = jax.jit(lambda params, x: layer.jitted(params, x, x)[0])
  with jax.set_mesh(mesh):
    there = dump(forward.lower(*layer.abstract[:2]))
    both = dump(layer.jitted.lower(*layer.abstract))
  rows = num_slots(sizes, dispatcher) // mesh.size
  width = np.dtype(jax.numpy.dtype(sizes.dtype)).itemsize
  packed, hidden = rows * sizes.d_model * width, rows * sizes.d_ff * width
  weight = sizes.experts // EXPERT_DEVICES, sizes.d_model, sizes.d_ff
  accounts = account(there, weight), account(both, weight)
  peaks = [found.pop('at_peak') for found in accounts]
  for found in accounts:
    found['ratio'] = found['row_bytes'] / (packed + hidden)
  seconds = estimate(both, mesh)
  used = both.compiled.memory_analysis()
  return {
    'unit': f'{UNIT}, on one device',
    'seconds': seconds,
    'tokens_per_second': sizes.tokens / seconds,
    'argument_bytes': used.argument_size_in_bytes,
    'output_bytes': used.output_size_in_bytes,
    'rows': rows,
    'packed_bytes': packed,
    'hidden_bytes': hidden,
    **accounts[1],
    'ratio_of': 'row_bytes over packed rows and hidden rows, once each',
    'ratio_forward': accounts[0]['ratio'],
    'ratio_all': accounts[1]['temp_bytes'] / (packed + hidden),
    'passes': [
      {'name': name, **found}
      for name, found in zip(('forward', 'both'), accounts, strict=True)
    ],
    'at_peak_forward': peaks[0],
    'at_peak': peaks[1],
    'tokens_experts_d_ff_bytes': (
      sizes.tokens // mesh.size * sizes.experts * sizes.d_ff * width
    ),
    'largest_temporary_bytes': max(v.bytes for v in both.temporaries),
    'collectives': collectives(both.optimized),
    'sizes': dataclasses.asdict(sizes),
    'device': f'{mesh.size} x {mesh.devices.flat[0].device_kind}',
  }


COMPARISONS = {'tpu': compare_fine, 'memory': compare_memory}


def compare(args: argparse.Namespace) -> dict[str, Any]:
  """The report of the subcommand `moe`: measurements or estimates."""
  if args.compare not in COMPARISONS:
    return layer_comparisons.compare(args)
  return COMPARISONS[args.compare](args, *layer_comparisons.choices(args))
