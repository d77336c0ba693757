"""Parameters and FLOPs of a run."""

import math

from moe.modalities.ids import RANGES
from moe.models.anatomy import anatomy
from moe.models.functional import Functional
from moe.runs.run import Run, reserved_of
from moe.scale import cost, orthogonal, topology
from moe.train.program import Program
from moe.types import MODALITIES, PyTree


def flops_of(run: Run, program: Program) -> tuple[dict[str, int], float | None]:
  """Returns (counts, peak FLOP/s of the mesh).

  The counts are those of `counts_of` and of `reserved_experts`. The peak is
  None if the chip is unknown.
  """
  abstract = program.abstract
  counts = counts_of(
    run, abstract.params, program.logical_axes, abstract.opt_state
  )
  device = program.mesh.devices.flat[0]
  peak = topology.peak_flops(device.device_kind)
  counts |= reserved_experts(run)
  return counts, peak and peak * program.mesh.size


def reserved_experts(run: Run) -> dict[str, int]:
  """Number of experts that a layer reserves for each modality.

  A name is such as 'experts_reserved_text'. The result is {} without
  `gates.ModalityGrouped`.
  """
  return {
    f'experts_reserved_{name}': count
    for name, count in zip(MODALITIES, reserved_of(run), strict=False)
  }


def head_ids(run: Run) -> dict[str, int]:
  """Name of each modality with tokens -> number of its ids.

  The result is {} if all ids share one softmax, or if the run states no shares
  of its modalities.
  """
  ids = Functional(run.model).ids
  if ids is None:
    return {}
  return {
    MODALITIES[number]: sum(
      size for name, size in ids.sizes.items() if RANGES[name] == number
    )
    for number, share in enumerate(run.data.shares)
    if share
  }


def head_share(run: Run) -> float:
  """Mean share of all ids that are of the target's modality; 1 if unknown."""
  ids = head_ids(run)
  if not ids:
    return 1.0
  shares = dict(zip(MODALITIES, run.data.shares, strict=False))
  mean = sum(shares[name] * number for name, number in ids.items())
  return mean / run.model.vocab_size


def counts_of(
  run: Run, params: PyTree, logical_axes: PyTree, opt_state: PyTree = ()
) -> dict[str, int]:
  """Counts parameters, and FLOPs per token, from shapes.

  If each range of ids has its own softmax, the FLOPs include only the logits of
  the target's own modality. The shares of the modalities must be known for
  this; see `head_ids`. The FLOPs of an optimizer update are divided by the
  tokens of a step.

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
  unused = round(table * (1 - head_share(run)))
  flops = cost.flops_per_token(
    active,
    tables + unused,
    model.attention.pair_width,
    len(model.layers),
    run.data.sequence_length,
  )
  ahead = cost.ahead_flops_per_token(
    parts, table - unused, model.attention.pair_width, run.data.sequence_length
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
