"""Parameters and FLOPs of a run."""

from moe.models.anatomy import anatomy
from moe.runs.run import Run
from moe.scale import cost, topology
from moe.train.program import Program
from moe.types import PyTree


def flops_of(run: Run, program: Program) -> tuple[dict[str, int], float | None]:
  """(`counts_of` the run, peak FLOP/s of the mesh or None if unknown)."""
  counts = counts_of(run, program.abstract.params, program.logical_axes)
  device = program.mesh.devices.flat[0]
  peak = topology.peak_flops(device.device_kind)
  return counts, peak and peak * program.mesh.size


def counts_of(run: Run, params: PyTree, logical_axes: PyTree) -> dict[str, int]:
  """Parameters and FLOPs per token, from the shapes of the parameters."""
  model = anatomy(run.model)
  total, active = cost.parameter_counts(params, logical_axes, model.num_active)
  tables = 0 if model.is_tied else params['embedding']['table'].size
  flops = cost.flops_per_token(
    active,
    tables,
    model.attention.pair_width,
    len(model.layers),
    run.data.sequence_length,
  )
  return {
    'params_total': total,
    'params_active': active,
    'flops_per_token_forward': flops,
    'flops_per_token_train': 3 * flops,
  }
