"""Layouts of a run on a slice: forecasts, the best ones, what saves memory."""

import collections
import dataclasses
import functools
import inspect
import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from moe.layers.feed_forward import matrices_of
from moe.layers.moe_layer import check_groups
from moe.models import stack as stack_lib
from moe.optim import optimizers
from moe.parallel import rules as rules_lib
from moe.parallel import shardings
from moe.parallel.mesh import AXES, EXPERT, MeshShape, make_mesh
from moe.planning import recipe as recipe_lib
from moe.runs.counts import counts_of
from moe.runs.run import Run
from moe.scale import compile as compile_lib
from moe.scale import cost, forecast, memory, roofline, topology
from moe.train import program
from moe.train import state as state_lib
from moe.train.step import check_batch
from moe.types import Batch, PyTree

GIB = 2**30
# Of the memory that a forecast may fill: it errs by a tenth.
_FILLED = 0.9
# Bytes/s of one TPU chip to its host and back, of
# https://jax-ml.github.io/scaling-book/tpus (v5p; twice that on a v6e).
_HOST_BANDWIDTH = 1.6e10
# Formats of (parameters, gradients, moments), the most exact first.
_STATES = (
  ('float32', 'float32', 'float32'),
  ('float32', 'float32', 'bfloat16'),
  ('float32', 'bfloat16', 'bfloat16'),
  ('float32', 'bfloat16', 'int8'),
  ('bfloat16', 'bfloat16', 'bfloat16'),
  ('bfloat16', 'bfloat16', 'int8'),
)
_MICROBATCHES = (1, 2, 4, 8)


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
    warnings: rules that a forward pass of one layer breaks.
    refusal: why the layout cannot work well; None if it can.
    state: number of its formats in `_STATES`, 0 for the most exact.
  """

  changes: tuple[str, ...]
  peak_bytes: int
  seconds: float
  full_overlap: float
  mfu: float
  bound: str
  warnings: tuple[str, ...]
  refusal: str | None = None
  state: int = 0


def sizes_of(run: Run, mesh) -> memory.Sizes:
  """What a device works on in a microbatch of the run."""
  stack, attention, moe = recipe_lib.layers_of(run)
  dense = stack.block(parent=None).feed_forward(parent=None)
  layout = rules_lib.layout(rules_lib.table(run.rules), mesh)
  shards = layout.size(layout.batch_axes) * layout.size(layout.sequence_axes)
  n = run.settings.num_microbatches
  length = run.data.sequence_length
  tokens = run.data.batch_size * length // n // shards
  model = layout.size(layout.tensor_axes)
  heads = max(1, attention.num_heads // model)
  has_dense = stack.moe_every != 1 or stack.num_dense_prefix
  recipe = recipe_lib.recipe_of(run, mesh.size)
  is_sparse = bool(stack.moe_every)
  active = moe.make_router().mean_active(moe.num_experts)
  return memory.Sizes(
    tokens=tokens,
    d_model=run.model.d_model,
    # Its kernel may still refuse the shapes: then the forecast is too low.
    scores=0 if attention.kernel != 'xla' else heads * tokens * length,
    attention_width=_features(attention) // model,
    result_width=_result_features(attention) // model,
    dense_width=dense.width // model if has_dense else 0,
    matrices=matrices_of(dense.activation),
    expert_width=moe.expert_d_ff // model if is_sparse else 0,
    # Evenly used, as many rows arrive as leave, and empty slots beside them.
    expert_rows=round(tokens * active * recipe.padding) if is_sparse else 0,
    periods=stack.num_periods(),
    blocks=max(1, stack.moe_every),
    remat=stack.remat,
    loss_chunks=recipe_lib.loss_chunks(run),
    num_microbatches=n,
    dtype_bytes=jax.numpy.dtype(run.model.dtype).itemsize,
    grad_bytes=jax.numpy.dtype(run.storage.grads).itemsize,
    sum_bytes=jax.numpy.dtype(run.storage.sums).itemsize,
    prefix=stack.num_dense_prefix,
  )


def _features(attention) -> int:
  """Features of queries, keys, values and result together."""
  if hasattr(attention, 'num_kv_heads'):
    heads = attention.num_heads + attention.num_kv_heads
    return 2 * heads * attention.head_dim
  per_head = attention.content_dim + attention.rope_dim + attention.value_dim
  return 2 * attention.num_heads * per_head


def _result_features(attention) -> int:
  """Features of what all heads return."""
  is_latent = hasattr(attention, 'value_dim')
  width = attention.value_dim if is_latent else attention.head_dim
  return attention.num_heads * width


@dataclasses.dataclass(frozen=True)
class Placed:
  """Where the arrays of a run live, on devices that need not exist.

  Attributes:
    mesh: of the devices.
    abstract: TrainState of shapes with shardings.
    logical_axes: of the parameters.
    batch: shapes with shardings.
  """

  mesh: Mesh
  abstract: state_lib.TrainState
  logical_axes: PyTree
  batch: Batch


def placed(run: Run, mesh, known=None) -> Placed:
  """Places a run's arrays.

  Args:
    run: what is planned.
    mesh: of the devices.
    known: `recipe_lib.abstract_state` of a run with the same parameters.
  """
  ts, logical_axes = known or recipe_lib.abstract_state(run)
  table = rules_lib.table(run.rules)
  ts = program.place(
    ts, logical_axes, table, mesh, run.storage.optimizer_on_host
  )
  put = lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p)
  shapes = program.batch_shapes(run.data.batch_size, run.data.sequence_length)
  batch = jax.tree.map(put, shapes, shardings.batch_sharding(table, mesh))
  return Placed(mesh, ts, logical_axes, batch)


def predict(run: Run, mesh) -> memory.Prediction:
  """Memory of a device."""
  return _held(run, placed(run, mesh))


def _held(run: Run, where: Placed) -> memory.Prediction:
  sizes = sizes_of(run, where.mesh)
  return memory.predict(where.abstract, where.logical_axes, where.batch, sizes)


def _check(run: Run, num_devices: int) -> None:
  """Raises ValueError if something does not divide."""
  n, data = run.settings.num_microbatches, run.data
  sizes = dict(zip(AXES, run.mesh.sizes(num_devices), strict=True))
  check_batch(
    data.batch_size, n, math.prod(sizes[a] for a in rules_lib.BATCH_AXES)
  )
  stack, _, moe = recipe_lib.layers_of(run)
  if not stack.moe_every:
    return
  layout = rules_lib.layout(
    rules_lib.table(run.rules),
    jax.sharding.AbstractMesh(tuple(sizes.values()), tuple(sizes)),
  )
  check_groups(
    data.batch_size // n, data.sequence_length, moe.group_size, layout
  )
  if moe.num_experts % sizes[EXPERT]:
    raise ValueError(
      f'{moe.num_experts} experts do not divide over {sizes[EXPERT]} devices'
    )


def _load(run: Run, where: Placed, sizes: memory.Sizes) -> forecast.Load:
  """What a step puts on a device."""
  mesh = where.mesh
  stack, _, moe = recipe_lib.layers_of(run)
  active = moe.make_router().mean_active(moe.num_experts)
  parts = cost.components(where.abstract.params, where.logical_axes, active)
  is_tpu = mesh.devices.flat[0].platform == 'tpu'
  recipe = recipe_lib.recipe_of(run, mesh.size, is_tpu)
  _, step = cost.executed_flops_per_token(parts, recipe)
  tokens = run.data.batch_size * run.data.sequence_length
  sparse = stack.num_periods() if stack.moe_every else 0
  rows = round(sizes.tokens * active * recipe.padding)
  here = moe.num_experts / mesh.shape[EXPERT]
  return forecast.Load(
    step * tokens / mesh.size,
    rows * run.model.d_model * sizes.dtype_bytes if sparse else 0,
    sparse,
    run.model.d_model,
    stack.num_layers,
    sizes.tokens * active / here if sparse else 0.0,
  )


def _host_seconds(run: Run, where: Placed) -> float:
  """For the optimizer's state to come from the host and go back."""
  if not run.storage.optimizer_on_host:
    return 0.0
  num_bytes = sum(
    shardings.device_bytes(a, a.sharding)
    for a in jax.tree.leaves(where.abstract.opt_state)
  )
  return 2 * num_bytes / _HOST_BANDWIDTH


def _timed(
  run: Run, slice_, where: Placed, peak_bytes: int, changes: tuple[str, ...]
) -> Forecast:
  """Seconds of a run that is placed already."""
  mesh, chip = where.mesh, slice_.chip
  sizes = sizes_of(run, mesh)
  load = _load(run, where, sizes)
  done = forecast.work(where.abstract, where.logical_axes, mesh, sizes, load)
  devices = list(mesh.devices.flat)
  seconds = roofline.estimate(done, devices, slice_)
  device_peak = chip.peak['bfloat16'] / chip.devices
  counts = counts_of(run, where.abstract.params, where.logical_axes)
  tokens = run.data.batch_size * run.data.sequence_length
  host = _host_seconds(run, where)
  no_overlap = seconds.no_overlap + host
  flops = tokens * counts['flops_per_token_train'] / mesh.size
  return Forecast(
    changes,
    peak_bytes,
    no_overlap,
    seconds.full_overlap + host,
    flops / device_peak / no_overlap,
    seconds.bound if host < seconds.full_overlap else 'host',
    tuple(forecast.warnings(slice_, mesh, sizes, load)),
    forecast.refusal(done, seconds.by_transfer, device_peak),
  )


def forecast_of(
  run: Run, slice_, devices, changes: tuple[str, ...] = (), known=None
) -> Forecast:
  """Memory and seconds of a run on a slice; `known` as in `placed`.

  Raises:
    ValueError: if something does not divide.
  """
  _check(run, len(devices))
  where = placed(run, make_mesh(run.mesh, devices), known)
  return _timed(run, slice_, where, _held(run, where).peak, changes)


def _remat(run: Run, policy: str):
  model = run.model
  return dataclasses.replace(
    run, model=model.clone(stack=functools.partial(model.stack, remat=policy))
  )


def _microbatches(run: Run, n: int):
  settings = dataclasses.replace(run.settings, num_microbatches=n)
  return dataclasses.replace(run, settings=settings)


def _chunks(run: Run, n: int):
  objective = functools.partial(run.objective, num_chunks=n)
  return dataclasses.replace(run, objective=objective)


def _moments(run: Run, dtype: str):
  optimizer = functools.partial(run.optimizer, moment_dtype=dtype)
  return dataclasses.replace(run, optimizer=optimizer)


def _stored(run: Run, **formats):
  storage = dataclasses.replace(run.storage, **formats)
  return dataclasses.replace(run, storage=storage)


def _has_moments(run: Run) -> bool:
  return 'moment_dtype' in inspect.signature(run.optimizer).parameters


def _savings(run: Run) -> Iterator[tuple[str, Callable]]:
  """Single changes that may save memory: (as --gin flags, how)."""
  stack, _, _ = recipe_lib.layers_of(run)
  n = run.settings.num_microbatches
  if stack.remat != 'full':
    yield "REMAT='full'", lambda: _remat(run, 'full')
  yield f'NUM_MICROBATCHES={2 * n}', lambda: _microbatches(run, 2 * n)
  chunks = recipe_lib.loss_chunks(run)
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
  yield from _smaller_states(run)


def _smaller_states(run: Run) -> Iterator[tuple[str, Callable]]:
  """Of `_savings`, what keeps parameters, gradients or moments elsewhere."""
  storage = run.storage
  if storage.grads == 'float32':
    yield "GRAD_DTYPE='bfloat16'", lambda: _stored(run, grads='bfloat16')
  if storage.params == 'float32':
    yield "PARAM_DTYPE='bfloat16'", lambda: _stored(run, params='bfloat16')
  if not storage.optimizer_on_host:
    yield (
      'OPTIMIZER_ON_HOST=True',
      lambda: _stored(run, optimizer_on_host=True),
    )
  if _has_moments(run):
    for dtype in ('bfloat16', 'int8'):
      yield (
        f"MOMENT_DTYPE='{dtype}'",
        functools.partial(_moments, run, dtype),
      )
    yield (
      'OPTIMIZER=@optimizers.adafactor',
      lambda: dataclasses.replace(run, optimizer=optimizers.adafactor),
    )


def knobs(run: Run, slice_) -> list[dict[str, Any]]:
  """The three changes that save memory at the least cost in time.

  Those come first that are enough by themselves.
  """
  devices = topology.devices(slice_)
  before = forecast_of(run, slice_, devices, ())
  hbm = slice_.chip.hbm_bytes // slice_.chip.devices
  found = []
  for name, change in _savings(run):
    try:
      after = forecast_of(change(), slice_, devices, (name,))
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
      'effect': f'saves {-less / GIB:.1f} GiB, then'
      f' {after.peak_bytes / GIB:.1f} of {hbm / GIB:.1f} GiB; step'
      f' {more / before.seconds:+.1%} (forecast)',
    }
    for _, more, less, name, after in sorted(found, key=lambda f: f[:4])[:3]
  ]


def _meshes(num_devices: int, experts: int) -> Iterator[MeshShape]:
  powers = [2**i for i in range(num_devices.bit_length())]
  sizes = [p for p in powers if num_devices % p == 0]
  for expert, fsdp, model in itertools.product(sizes, sizes, (1, 2, 4)):
    rest = num_devices // (expert * fsdp * model)
    if rest * expert * fsdp * model != num_devices or experts % expert:
      continue
    yield MeshShape(data=rest, fsdp=fsdp, expert=expert, model=model)


def _states(run: Run) -> Iterator[tuple[tuple[str, ...], Any]]:
  """(words, run) for each choice of formats, the most exact first."""
  seen = set()
  for params, grads, moments in _STATES:
    changed = _stored(run, params=params, grads=grads)
    words = (f"PARAM_DTYPE='{params}'", f"GRAD_DTYPE='{grads}'")
    if _has_moments(run):
      changed = _moments(changed, moments)
      words += (f"MOMENT_DTYPE='{moments}'",)
    if words not in seen:
      seen.add(words)
      yield words, changed


def _layouts(run: Run, num_devices: int):
  """(words, run) for every mesh and table."""
  stack, _, moe = recipe_lib.layers_of(run)
  experts = moe.num_experts if stack.moe_every else 1
  for mesh in _meshes(num_devices, experts):
    for table in sorted(rules_lib.TABLES):
      if table == 'fsdp_over_expert' and mesh.expert == 1:
        continue  # the same as 'standard'
      changed = dataclasses.replace(run, mesh=mesh, rules=table)
      words = [f'MESH_{a.upper()}={v}' for a, v in vars(mesh).items()
               if a != 'context']  # fmt: skip
      yield (*words, f"RULES='{table}'"), changed


def _best_state(
  run: Run,
  slice_,
  at: Callable[[int], Placed],
  states,
  changes: tuple[str, ...],
) -> Forecast | str:
  """The forecast with the most exact state that fits, or why there is none.

  Args:
    run: with mesh, rules, microbatches and remat policy.
    slice_: the chips.
    at: number of a state -> the arrays of a run with this mesh and rules.
    states: words and runs of `_states`, which lend their formats.
    changes: words of all else.
  """
  hbm = slice_.chip.hbm_bytes // slice_.chip.devices
  for i, (words, formats) in enumerate(states):
    changed = dataclasses.replace(
      run, storage=formats.storage, optimizer=formats.optimizer
    )
    held = _held(changed, at(i)).peak
    if held <= _FILLED * hbm:
      made = _timed(changed, slice_, at(i), held, changes + words)
      return made.refusal or dataclasses.replace(made, state=i)
  return (
    f'needs more than {_FILLED:.0%} of {hbm / GIB:.1f} GiB, whatever the'
    ' formats of its state'
  )


def search(run: Run, slice_) -> tuple[list[Forecast], dict[str, int]]:
  """Layouts that fit, the best first, and why the others were refused.

  There is one forecast of each layout, number of microbatches and remat policy,
  with the most exact state that fits. Times within a percent of each other
  count as one, where the more exact state wins, then the one with more room.

  Returns:
    (forecasts, reason -> layouts); the numbers in a reason are those of the
    first layout that it is given for.
  """
  devices = topology.devices(slice_)
  states = list(_states(run))
  known = [recipe_lib.abstract_state(formats) for _, formats in states]
  policies = ('none', *stack_lib.REMAT_POLICIES)
  found, refused, examples = [], collections.Counter(), {}
  for layout, changed in _layouts(run, len(devices)):
    mesh = make_mesh(changed.mesh, devices)
    at = functools.cache(lambda i, r=changed, m=mesh: placed(r, m, known[i]))
    for n, policy in itertools.product(_MICROBATCHES, policies):
      words = (*layout, f'NUM_MICROBATCHES={n}', f"REMAT='{policy}'")
      tried = _remat(_microbatches(changed, n), policy)
      try:
        _check(tried, len(devices))
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
  """Compiles the best layouts, one after the other, until enough of them fit.

  Args:
    rows: forecasts, the best first; 'compiled' is added to those tried: what
      the compiler says, or 'does_not_fit'.
    compiled: changes of a layout -> what the compiler says.
    wanted: layouts that are to fit.
    most: layouts to try.
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
