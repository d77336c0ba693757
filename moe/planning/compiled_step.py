"""What a plan says about a training step that is compiled for a TPU slice."""

import math
import os
from collections.abc import Sequence
from typing import Any

from moe.data.cache_dir import default_cache_dir
from moe.parallel.mesh import MeshShape
from moe.planning import report
from moe.scale import compile as compile_lib
from moe.scale import hlo, roofline, topology, work
from moe.scale.collectives import Transfer
from moe.train.program import Program


def _programs_directory() -> str:
  """The folder in which compiled steps are cached."""
  return os.path.join(default_cache_dir(), 'programs')


def compiled(
  program: Program,
  shape: MeshShape,
  slice_: topology.Slice,
  gradient_bytes: int,
) -> dict[str, Any]:
  """Compiles the step of a program, and makes the plan's part about it.

  Args:
    program: the program, on the devices of the slice.
    shape: the mesh of the run.
    slice_: the chips.
    gradient_bytes: bytes of all gradients.

  Raises:
    DoesNotFit: if a device has too little memory.
  """
  mesh = dict(program.mesh.shape)
  axis = shape.spanning(program.mesh.size)
  spanning = (axis, slice_.num_slices) if axis else None
  hbm = slice_.chip.hbm_bytes // slice_.chip.devices
  facts = {
    'topology': str(slice_),
    'mesh': {axis: n for axis, n in mesh.items() if n > 1},
    'chips': slice_.num_chips,
    'devices': slice_.num_devices,
    'hbm_bytes': hbm,
  }
  step = compile_lib.compile_step(
    program, program.batch_shapes, _programs_directory()
  )
  # The program of a slice numbers only the devices of this slice.
  inside = mesh | ({axis: mesh[axis] // slice_.num_slices} if axis else {})
  done = work.count(hlo.parse(step.text), inside, spanning)
  devices = list(program.mesh.devices.flat)[: math.prod(inside.values())]
  seconds = roofline.estimate(done, devices, slice_)
  # For a TPU7x the compiler returns a negative number, which is no estimate.
  own = step.optimal_seconds if step.optimal_seconds > 0 else None
  multiplied = done.cycles / done.cycles_once if done.cycles_once else 1.0
  held = {
    'argument_bytes': step.argument_bytes,
    'temp_bytes': step.temp_bytes,
    'code_bytes': step.code_bytes,
    'peak_bytes': step.peak_bytes,
  }
  facts |= held | {
    f'{key}_per_chip': n * slice_.chip.devices
    for key, n in (held | {'hbm_bytes': hbm}).items()
  }
  # The compiler's peak only counts live bytes; more bytes may be allocated.
  full = step.argument_bytes + step.temp_bytes + step.code_bytes
  return facts | {
    'headroom': 1 - max(step.peak_bytes, full) / hbm,
    'compile_seconds': step.seconds,
    'is_cached': step.is_cached,
    'compiled': step.path,
    'executed_flops_per_chip': done.flops * slice_.chip.devices,
    'hbm_traffic_per_chip': done.bytes * slice_.chip.devices,
    **_sent_per_chip(done.transfers, slice_),
    # On two slices, each chip would exchange its part of the gradients with a
    # chip of the other slice.
    'network_seconds_two_slices': gradient_bytes
    / (slice_.num_chips * slice_.chip.network_bandwidth),
    'collectives': report.collectives(done.transfers, seconds.by_transfer),
    'axes_on_torus': report.axes_on_torus(program.mesh, slice_),
    'step_seconds_no_overlap': seconds.no_overlap,
    'step_seconds_full_overlap': seconds.full_overlap,
    'busy_seconds': seconds.busy,
    'compute_seconds': seconds.compute,
    'bound': seconds.bound,
    'compiler_seconds': own and own * multiplied,
    'compiler_seconds_once': own,
    'unknown_loops': list(done.unknown_loops),
  }


def refused(
  slice_: topology.Slice,
  error: compile_lib.DoesNotFit,
  knobs: Sequence[dict[str, Any]],
) -> dict[str, Any]:
  """What a plan says if a step does not fit in memory.

  Args:
    slice_: the chips.
    error: what the compiler said.
    knobs: changes that save memory, in the form of `changes.knobs`.
  """
  return {
    'topology': str(slice_),
    'hbm_bytes': slice_.chip.hbm_bytes // slice_.chip.devices,
    'does_not_fit': ' '.join(str(error).split()),
    'needed_bytes': error.needed,
    'knobs': list(knobs),
  }


def _sent_per_chip(
  transfers: Sequence[Transfer], slice_: topology.Slice
) -> dict[str, float]:
  """Bytes that a chip sends per step, on the torus and between slices."""
  total = lambda is_network: (
    slice_.chip.devices
    * sum(t.moved * t.times for t in transfers if t.is_network == is_network)
  )
  sent = {'collective_bytes_per_chip': total(False)}
  if slice_.num_slices > 1:
    sent |= {
      'num_slices': slice_.num_slices,
      'network_bytes_per_chip': total(True),
    }
  return sent
