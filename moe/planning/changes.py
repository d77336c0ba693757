"""Changes single settings of a run, and finds changes that save memory."""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from moe.models.anatomy import anatomy
from moe.optim import optimizers
from moe.parallel.mesh import make_mesh
from moe.planning import execution, layout
from moe.runs.run import Run
from moe.scale import cost, topology
from moe.scale.topology import Slice


def with_remat(run: Run, policy: str) -> Run:
  """A copy of the run with another remat policy."""
  model = run.model
  return dataclasses.replace(
    run, model=model.clone(stack=functools.partial(model.stack, remat=policy))
  )


def with_microbatches(run: Run, n: int) -> Run:
  """A copy of the run with `n` microbatches per step."""
  settings = dataclasses.replace(run.settings, num_microbatches=n)
  return dataclasses.replace(run, settings=settings)


def with_chunks(run: Run, n: int) -> Run:
  """A copy of the run that computes the loss in `n` chunks."""
  objective = run.objective
  language = getattr(objective, 'keywords', {}).get('language')
  if language:
    changed = functools.partial(language, num_chunks=n)
    objective = functools.partial(objective, language=changed)
  else:
    objective = functools.partial(objective, num_chunks=n)
  return dataclasses.replace(run, objective=objective)


def with_moments(run: Run, dtype: str) -> Run:
  """A copy of the run with another format of the optimizer's moments."""
  optimizer = functools.partial(run.optimizer, moment_dtype=dtype)
  return dataclasses.replace(run, optimizer=optimizer)


def with_storage(run: Run, **formats: str | bool) -> Run:
  """A copy of the run with other values of fields of its `Storage`."""
  storage = dataclasses.replace(run.storage, **formats)
  return dataclasses.replace(run, storage=storage)


def has_moments(run: Run) -> bool:
  """Whether the optimizer has moments with a configurable dtype."""
  return 'moment_dtype' in inspect.signature(run.optimizer).parameters


def savings(run: Run) -> Iterator[tuple[str, Callable]]:
  """Yields (gin bindings, maker of the new run) that may save memory."""
  n = run.settings.num_microbatches
  if anatomy(run.model).remat != 'full':
    yield "REMAT='full'", functools.partial(with_remat, run, 'full')
  more = functools.partial(with_microbatches, run, 2 * n)
  yield f'NUM_MICROBATCHES={2 * n}', more
  n = execution.loss_chunks(run)
  yield f'LOSS_CHUNKS={4 * n}', functools.partial(with_chunks, run, 4 * n)
  if run.rules == 'standard':
    yield (
      "RULES='fsdp_over_expert'",
      lambda: dataclasses.replace(run, rules='fsdp_over_expert'),
    )
  mesh = run.mesh
  if mesh.data != 1:
    changed = dataclasses.replace(mesh, data=1, fsdp=mesh.fsdp * mesh.data)
    if mesh.data == -1:
      changed = dataclasses.replace(mesh, data=1, fsdp=-1)
    yield (
      f'MESH_DATA=1 MESH_FSDP={changed.fsdp}',
      lambda: dataclasses.replace(run, mesh=changed),
    )
  yield from _smaller_states(run)


def _smaller_states(run: Run) -> Iterator[tuple[str, Callable]]:
  """Yields those changes of `savings` that change how the state is stored.

  They store gradients, parameters or moments in fewer bits, keep the
  optimizer's state in host memory, or choose Adafactor.
  """
  stored = functools.partial(functools.partial, with_storage, run)
  if run.storage.grads == 'float32':
    yield "GRAD_DTYPE='bfloat16'", stored(grads='bfloat16')
  if run.storage.params == 'float32':
    yield "PARAM_DTYPE='bfloat16'", stored(params='bfloat16')
  if not run.storage.optimizer_on_host:
    yield 'OPTIMIZER_ON_HOST=True', stored(optimizer_on_host=True)
  if has_moments(run):
    for dtype in ('bfloat16', 'int8'):
      yield (
        f"MOMENT_DTYPE='{dtype}'",
        functools.partial(with_moments, run, dtype),
      )
    yield (
      'OPTIMIZER=@optimizers.adafactor',
      lambda: dataclasses.replace(run, optimizer=optimizers.adafactor),
    )


def knobs(
  run: Run, slice_: Slice, devices: Sequence[jax.Device] | None = None
) -> list[dict[str, Any]]:
  """Returns at most three changes that save memory at the least cost in time.

  Changes with which the step fits in memory come first.

  Args:
    run: the run.
    slice_: the chips.
    devices: the devices of the slice; None describes devices that need not
      exist.
  """
  devices = devices or topology.devices(slice_)
  before = layout.forecast_of(run, slice_, devices, ())
  hbm = slice_.chip.hbm_bytes // slice_.chip.devices
  gib = lambda num_bytes: f'{num_bytes / topology.GIB:.1f}'
  found = []
  for name, change in savings(run):
    try:
      after = layout.forecast_of(change(), slice_, devices, (name,))
    except ValueError:
      continue
    saved = before.peak_bytes - after.peak_bytes
    if saved > before.peak_bytes / 200:
      more = after.seconds - before.seconds
      found.append((after.peak_bytes > hbm, more, -saved, name, after))
  return [
    {
      'knob': ' '.join(f'--gin.{word}' for word in name.split()),
      'saved_bytes': -less,
      'seconds': more,
      'effect': f'saves {gib(-less)} GiB, then {gib(after.peak_bytes)} of'
      f' {gib(hbm)} GiB; step'
      f' {more / before.seconds:+.1%} (forecast)',
    }
    for _, more, less, name, after in sorted(found, key=lambda f: f[:4])[:3]
  ]


def knobs_by_work(run: Run, mesh: Mesh) -> list[dict[str, Any]]:
  """At most three changes that save memory with the fewest additional FLOPs.

  This is for devices whose step `layout` cannot forecast, such as GPUs.

  Args:
    run: the run.
    mesh: the mesh of its devices.
  """
  is_cpu = mesh.devices.flat[0].platform == 'cpu'

  def costs(run: Run) -> tuple[float, int]:
    """(executed FLOPs of a token, peak bytes of a device)."""
    layout.check(run, mesh.size)
    where = layout.place_run(run, make_mesh(run.mesh, mesh.devices.flat))
    active = anatomy(run.model).num_active
    parts = cost.components(where.abstract.params, where.logical_axes, active)
    made = execution.execution_of(run, mesh.size, False)
    _, flops = cost.executed_flops_per_token(parts, made)
    return flops, layout.predict_memory(run, where).peak

  flops, peak = costs(run)
  found = []
  for name, change in savings(run):
    if is_cpu and 'ON_HOST' in name:
      continue  # The memory of a CPU is the memory of the host.
    try:
      new_flops, new_peak = costs(change())
    except ValueError:
      continue
    if peak - new_peak > peak / 200:
      found.append((new_flops - flops, new_peak - peak, name))
  return [
    {
      'knob': ' '.join(f'--gin.{word}' for word in name.split()),
      'saved_bytes': -less,
      'effect': f'saves {-less / topology.GIB:.3g} GiB of'
      f' {peak / topology.GIB:.3g}; FLOPs {more / flops:+.1%} (forecast)',
    }
    for more, less, name in sorted(found)[:3]
  ]
