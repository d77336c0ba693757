"""Layouts of a run on a slice: forecasts, the best ones, what saves memory."""

import dataclasses
import functools
import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax

from launch import plan
from moe.models import stack as stack_lib
from moe.parallel import rules as rules_lib
from moe.parallel import shardings
from moe.parallel.mesh import AXES, MeshShape, make_mesh
from moe.scale import cost, forecast, memory, roofline, topology
from moe.train import program, state

GIB = 2**30
# Of the memory that a forecast may fill: it errs by a tenth.
_FILLED = 0.9


@dataclasses.dataclass(frozen=True)
class Forecast:
  """What a layout would cost.

  Attributes:
    changes: of the run, as --gin flags would say them.
    peak_bytes: of a device.
    seconds: of a step without overlap.
    full_overlap: of a step with full overlap.
    mfu: without overlap.
    bound: the busiest resource.
    warnings: rules of thumb that it breaks.
  """

  changes: tuple[str, ...]
  peak_bytes: int
  seconds: float
  full_overlap: float
  mfu: float
  bound: str
  warnings: tuple[str, ...]


def sizes_of(run, mesh) -> memory.Sizes:
  """What a device works on in a microbatch of the run."""
  stack, attention, moe = plan.layers_of(run)
  dense = stack.block(parent=None).feed_forward(parent=None)
  layout = rules_lib.layout(rules_lib.table(run.rules), mesh)
  shards = layout.size(layout.batch_axes) * layout.size(layout.sequence_axes)
  n = run.settings.num_microbatches
  tokens = run.data.batch_size * run.data.sequence_length // n // shards
  model = layout.size(layout.tensor_axes)
  recipe = plan.recipe_of(run, mesh.size)
  is_sparse = bool(stack.moe_every)
  active = moe.make_router().mean_active(moe.num_experts)
  return memory.Sizes(
    tokens=tokens,
    length=run.data.sequence_length,
    d_model=run.model.d_model,
    vocab_size=run.model.vocab_size,
    num_heads=max(1, attention.num_heads // model),
    dense_width=dense.width // model if stack.moe_every != 1 else 0,
    matrices=3 if dense.activation == 'swiglu' else 2,
    expert_width=moe.expert_d_ff // model if is_sparse else 0,
    # Evenly used, as many rows arrive as leave, and empty slots beside them.
    expert_rows=round(tokens * active * recipe.padding) if is_sparse else 0,
    periods=stack.num_periods(),
    blocks=max(1, stack.moe_every),
    remat=stack.remat,
    loss_chunks=plan.loss_chunks(run),
    num_microbatches=n,
    dtype_bytes=jax.numpy.dtype(run.model.dtype).itemsize,
    grad_bytes=jax.numpy.dtype(run.storage.grads).itemsize,
    sum_bytes=jax.numpy.dtype(run.storage.sums).itemsize,
    # Its kernel may still refuse the shapes: then the forecast is too low.
    has_fused_attention=attention.kernel != 'xla',
  )


def placed(run, mesh, known=None):
  """(TrainState of shapes with shardings, logical axes, batch likewise).

  Args:
    run: what is planned.
    mesh: of the devices.
    known: `plan.abstract_state` of a run with the same parameters.
  """
  ts, logical_axes = known or plan.abstract_state(run)
  table = rules_lib.table(run.rules)
  params = shardings.param_shardings(ts.params, logical_axes, table, mesh)
  replicated = shardings.replicated(mesh)
  opt_state = shardings.optimizer_shardings(
    ts.opt_state, ts.params, params, mesh
  )
  if run.storage.optimizer_on_host:
    opt_state = shardings.on_host(ts.opt_state, opt_state, mesh)
  where = state.TrainState(
    replicated,
    params,
    opt_state,
    jax.tree.map(lambda _: replicated, ts.state),
  )
  put = lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p)
  shapes = program.batch_shapes(run.data.batch_size, run.data.sequence_length)
  batch = jax.tree.map(put, shapes, shardings.batch_sharding(table, mesh))
  return jax.tree.map(put, ts, where), logical_axes, batch


def predict(run, mesh) -> memory.Prediction:
  """Memory of a device."""
  abstract, logical_axes, batch = placed(run, mesh)
  return memory.predict(abstract, logical_axes, batch, sizes_of(run, mesh))


def forecast_of(
  run, slice_, devices, changes: tuple[str, ...] = (), known=None
) -> Forecast:
  """Memory and seconds of a run on a slice; `known` as in `placed`.

  Raises:
    ValueError: if something does not divide.
  """
  from launch import train
  from moe.layers.moe_layer import check_groups
  from moe.train.step import check_batch

  n, data = run.settings.num_microbatches, run.data
  sizes = dict(zip(AXES, run.mesh.sizes(len(devices)), strict=True))
  check_batch(
    data.batch_size, n, math.prod(sizes[a] for a in rules_lib.BATCH_AXES)
  )
  mesh = make_mesh(run.mesh, devices)
  layout = rules_lib.layout(rules_lib.table(run.rules), mesh)
  stack, _, moe = plan.layers_of(run)
  if stack.moe_every:
    check_groups(
      data.batch_size // n, data.sequence_length, moe.group_size, layout
    )
    expert = mesh.shape['expert']
    if moe.num_experts % expert:
      raise ValueError(
        f'{moe.num_experts} experts do not divide over {expert} devices'
      )
  abstract, logical_axes, batch = placed(run, mesh, known)
  sizes = sizes_of(run, mesh)
  held = memory.predict(abstract, logical_axes, batch, sizes)
  active = moe.make_router().mean_active(moe.num_experts)
  parts = cost.components(abstract.params, logical_axes, active)
  recipe = plan.recipe_of(run, mesh.size)
  _, step = cost.executed_flops_per_token(parts, recipe)
  tokens = data.batch_size * data.sequence_length
  sparse = stack.num_periods() if stack.moe_every else 0
  rows = round(sizes.tokens * active * recipe.padding)
  load = forecast.Load(
    step * tokens / mesh.size,
    rows * run.model.d_model * sizes.dtype_bytes if sparse else 0,
    sparse,
    run.model.d_model,
    stack.num_layers,
  )
  done = forecast.work(abstract, logical_axes, mesh, sizes, load)
  seconds = roofline.estimate(done, list(mesh.devices.flat), slice_)
  counts = train.counts_of(run, abstract.params, logical_axes)
  peak = slice_.chip.peak['bfloat16'] * slice_.num_chips
  return Forecast(
    changes,
    held.peak,
    seconds.no_overlap,
    seconds.full_overlap,
    tokens * counts['flops_per_token_train'] / peak / seconds.no_overlap,
    seconds.bound,
    tuple(forecast.warnings(slice_.chip, dict(mesh.shape), sizes)),
  )


def _remat(run, policy: str):
  model = run.model
  return dataclasses.replace(
    run, model=model.clone(stack=functools.partial(model.stack, remat=policy))
  )


def _microbatches(run, n: int):
  settings = dataclasses.replace(run.settings, num_microbatches=n)
  return dataclasses.replace(run, settings=settings)


def _chunks(run, n: int):
  objective = functools.partial(run.objective, num_chunks=n)
  return dataclasses.replace(run, objective=objective)


def _moments(run, dtype: str):
  optimizer = functools.partial(run.optimizer, moment_dtype=dtype)
  return dataclasses.replace(run, optimizer=optimizer)


def _has_moments(run) -> bool:
  return 'moment_dtype' in inspect.signature(run.optimizer).parameters


def _savings(run) -> Iterator[tuple[str, Callable]]:
  """Single changes that may save memory."""
  stack, _, _ = plan.layers_of(run)
  n = run.settings.num_microbatches
  if stack.remat != 'full':
    yield "REMAT='full'", lambda: _remat(run, 'full')
  yield f'NUM_MICROBATCHES={2 * n}', lambda: _microbatches(run, 2 * n)
  chunks = plan.loss_chunks(run)
  yield f'LOSS_CHUNKS={4 * chunks}', lambda: _chunks(run, 4 * chunks)
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
  if _has_moments(run):
    yield "MOMENT_DTYPE='bfloat16'", lambda: _moments(run, 'bfloat16')


def knobs(run, slice_) -> list[dict[str, Any]]:
  """The three changes that save memory at the least cost in time."""
  devices = topology.devices(slice_)
  before = forecast_of(run, slice_, devices, ())
  found = []
  for name, change in _savings(run):
    try:
      after = forecast_of(change(), slice_, devices, (name,))
    except ValueError:
      continue
    saved = before.peak_bytes - after.peak_bytes
    if saved > before.peak_bytes / 200:
      found.append((after.seconds - before.seconds, -saved, name, after))
  hbm = slice_.chip.hbm_bytes // slice_.chip.devices
  return [
    {
      'knob': f'--gin.{name}',
      'saved_bytes': -less,
      'seconds': more,
      'effect': f'saves {-less / GIB:.1f} GiB, then'
      f' {after.peak_bytes / GIB:.1f} of {hbm / GIB:.1f} GiB; step'
      f' {more / before.seconds:+.1%} (forecast)',
    }
    for more, less, name, after in sorted(found, key=lambda f: f[:3])[:3]
  ]


def _meshes(num_devices: int, experts: int) -> Iterator[MeshShape]:
  powers = [2**i for i in range(num_devices.bit_length())]
  sizes = [p for p in powers if num_devices % p == 0]
  for expert, fsdp, model in itertools.product(sizes, sizes, (1, 2, 4)):
    rest = num_devices // (expert * fsdp * model)
    if rest * expert * fsdp * model != num_devices or experts % expert:
      continue
    yield MeshShape(data=rest, fsdp=fsdp, expert=expert, model=model)


def _candidates(run, num_devices: int):
  """(changes, dtype of moments, run) for every layout worth a forecast."""
  stack, _, moe = plan.layers_of(run)
  experts = moe.num_experts if stack.moe_every else 1
  policies = [p for p in ('none', 'dots', 'full') if p == 'none'
              or p in stack_lib.REMAT_POLICIES]  # fmt: skip
  states = ['float32', 'bfloat16'] if _has_moments(run) else [None]
  tables = sorted(rules_lib.TABLES)
  for mesh, table, n, policy, moments in itertools.product(
    _meshes(num_devices, experts), tables, (1, 2, 4, 8), policies, states
  ):
    changed = dataclasses.replace(run, mesh=mesh, rules=table)
    changed = _remat(_microbatches(changed, n), policy)
    words = [f'MESH_{a.upper()}={v}' for a, v in vars(mesh).items()
             if a != 'context']  # fmt: skip
    words += [f"RULES='{table}'", f'NUM_MICROBATCHES={n}', f"REMAT='{policy}'"]
    if moments:
      changed = _moments(changed, moments)
      words.append(f"MOMENT_DTYPE='{moments}'")
    yield tuple(words), moments, changed


def search(run, slice_) -> tuple[list[Forecast], dict[str, int]]:
  """Layouts that fit, the fastest first, and why the others were refused."""
  devices = topology.devices(slice_)
  hbm = slice_.chip.hbm_bytes // slice_.chip.devices
  found, refused, known = [], {}, {}
  for words, moments, changed in _candidates(run, slice_.num_devices):
    if moments not in known:
      known[moments] = plan.abstract_state(changed)
    try:
      made = forecast_of(changed, slice_, devices, words, known[moments])
    except ValueError as error:
      reason = str(error).split(':')[0]
    else:
      if made.peak_bytes <= _FILLED * hbm:
        found.append(made)
        continue
      reason = f'needs more than {_FILLED:.0%} of {hbm / GIB:.1f} GiB'
    refused[reason] = refused.get(reason, 0) + 1
  return sorted(found, key=lambda f: f.seconds), refused
