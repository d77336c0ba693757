"""Searches for the best layouts of a run on a slice."""

import collections
import dataclasses
import functools
import itertools
import logging
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from moe.models import stack as stack_lib
from moe.models.anatomy import anatomy
from moe.parallel import rules
from moe.parallel.mesh import MeshShape, make_mesh
from moe.planning import changes, execution, layout, plan
from moe.planning.layout import Forecast, RunPlacement
from moe.runs.run import Run
from moe.scale import compile as compile_lib
from moe.scale import topology
from moe.scale.topology import Slice

_logger = logging.getLogger(__name__)

# A layout must fit in this share of the memory, because the forecast can be 10%
# too low.
FILLED = 0.9
# Number formats of (parameters, gradients, moments), the most exact first.
STATES = (
  ('float32', 'float32', 'float32'),
  ('float32', 'float32', 'bfloat16'),
  ('float32', 'bfloat16', 'bfloat16'),
  ('float32', 'bfloat16', 'int8'),
  ('bfloat16', 'bfloat16', 'bfloat16'),
  ('bfloat16', 'bfloat16', 'int8'),
)
_MICROBATCHES = (1, 2, 4, 8)
# Number of layouts in the result, and number of layouts that must fit when they
# are compiled.
_SHOWN, _VERIFIED = 10, 2


def _meshes(num_devices: int, experts: int) -> Iterator[MeshShape]:
  powers = [2**i for i in range(num_devices.bit_length())]
  sizes = [p for p in powers if num_devices % p == 0]
  for expert, fsdp, model in itertools.product(sizes, sizes, (1, 2, 4)):
    rest = num_devices // (expert * fsdp * model)
    if rest * expert * fsdp * model != num_devices or experts % expert:
      continue
    yield MeshShape(data=rest, fsdp=fsdp, expert=expert, model=model)


def _states(run: Run) -> Iterator[tuple[tuple[str, ...], Run]]:
  """Yields (gin bindings, run) for all number formats, the most exact first."""
  seen = set()
  for params, grads, moments in STATES:
    changed = changes.with_storage(run, params=params, grads=grads)
    words = (f"PARAM_DTYPE='{params}'", f"GRAD_DTYPE='{grads}'")
    if changes.has_moments(run):
      changed = changes.with_moments(changed, moments)
      words += (f"MOMENT_DTYPE='{moments}'",)
    if words not in seen:
      seen.add(words)
      yield words, changed


def _layouts(
  run: Run, num_devices: int
) -> Iterator[tuple[tuple[str, ...], Run]]:
  """Yields (gin bindings, run) for every mesh and sharding table."""
  experts = anatomy(run.model).experts
  for mesh in _meshes(num_devices, experts.num_experts if experts else 1):
    for table in sorted(rules.TABLES):
      if table == 'fsdp_over_expert' and mesh.expert == 1:
        continue  # The table 'standard' gives the same layout.
      changed = dataclasses.replace(run, mesh=mesh, rules=table)
      words = [f'MESH_{a.upper()}={v}' for a, v in vars(mesh).items()
               if a != 'context']  # fmt: skip
      yield (*words, f"RULES='{table}'"), changed


def _best_state(
  run: Run,
  slice_: Slice,
  at: Callable[[int], RunPlacement],
  states: Sequence[tuple[tuple[str, ...], Run]],
  words: tuple[str, ...],
) -> Forecast | str:
  """Forecasts a layout with the most exact number formats that fit in memory.

  Args:
    run: the run with its mesh, sharding table, microbatches and remat policy.
    slice_: the chips.
    at: index of number formats -> shardings of the run with these formats.
    states: all number formats, from `_states`.
    words: gin bindings of everything except the number formats.

  Returns:
    The forecast; or a text that says why no formats fit or why the layout is
    refused.
  """
  hbm = slice_.chip.hbm_bytes // slice_.chip.devices
  for i, (more, formats) in enumerate(states):
    changed = dataclasses.replace(
      run, storage=formats.storage, optimizer=formats.optimizer
    )
    held = layout.predict_memory(changed, at(i)).peak
    if held <= FILLED * hbm:
      made = layout.forecast_placed(changed, slice_, at(i), held, words + more)
      return made.refusal or dataclasses.replace(made, state=i)
  return (
    f'needs more than {FILLED:.0%} of {hbm / topology.GIB:.1f} GiB, whatever'
    ' the formats of its state'
  )


def search(run: Run, slice_: Slice) -> tuple[list[Forecast], dict[str, int]]:
  """Finds the layouts that fit, and the reasons that exclude all others.

  Each combination of layout, number of microbatches and remat policy has at
  most one forecast, with the most exact number formats that fit. The fastest
  layouts come first. Times are rounded to steps of 1%; if two are equal, the
  more exact formats and then the smaller peak memory decide.

  Returns:
    (forecasts, reason -> number of refused layouts). The numbers in a reason
    are from the first layout that was refused for it.
  """
  devices = topology.devices(slice_)
  states = list(_states(run))
  known = [execution.abstract_state(formats) for _, formats in states]
  policies = ('none', *stack_lib.REMAT_POLICIES)
  found, refused, examples = [], collections.Counter(), {}
  for placing, changed in _layouts(run, len(devices)):
    mesh = make_mesh(changed.mesh, devices)
    at = functools.cache(
      lambda i, r=changed, m=mesh: layout.place_run(r, m, known[i])
    )
    for n, policy in itertools.product(_MICROBATCHES, policies):
      words = (*placing, f'NUM_MICROBATCHES={n}', f"REMAT='{policy}'")
      tried = changes.with_remat(changes.with_microbatches(changed, n), policy)
      try:
        layout.check(tried, len(devices))
        made = _best_state(tried, slice_, at, states, words)
      except ValueError as error:
        made = str(error)
      if isinstance(made, Forecast):
        found.append(made)
      else:
        kind = re.sub(r'[\d,.]+', 'N', made.split(':')[0])
        refused[examples.setdefault(kind, made)] += 1
  order = lambda f: (
    round(math.log(f.seconds) / math.log(1.01)),
    f.state,
    f.peak_bytes,
  )
  return sorted(found, key=order), dict(refused)


def verify(
  rows: Sequence[dict[str, Any]],
  compiled: Callable[[Sequence[str]], dict[str, Any]],
  wanted: int,
  most: int,
) -> None:
  """Compiles layouts, the best first, until enough of them fit in memory.

  Args:
    rows: forecasts, the best first. The row of each compiled layout gets an
      entry 'compiled': the result, or {'does_not_fit': reason}.
    compiled: gin bindings of a layout -> figures of its compiled step.
    wanted: number of layouts that must fit.
    most: largest number of layouts to compile.
  """
  fit = 0
  for row in rows[:most]:
    if fit == wanted:
      break
    try:
      row['compiled'] = compiled(row['changes'])
      fit += 1
    except compile_lib.DoesNotFit as error:
      row['compiled'] = {'does_not_fit': ' '.join(str(error).split())}


def propose(
  run: Run, slice_: Slice, changed: Callable[[Sequence[str]], Run]
) -> dict[str, Any]:
  """Searches for layouts of a run on a slice, and compiles the best layouts.

  Args:
    run: the run; its own mesh need not fit the slice.
    slice_: the chips.
    changed: `Forecast.changes` -> the run with these changes.

  Returns:
    The result of `plan.plan_shapes`, and the entries 'topology' and 'search'.
    'search' has the number of layouts that fit, the best layouts, and the
    number of refused layouts by reason.
  """
  facts = plan.plan_shapes(run)
  found, refused = search(run, slice_)
  rows = [vars(f) for f in found[:_SHOWN]]

  def compiled(words: Sequence[str]) -> dict[str, Any]:
    _logger.info(f'compiling {" ".join(words)}')
    again = changed(words)
    made = plan.plan_topology(again, slice_, plan.plan_shapes(again, slice_))
    keys = ('peak_bytes', 'step_seconds_no_overlap', 'mfu_no_overlap')
    return {key: made[key] for key in keys}

  verify(rows, compiled, _VERIFIED, 2 * _VERIFIED)
  said = {'fit': len(found), 'best': rows, 'refused': refused}
  return facts | {'topology': str(slice_), 'search': said}
