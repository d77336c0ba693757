"""One MoE layer compiled for TPUs, on a machine that has none.

Times are the compiler's own estimates, no measurements.
"""

import argparse
import dataclasses
import pathlib
import re
import tempfile
from collections import Counter
from typing import Any, NamedTuple

import jax
import numpy as np

from launch.benchmarks import moe as layer_bench
from moe.parallel.mesh import MeshShape, make_mesh
from moe.scale import hlo, roofline, topology

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
# Of the smallest slice with an expert axis of 16: v5p-64 has 64 cores.
CHIPS, EXPERT_DEVICES = '2x4x4', 16
COLLECTIVES = (
  'all-to-all',
  'ragged-all-to-all',
  'all-gather',
  'reduce-scatter',
  'all-reduce',
  'collective-permute',
)
BYTES = {'pred': 1, 's8': 1, 'u8': 1, 'bf16': 2, 'f16': 2, 's16': 2, 'u16': 2}
BYTES |= {'f32': 4, 's32': 4, 'u32': 4, 'f64': 8, 's64': 8, 'u64': 8}
# '<number name @place> (size=bytes,offset=bytes): dtype[dims]'
VALUE = re.compile(
  r'value: <\d+ (\S+)[^>]*> \(size=(\d+),offset=(\d+)\):'
  r' ([a-z]+\d*)\[([\d,]*)\]'
)
LIFETIME = re.compile(r'^ +(\S+):(\d+)-(\d+)$', re.MULTILINE)
SHAPE = re.compile(r'\b([a-z]+\d*)\[([\d,]*)\]')


def v5p_devices(shape: str) -> list:
  """Devices of a slice of v5p chips such as '2x2x1', for the compiler alone.

  Raises:
    ValueError: if the TPU's compiler is not installed.
  """
  try:
    import libtpu  # noqa: F401 -- only to see whether it is there
  except ImportError as error:
    raise ValueError(
      "compiling for TPUs needs the package libtpu: pip install '.[tpu]'."
    ) from error
  return topology.devices(topology.parse(f'v5p:{shape}'))


def num_bytes(dtype: str, dims: str) -> int:
  """Bytes of a shape as HLO writes it, such as ('bf16', '8,128')."""
  sizes = [int(d) for d in dims.split(',') if d]
  return int(np.prod(sizes, dtype=np.int64)) * BYTES.get(dtype, 4)


def collectives(text: str) -> list[dict[str, Any]]:
  """Collectives of a program: what each yields on one device, in bytes.

  Args:
    text: of the compiled program.

  Returns:
    Dicts with 'name', 'shape', 'bytes' and 'count', most bytes first.
  """
  pattern = re.compile(r'= (.*?) (' + '|'.join(COLLECTIVES) + r')(?:-start)?\(')
  found = {}
  for line in text.splitlines():
    match = pattern.search(line)
    if match:
      # A -start yields its operand as well: the last shape is the result.
      shapes = [s for s in SHAPE.findall(match.group(1)) if s[0] in BYTES]
      if '-start(' not in line:
        key = match.group(2), tuple(shapes)
      else:
        large = [s for s in shapes if s[1]]
        key = match.group(2), tuple(large[-1:])
      found[key] = found.get(key, 0) + 1
  rows = [
    {
      'name': name,
      'shape': ' '.join(f'{t}[{dims}]' for t, dims in shapes),
      'bytes': sum(num_bytes(*shape) for shape in shapes),
      'count': count,
    }
    for (name, shapes), count in found.items()
  ]
  return sorted(rows, key=lambda row: -row['bytes'] * row['count'])


class Value(NamedTuple):
  """An array among the temporaries of one device.

  Attributes:
    name: of the instruction that makes it.
    shape: as HLO writes it.
    dims: sizes.
    bytes: with padding.
    offset: bytes before it; arrays at one offset share their memory.
    first, last: instructions between which it is needed.
  """

  name: str
  shape: str
  dims: tuple[int, ...]
  bytes: int
  offset: int
  first: int
  last: int


def temporaries(buffers: str, lifetimes: str) -> list[Value]:
  """What a program keeps in a device's main memory beyond input and output.

  Args:
    buffers: the compiler's text on which value lies where.
    lifetimes: its text on when each is needed.
  """
  lives = {
    name.removesuffix('{}'): (int(first), int(last))
    for name, first, last in LIFETIME.findall(lifetimes)
  }
  # Memories other than the main one have a color.
  parts = [
    part
    for part in re.split('^allocation ', buffers, flags=re.MULTILINE)
    if re.match(r'\d+: size \d+, page \d+, preallocated-temp', part)
  ]
  return [
    Value(
      name,
      f'{dtype}[{dims}]',
      tuple(int(d) for d in dims.split(',') if d),
      int(size),
      int(offset),
      *lives[name],
    )
    for part in parts
    for name, size, offset, dtype, dims in VALUE.findall(part)
    if name in lives
  ]


def most_alive(values: list[Value]) -> list[Value]:
  """Values needed at the moment when most bytes are; the largest come first."""

  def alive(moment):
    # Of values that share their memory the largest stands for all.
    at = {}
    for value in sorted(values, key=lambda v: v.bytes):
      if value.first <= moment <= value.last:
        at[value.offset] = value
    return sorted(at.values(), key=lambda v: -v.bytes)

  # It can only grow where a value begins.
  moments = {value.first for value in values}
  return max(map(alive, moments), key=_bytes_of, default=[])


def _bytes_of(values: list[Value]) -> int:
  return sum(value.bytes for value in values)


class Dumped(NamedTuple):
  """A program for TPUs and what its compiler wrote down.

  Attributes:
    compiled: the program.
    optimized: its text. The program's own `as_text` fails where collectives
      are asynchronous.
    generated: the same after code generation, with estimates of cycles.
    buffers: which value lies where.
    lifetimes: from when to when each value is needed.
  """

  compiled: Any
  optimized: str
  generated: str
  buffers: str
  lifetimes: str


def dump(lowered: jax.stages.Lowered) -> Dumped:
  """Compiles a program for TPUs and reads what the compiler wrote down."""
  with tempfile.TemporaryDirectory() as directory:
    compiled = lowered.compile(
      {'xla_dump_to': directory, 'xla_dump_hlo_as_text': True}
    )

    def read(end):
      # The program is the largest of the modules that one compilation makes.
      found = pathlib.Path(directory).glob(end)
      return max(found, key=lambda p: p.stat().st_size).read_text()

    return Dumped(
      compiled,
      read('*.after_optimizations.txt'),
      read('*after_codegen.txt'),
      read('*-buffer-assignment.txt'),
      read('*-live-range.txt'),
    )


def dump_layer(sizes: layer_bench.Sizes, dispatcher, exchanger, mesh) -> Dumped:
  """The layer's forward and backward pass for the mesh's devices."""
  layer = layer_bench.make_layer(sizes, dispatcher, exchanger, mesh)
  with jax.set_mesh(layer.mesh):
    return dump(layer.jitted.lower(*layer.abstract))


def estimate(dumped: Dumped, mesh) -> float:
  """Seconds by the compiler's estimate, with loops multiplied out.

  Its own `optimal_seconds` has the body of a loop once: a sum over 16 choices
  that is a loop would seem to cost less than one over 4 that is none.
  """
  seconds = dumped.compiled.cost_analysis()['optimal_seconds']
  work = roofline.work(hlo.parse(dumped.generated), dict(mesh.shape))
  return seconds * work.cycles / work.cycles_once


def costliest(generated: str, num: int = 8) -> list[dict[str, Any]]:
  """Where the compiler expects the time to go.

  Args:
    generated: the program's text after code generation.
    num: how many.

  Returns:
    Dicts with the path of JAX's operation as 'name', 'cycles' and 'share' of
    all cycles, most first; loops multiplied out.
  """
  found = Counter()
  for _, i, times in hlo.executed(hlo.parse(generated)):
    cycles = re.search(r'"estimated_cycles":"(\d+)"', i.attributes)
    if cycles:
      found[i.op_name or i.name] += int(cycles[1]) * times
  total = sum(found.values())
  return [
    {'name': name, 'cycles': cycles, 'share': round(cycles / total, 4)}
    for name, cycles in found.most_common(num)
  ]


def fine(args: argparse.Namespace, dispatcher, exchanger) -> dict[str, Any]:
  """The same work in 4 and 8 times as many experts, on one chip."""
  sizes = layer_bench.sizes_of(args, SIZES)
  mesh = make_mesh(MeshShape(), v5p_devices('2x2x1')[:1])
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
    runs.append(run)
  return {
    **{k: v for k, v in runs[-1].items() if k != 'name'},
    'unit': layer_bench.UNIT
    + ", the compiler's estimate, loops multiplied out",
    'ratio_of': f'time of {runs[-1]["name"]} over {runs[0]["name"]}',
    'sizes': dataclasses.asdict(sizes),
    'device': str(mesh.devices.flat[0].device_kind),
    'runs': runs,
    'costliest': costliest(dumped.generated),
  }


def account(dumped: Dumped, weight: tuple[int, ...]) -> dict[str, Any]:
  """Temporary bytes of a program on one device, by what they hold.

  Args:
    dumped: the program.
    weight: shape of one matrix of all experts on a device; arrays of its size
      are gradients on their way, not rows.

  Returns:
    'temp_bytes' in all; 'weight_sized_bytes', the most that arrays as large as
    a weight take at a moment; 'row_bytes', the most that all others take;
    'gap_bytes', by which the whole is larger than what is ever needed at once;
    'at_peak', what is needed then.
  """
  is_weight = lambda value: sorted(value.dims) == sorted(weight)
  values = temporaries(dumped.buffers, dumped.lifetimes)
  peak = most_alive(values)
  total = dumped.compiled.memory_analysis().temp_size_in_bytes
  most = lambda chosen: _bytes_of(most_alive(list(chosen)))
  return {
    'temp_bytes': total,
    'weight_sized_bytes': most(filter(is_weight, values)),
    'row_bytes': most(v for v in values if not is_weight(v)),
    'gap_bytes': total - _bytes_of(peak),
    'at_peak': [
      {'name': v.name, 'shape': v.shape, 'bytes': v.bytes} for v in peak[:10]
    ],
  }


def memory(args: argparse.Namespace, dispatcher, exchanger) -> dict[str, Any]:
  """Bytes of a layer on 32 chips whose experts are divided over 16.

  Of the forward pass alone and of both passes. With SwiGLU the backward pass
  holds up to four arrays as wide as the hidden layer: both factors of it, its
  gradient, and that of a factor.
  """
  sizes = layer_bench.sizes_of(args, MEMORY_SIZES)
  shape = MeshShape(data=-1, expert=EXPERT_DEVICES)
  mesh = make_mesh(shape, v5p_devices(CHIPS))
  layer = layer_bench.make_layer(sizes, dispatcher, exchanger, mesh)
  forward = jax.jit(lambda params, x: layer.jitted(params, x, x)[0])
  with jax.set_mesh(mesh):
    there = dump(forward.lower(*layer.abstract[:2]))
    both = dump(layer.jitted.lower(*layer.abstract))
  rows = layer_bench.num_slots(sizes, dispatcher) // mesh.size
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
    'unit': layer_bench.UNIT + ', on one device',
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
    'largest_temporary_bytes': max(
      v.bytes for v in temporaries(both.buffers, both.lifetimes)
    ),
    'collectives': collectives(both.optimized),
    'sizes': dataclasses.asdict(sizes),
    'device': f'{mesh.size} x {mesh.devices.flat[0].device_kind}',
  }


def compiled(args: argparse.Namespace) -> dict[str, Any]:
  """The verb `moe` for TPUs."""
  compare = {'tpu': fine, 'memory': memory}[args.compare]
  return compare(args, *layer_bench.choices(args))
