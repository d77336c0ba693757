"""The plan of a run: its costs, from shapes and from the compiled step."""

import math
import os
from collections.abc import Sequence
from typing import Any

import jax

from moe.data.cache_dir import default_cache_dir
from moe.models.anatomy import anatomy
from moe.planning import changes, execution, report
from moe.runs import build
from moe.runs.counts import counts_of
from moe.runs.run import Run
from moe.scale import compile as compile_lib
from moe.scale import cost, hlo, roofline, topology, work
from moe.scale.collectives import Transfer
from moe.types import MODALITIES

# Planned chip-hours assume this MFU, which good sparse runs reach. Other runs
# need more hours.
STATED_MFU = 0.4
# Assumed variation of uneven loads: the standard deviation of the experts'
# loads divided by their mean.
_VARIATION = 0.3


def plan_shapes(
  run: Run, slice_: topology.Slice | None = None
) -> dict[str, Any]:
  """Makes the part of a plan that needs no compiled step."""
  ts, logical_axes = execution.abstract_state(run)
  counts = counts_of(run, ts.params, logical_axes, ts.opt_state)
  active = anatomy(run.model).num_active
  parts = cost.components(ts.params, logical_axes, active)
  devices = slice_.num_devices if slice_ else execution.least_devices(run)
  is_tpu = slice_ is not None and slice_.chip.compiler is not None
  forward, step = cost.executed_flops_per_token(
    parts, execution.execution_of(run, devices, is_tpu)
  )
  step_tokens = run.data.batch_size * run.data.sequence_length
  tokens = step_tokens * run.settings.train_steps
  flops = tokens * (
    counts['flops_per_token_train'] + counts['flops_per_token_optimizer']
  )
  hours = {
    name: flops / (chip.peak['bfloat16'] * STATED_MFU) / 3600
    for name, chip in topology.CHIPS.items()
  }
  gradients = jax.tree.map(
    lambda p: jax.ShapeDtypeStruct(p.shape, run.storage.grads), ts.params
  )
  return {
    **counts,
    'components': {
      part: {'total': c.total, 'active': c.active} for part, c in parts.items()
    },
    'executed_flops_per_token_forward': forward,
    'executed_flops_per_token_train': step,
    'param_bytes': cost.total_bytes(ts.params),
    'gradient_bytes': cost.total_bytes(gradients),
    'optimizer_bytes': cost.total_bytes(ts.opt_state),
    'tokens_per_step': step_tokens,
    'tokens': tokens,
    'flops': flops,
    'stated_mfu': STATED_MFU,
    'chip_hours': hours,
    'drop_rate_balanced': execution.expected_drops(run, devices, 0.0),
    'drop_rate_cv03': execution.expected_drops(run, devices, _VARIATION),
    **modalities(run, devices),
  }


def modalities(run: Run, num_devices: int) -> dict[str, Any]:
  """The entry 'modalities' of a plan; {} for a run with text alone.

  It has the shares of tokens and of dropped rows. All tokens pass through the
  same products, and all ids have logits. So the share of FLOPs of a modality is
  its share of tokens.
  """
  even, uneven = (
    execution.drops_by_modality(run, num_devices, variation)
    for variation in (0.0, _VARIATION)
  )
  shares = zip(MODALITIES, run.data.shares, strict=False)
  found = {
    name: {
      'share': share,
      'drop_rate_balanced': even[name],
      'drop_rate_cv03': uneven[name],
    }
    for name, share in shares
    if share
  }
  return {'modalities': found} if found else {}


def plan(run: Run, slice_: topology.Slice | None) -> dict[str, Any]:
  """Makes the whole plan of a run; if a slice is given, compiles the step.

  If the step does not fit in memory, the entry 'does_not_fit' is the reason,
  and 'knobs' lists changes that save memory.
  """
  facts = plan_shapes(run, slice_)
  if slice_ is None:
    return facts
  try:
    return facts | plan_topology(run, slice_, facts)
  except compile_lib.DoesNotFit as error:
    return facts | {
      'topology': str(slice_),
      'hbm_bytes': slice_.chip.hbm_bytes // slice_.chip.devices,
      'does_not_fit': ' '.join(str(error).split()),
      'needed_bytes': error.needed,
      'knobs': changes.knobs(run, slice_),
    }


def programs_directory() -> str:
  """The folder in which compiled steps are cached."""
  return os.path.join(default_cache_dir(), 'programs')


def plan_topology(
  run: Run, slice_: topology.Slice, known: dict[str, Any]
) -> dict[str, Any]:
  """Compiles the step for a slice and makes the plan's part about the step."""
  program = build.build(run, topology.devices(slice_))
  mesh = dict(program.mesh.shape)
  axis = run.mesh.spanning(program.mesh.size)
  spanning = (axis, slice_.num_slices) if axis else None
  hbm = slice_.chip.hbm_bytes // slice_.chip.devices
  facts = {
    'topology': str(slice_),
    'mesh': {axis: n for axis, n in mesh.items() if n > 1},
    'chips': slice_.num_chips,
    'devices': slice_.num_devices,
    'hbm_bytes': hbm,
  }
  compiled = compile_lib.compile_step(
    program, program.batch_shapes, programs_directory()
  )
  # The program of a slice numbers only the devices of this slice.
  inside = mesh | ({axis: mesh[axis] // slice_.num_slices} if axis else {})
  done = work.count(hlo.parse(compiled.text), inside, spanning)
  devices = list(program.mesh.devices.flat)[: math.prod(inside.values())]
  seconds = roofline.estimate(done, devices, slice_)
  flops = known['tokens_per_step'] * known['flops_per_token_train']
  peak = slice_.chip.peak['bfloat16'] * slice_.num_chips
  # For a TPU7x the compiler returns a negative number, which is no estimate.
  own = compiled.optimal_seconds if compiled.optimal_seconds > 0 else None
  multiplied = done.cycles / done.cycles_once if done.cycles_once else 1.0
  held = {
    'argument_bytes': compiled.argument_bytes,
    'temp_bytes': compiled.temp_bytes,
    'code_bytes': compiled.code_bytes,
    'peak_bytes': compiled.peak_bytes,
  }
  facts |= held | {
    f'{key}_per_chip': n * slice_.chip.devices
    for key, n in (held | {'hbm_bytes': hbm}).items()
  }
  # The compiler's peak only counts live bytes; more bytes may be allocated.
  full = compiled.argument_bytes + compiled.temp_bytes + compiled.code_bytes
  return facts | {
    'headroom': 1 - max(compiled.peak_bytes, full) / hbm,
    'compile_seconds': compiled.seconds,
    'is_cached': compiled.is_cached,
    'compiled': compiled.path,
    'executed_flops_per_chip': done.flops * slice_.chip.devices,
    'hbm_traffic_per_chip': done.bytes * slice_.chip.devices,
    **_sent_per_chip(done.transfers, slice_),
    # On two slices, each chip would exchange its part of the gradients with a
    # chip of the other slice.
    'network_seconds_two_slices': known['gradient_bytes']
    / (slice_.num_chips * slice_.chip.network_bandwidth),
    'collectives': report.collectives(done.transfers, seconds.by_transfer),
    'axes_on_torus': report.axes_on_torus(program.mesh, slice_),
    'step_seconds_no_overlap': seconds.no_overlap,
    'step_seconds_full_overlap': seconds.full_overlap,
    'busy_seconds': seconds.busy,
    'compute_seconds': seconds.compute,
    'mfu_no_overlap': flops / peak / seconds.no_overlap,
    'mfu_full_overlap': flops / peak / seconds.full_overlap,
    'bound': seconds.bound,
    'compiler_seconds': own and own * multiplied,
    'compiler_seconds_once': own,
    'unknown_loops': list(done.unknown_loops),
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
