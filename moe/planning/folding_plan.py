"""The plan of a run that trains a folding model.

It has the parameters of each part, from shapes, and the bytes, collectives and
seconds of the compiled step. It has no FLOPs by formula and no MFU: the share
of triangles and pairs in a step grows with the length of the chains, and
`moe.scale.cost` counts the FLOPs of language models only.
"""

import dataclasses
from typing import Any

import jax

from moe.models.anatomy import anatomy
from moe.optim import optimizers
from moe.parallel import shardings
from moe.parallel.mesh import MeshShape
from moe.planning import compiled_step, execution
from moe.runs.folding_run import FoldingRun
from moe.scale import compile as compile_lib
from moe.scale import cost, topology
from moe.train import state
from moe.types import PyTree

# (beginning of a parameter's path, part of the model) pairs; the first match
# counts.
_PARTS = (
  ('folder/blocks', 'folding blocks'),
  ('folder/structure', 'structure module'),
  ('', 'inputs and heads'),
)


def plan_shapes(run: FoldingRun) -> dict[str, Any]:
  """Makes the part of a plan that needs no compiled step."""
  ts, logical = _abstract_state(run)
  parts = _components(run, ts.params, logical)
  residues = run.data.batch_size * run.data.crop
  return {
    'params_total': sum(part.total for part in parts.values()),
    'params_active': sum(part.active for part in parts.values()),
    'components': {
      name: {'total': part.total, 'active': part.active}
      for name, part in parts.items()
    },
    'param_bytes': cost.total_bytes(ts.params),
    'gradient_bytes': cost.total_bytes(ts.params),
    'optimizer_bytes': cost.total_bytes(ts.opt_state),
    'crop': run.data.crop,
    'chains_per_step': run.data.batch_size,
    'residues_per_step': residues,
    'residues': residues * run.settings.train_steps,
    'recycles': run.recycles,
  }


def _abstract_state(run: FoldingRun) -> tuple[state.TrainState, PyTree]:
  """Returns (TrainState of shapes, logical axes of the parameters).

  Neither depends on the mesh or on the batch, so one device and a short row
  suffice.
  """
  alone = dataclasses.replace(run, mesh=MeshShape())
  functional, _, mesh = alone.functional(jax.devices()[:1])
  optimizer = optimizers.build(run.optimizer(run.schedule), run.clip_norm)
  with jax.set_mesh(mesh):
    return execution.shapes_of_state(
      run.objective(functional, (1, 8)), optimizer
    )


def _components(
  run: FoldingRun, params: PyTree, logical: PyTree
) -> dict[str, cost.ParameterCount]:
  """Counts the parameters of each part; the trunk's experts are a part."""
  active = anatomy(run.model.trunk).num_active
  trunk = cost.components(params['trunk'], logical['trunk'], active)
  experts = trunk.pop('experts', cost.ParameterCount(0, 0))
  found = {
    'trunk': cost.ParameterCount(
      sum(part.total for part in trunk.values()),
      sum(part.active for part in trunk.values()),
    ),
    'experts of the trunk': experts,
  }
  rest = {name: part for name, part in params.items() if name != 'trunk'}
  for path, leaf in jax.tree_util.tree_flatten_with_path(rest)[0]:
    path = shardings.path_name(path)
    name = next(part for begin, part in _PARTS if path.startswith(begin))
    old = found.get(name, cost.ParameterCount(0, 0))
    found[name] = cost.ParameterCount(
      old.total + leaf.size, old.active + leaf.size
    )
  return found


def plan(run: FoldingRun, slice_: topology.Slice | None) -> dict[str, Any]:
  """Makes the whole plan of a run; if a slice is given, compiles the step.

  If the step does not fit in memory, the entry 'does_not_fit' is the reason.
  """
  facts = plan_shapes(run)
  if slice_ is None:
    return facts
  try:
    return facts | compiled_step.compiled(
      run.program(topology.devices(slice_)),
      run.mesh,
      slice_,
      facts['gradient_bytes'],
    )
  except compile_lib.DoesNotFit as error:
    return facts | compiled_step.refused(slice_, error, _KNOBS)


_KNOBS = (
  {
    'knob': '--gin.NUM_MICROBATCHES=2',
    'effect': 'a device holds the activations of fewer chains',
  },
  {
    'knob': '--gin.CROP=128',
    'effect': 'pairs take memory by the square of the crop, triangle'
    ' attention by its cube',
  },
)
