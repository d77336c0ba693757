"""Parameters and FLOPs of a run."""

import math

from moe.models.anatomy import anatomy
from moe.runs.run import Run
from moe.scale import cost, orthogonal, topology
from moe.train.program import Program
from moe.types import PyTree


def flops_of(run: Run, program: Program) -> tuple[dict[str, int], float | None]:
  """Returns (result of `counts_of`, peak FLOP/s of the mesh).

  The peak is None if the chip is unknown.
  """
  abstract = program.abstract
  counts = counts_of(
    run, abstract.params, program.logical_axes, abstract.opt_state
  )
  device = program.mesh.devices.flat[0]
  peak = topology.peak_flops(device.device_kind)
  return counts, peak and peak * program.mesh.size


def counts_of(
  run: Run, params: PyTree, logical_axes: PyTree, opt_state: PyTree = ()
) -> dict[str, int]:
  """Counts parameters, and FLOPs per token, from shapes.

  The FLOPs of an optimizer update are divided by the tokens of a step.

  Args:
    run: the run.
    params: shapes of the run's parameters.
    logical_axes: logical axes of the run's parameters.
    opt_state: shapes of the optimizer's state.
  """
  model = anatomy(run.model)
  parts = cost.components(params, logical_axes, model.num_active)
  total = sum(part.total for part in parts.values())
  active = sum(part.active for part in parts.values())
  table = params['embedding']['table'].size
  tables = 0 if model.is_tied else table
  flops = cost.flops_per_token(
    active,
    tables,
    model.attention.pair_width,
    len(model.layers),
    run.data.sequence_length,
  )
  ahead = cost.ahead_flops_per_token(
    parts, table, model.attention.pair_width, run.data.sequence_length
  )
  return {
    'params_total': total,
    'params_active': active,
    'flops_per_token_forward': flops,
    'flops_per_token_train': 3 * (flops + ahead),
    'flops_per_token_optimizer': round(
      orthogonal.flops(opt_state) / math.prod(run.data.shape)
    ),
  }
