"""The plan of a run: its costs, from shapes and from the compiled step."""

from typing import Any

import jax

from moe.models.anatomy import anatomy
from moe.planning import changes, compiled_step, execution
from moe.runs import build
from moe.runs.counts import counts_of, head_ids, head_share
from moe.runs.run import Run
from moe.scale import compile as compile_lib
from moe.scale import cost, topology
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
    **modalities(run, devices, counts['flops_per_token_forward']),
  }


def modalities(run: Run, num_devices: int, flops: int) -> dict[str, Any]:
  """The entry 'modalities' of a plan; {} for a run with text alone.

  It has the shares of tokens, of model FLOPs and of dropped rows. All tokens
  pass through the same layers. Of the logits of a token, only those of its own
  modality count.

  Args:
    run: the planned run.
    num_devices: number of devices in its mesh.
    flops: mean FLOPs of a token in the forward pass.
  """
  even, uneven = (
    execution.drops_by_modality(run, num_devices, variation)
    for variation in (0.0, _VARIATION)
  )
  shares = dict(zip(MODALITIES, run.data.shares, strict=False))
  ids = head_ids(run)
  mean = head_share(run) * run.model.vocab_size
  of_id = 2 * run.model.d_model
  found = {
    name: {
      'share': share,
      'flops_share': share * (1 + of_id * (ids.get(name, mean) - mean) / flops),
      'drop_rate_balanced': even[name],
      'drop_rate_cv03': uneven[name],
    }
    for name, share in shares.items()
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
    knobs = changes.knobs(run, slice_)
    return facts | compiled_step.refused(slice_, error, knobs)


def plan_topology(
  run: Run, slice_: topology.Slice, known: dict[str, Any]
) -> dict[str, Any]:
  """Compiles the step for a slice and makes the plan's part about the step."""
  program = build.build(run, topology.devices(slice_))
  facts = compiled_step.compiled(
    program, run.mesh, slice_, known['gradient_bytes']
  )
  flops = known['tokens_per_step'] * known['flops_per_token_train']
  peak = slice_.chip.peak['bfloat16'] * slice_.num_chips
  return facts | {
    'mfu_no_overlap': flops / peak / facts['step_seconds_no_overlap'],
    'mfu_full_overlap': flops / peak / facts['step_seconds_full_overlap'],
  }
