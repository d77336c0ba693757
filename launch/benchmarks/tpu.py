"""Compiles one MoE layer for TPUs on a machine without TPUs.

Times are estimates of the compiler, not measurements.
"""

import argparse
import dataclasses
import functools
import pathlib
import tempfile
from collections import Counter
from typing import Any, NamedTuple

import jax
import numpy as np

from launch.benchmarks import devices, layer_comparisons
from launch.benchmarks.layer import UNIT, LayerSizes, make_layer, num_slots
from moe.parallel.mesh import MeshShape, make_mesh
from moe.scale import buffers, hlo, hlo_loops
from moe.scale import collectives as collective_lib
from moe.scale import compile as compile_lib
from moe.scale import work as work_lib

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
# 32 chips (v5p-64, which has 64 cores) are enough for an expert axis of 16.
CHIPS, EXPERT_DEVICES = '2x4x4', 16


def collectives(text: str) -> list[dict[str, Any]]:
  """The collectives of a program with the bytes of their results per device.

  Args:
    text: text of the compiled program.

  Returns:
    Dicts with 'name', 'shape', 'bytes' and 'count', most bytes first.
  """
  found = Counter()
  for computation in hlo.parse(text).computations.values():
    for i in computation.values():
      kind, shapes = i.opcode.removesuffix('-start'), i.shapes
      if kind not in collective_lib.KINDS:
        continue
      if i.opcode.endswith('-start'):
        # An instruction such as all-gather-start returns its operand, too; the
        # last array is the result.
        shapes = [s for s in shapes if s.dims][-1:]
      # New shapes drop the memory space, so that results are counted together
      # whatever memory holds them.
      found[kind, tuple(hlo.Shape(s.dtype, s.dims) for s in shapes)] += 1
  rows = [
    {
      'name': name,
      'shape': ' '.join(map(str, shapes)),
      'bytes': sum(shape.bytes for shape in shapes),
      'count': count,
    }
    for (name, shapes), count in found.items()
  ]
  return sorted(rows, key=lambda row: -row['bytes'] * row['count'])


class Dumped(NamedTuple):
  """A program for TPUs, with texts from its compiler's dump.

  Attributes:
    compiled: the program.
    optimized: the text of the program, from the dump, since `compiled.as_text`
      fails if collectives are asynchronous.
    generated: the text after code generation, with estimates of cycles.
    temporaries: the temporary arrays that the program allocates.
  """

  compiled: jax.stages.Compiled
  optimized: str
  generated: str
  temporaries: list[buffers.Temporary]


def dump(lowered: jax.stages.Lowered) -> Dumped:
  """Compiles a program for TPUs and reads the compiler's dump."""
  with tempfile.TemporaryDirectory() as directory:
    compiled = lowered.compile(
      {'xla_dump_to': directory, 'xla_dump_hlo_as_text': True}
    )
    read = functools.partial(compile_lib.dumped, pathlib.Path(directory))
    return Dumped(
      compiled,
      read('*.after_optimizations.txt'),
      read('*after_codegen.txt'),
      buffers.temporaries(
        read('*-buffer-assignment.txt'), read('*-live-range.txt')
      ),
    )


def dump_layer(
  sizes: LayerSizes,
  dispatcher: type,
  exchanger: type,
  mesh: jax.sharding.Mesh,
) -> Dumped:
  """The layer's forward and backward pass, compiled for a mesh."""
  layer = make_layer(sizes, dispatcher, exchanger, mesh)
  with jax.set_mesh(layer.mesh):
    return dump(layer.jitted.lower(*layer.abstract))


def estimate(dumped: Dumped, mesh: jax.sharding.Mesh) -> float:
  """The compiler's estimate of seconds, with every iteration of loops counted.

  XLA's `optimal_seconds` counts the body of a loop only once. With it, a loop
  over 16 choices would seem to cost less than 4 choices without a loop.
  """
  seconds = dumped.compiled.cost_analysis()['optimal_seconds']
  work = work_lib.count(hlo.parse(dumped.generated), dict(mesh.shape))
  return seconds * work.cycles / work.cycles_once


def costliest(generated: str, num: int = 8) -> list[dict[str, Any]]:
  """The slowest operations by the compiler's estimate.

  Args:
    generated: the program's text after code generation.
    num: number of operations.

  Returns:
    Dicts with the path of JAX's operation as 'name', 'cycles' of all iterations
    of its loops, and 'share' of all cycles; most first.
  """
  found = Counter()
  for _, i, times in hlo_loops.executed(hlo.parse(generated)):
    if i.estimated_cycles is not None:
      found[i.op_name or i.name] += i.estimated_cycles * times
  total = sum(found.values())
  return [
    {'name': name, 'cycles': cycles, 'share': round(cycles / total, 4)}
    for name, cycles in found.most_common(num)
  ]


def compare_fine(
  args: argparse.Namespace, dispatcher: type, exchanger: type
) -> dict[str, Any]:
  """Compares 1, 4 and 8 times as many experts for the same work on one chip."""
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


def account(dumped: Dumped, weight: tuple[int, ...]) -> dict[str, Any]:
  """The temporary bytes of a program on one device, by kind of array.

  Args:
    dumped: the program.
    weight: shape of one matrix of all experts on a device. An array with these
      dims counts as a gradient of weights and not as rows.
  """
  return buffers.account(
    dumped.temporaries,
    dumped.compiled.memory_analysis().temp_size_in_bytes,
    lambda value: sorted(value.dims) == sorted(weight),
  )


def compare_memory(
  args: argparse.Namespace, dispatcher: type, exchanger: type
) -> dict[str, Any]:
  """Bytes of a layer on 32 chips, with its experts sharded over 16 of them.

  The report covers the forward pass alone, and both passes. With SwiGLU the
  backward pass holds up to four arrays of width F: the two factors of the
  hidden layer, the gradient of this layer, and the gradient of one factor.
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
  """The report of the verb `moe` for TPUs."""
  return COMPARISONS[args.compare](args, *layer_comparisons.choices(args))
