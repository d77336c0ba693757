"""Compiles programs for TPUs without a TPU, and reads the compiler's dump.

Times are estimates of the compiler, not measurements.
"""

import functools
import pathlib
import tempfile
from collections import Counter
from typing import Any, NamedTuple

import jax

from moe.scale import buffers, hlo, hlo_loops
from moe.scale import collectives as collective_lib
from moe.scale import compile as compile_lib
from moe.scale import work as work_lib


class Dumped(NamedTuple):
  """A program for TPUs, with texts from its compiler's dump.

  Attributes:
    compiled: the program.
    optimized: the text of the program, from the dump, since `compiled.as_text`
      can fail (see compile.py).
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


def collectives(text: str) -> list[dict[str, Any]]:
  """The collectives of a program with the bytes of their results per device.

  Args:
    text: text of the compiled program.

  Returns:
    Dicts with 'name', 'shape', 'bytes' and 'count', the largest product of
    'bytes' and 'count' first.
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
      # We make new shapes without a memory space. So results that differ only
      # in their memory are counted together.
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


def estimate(dumped: Dumped, mesh: jax.sharding.Mesh) -> float:
  """The compiler's estimate of seconds, with every iteration of loops counted.

  XLA's `optimal_seconds` counts the body of a loop only once. By this number, a
  loop of 16 iterations would seem cheaper than 4 iterations without a loop.
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
    of its loops, and 'share' of all cycles; the slowest first.
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


def account(dumped: Dumped, weight: tuple[int, ...]) -> dict[str, Any]:
  """The temporary bytes of a program on one device, by kind of array.

  Args:
    dumped: the program.
    weight: shape of one weight, stacked over all experts on a device. An array
      with these dims, in any order, counts as a gradient of weights and not as
      rows.
  """
  return buffers.account(
    dumped.temporaries,
    dumped.compiled.memory_analysis().temp_size_in_bytes,
    lambda value: sorted(value.dims) == sorted(weight),
  )
