"""Forecasts the memory and time of a run in one layout on a slice."""

import dataclasses
import math
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from moe import axes
from moe.layers.anatomy import FeedForwardAnatomy
from moe.layers.moe_layer import check_groups
from moe.models.anatomy import Anatomy, anatomy
from moe.models.functional import Functional
from moe.objectives.objective import shapes_of
from moe.parallel import rules, shardings
from moe.parallel.mesh import AXES, EXPERT, make_mesh
from moe.planning import execution
from moe.runs.counts import counts_of
from moe.runs.run import Run
from moe.scale import cost, forecast, memory, orthogonal, roofline
from moe.scale.topology import Slice
from moe.train import program
from moe.train.state import TrainState
from moe.train.step import check_batch
from moe.types import Batch, PyTree

# Bytes per second between a v5p chip and its host in one direction; a v6e has
# twice as much. Source: https://jax-ml.github.io/scaling-book/tpus.
_HOST_BANDWIDTH = 1.6e10


@dataclasses.dataclass(frozen=True)
class Forecast:
  """The forecast of a layout's memory and time.

  Attributes:
    changes: gin bindings that change the run to this layout.
    peak_bytes: peak memory of a device, in bytes.
    seconds: time of a step without overlap of transfers and products.
    full_overlap: time of a step with full overlap, in seconds.
    mfu: MFU without overlap.
    bound: the resource that is busy for the longest time.
    warnings: a sentence for each kind of transfer that takes longer than the
      products of its layer in the forward pass, see `forecast.warnings`.
    refusal: why the layout is refused; None if it is not.
    state: index of the number formats among those that `search` tries; 0 is the
      most exact.
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


def sizes_of(run: Run, mesh: Mesh) -> memory.MicrobatchSizes:
  """Sizes of the tensors of one microbatch on one device."""
  model = anatomy(run.model)
  layout = rules.layout(rules.table(run.rules), mesh)
  shards = layout.size(layout.batch_axes) * layout.size(layout.sequence_axes)
  n = run.settings.num_microbatches
  length = run.data.sequence_length
  tokens = run.data.batch_size * length // n // shards
  parts = layout.size(layout.tensor_axes)
  attention, experts = model.attention, model.experts
  heads = max(1, attention.num_heads // parts)
  padding = execution.execution_of(run, mesh.size).padding
  dense = _widest(model)
  return memory.MicrobatchSizes(
    tokens=tokens,
    d_model=model.d_model,
    # The attention kernel stores no scores. If it cannot be used with these
    # shapes, plain XLA stores scores, and this forecast is too low.
    scores=0 if attention.kernel != 'xla' else heads * tokens * length,
    attention_width=attention.features // parts,
    result_width=attention.result_features // parts,
    dense_width=dense.width // parts if dense else 0,
    matrices=(dense or experts.expert).num_matrices,
    expert_width=experts.expert.width // parts if experts else 0,
    # With equal loads, a device receives as many rows as it sends. `padding`
    # adds the empty slots.
    expert_rows=round(tokens * model.num_active * padding),
    periods=model.num_periods,
    blocks=max(1, len(model.period)),
    remat=model.remat,
    loss_chunks=execution.loss_chunks(run),
    num_microbatches=n,
    dtype_bytes=jax.numpy.dtype(model.dtype).itemsize,
    grad_bytes=jax.numpy.dtype(run.storage.grads).itemsize,
    sum_bytes=jax.numpy.dtype(run.storage.sums).itemsize,
    # The block for multi-token prediction is outside the scan over periods,
    # like the blocks of the prefix.
    prefix=len(model.prefix) + model.predicts_ahead,
  )


def _widest(model: Anatomy) -> FeedForwardAnatomy | None:
  """The widest dense feed-forward network of the model; None without any."""
  dense = [b.feed_forward for b in model.prefix + model.period if not b.experts]
  return max(dense, key=lambda network: network.width, default=None)


@dataclasses.dataclass(frozen=True)
class RunPlacement:
  """The shapes and shardings of a run's arrays; the devices need not exist.

  Attributes:
    mesh: the mesh of the devices.
    abstract: TrainState of shapes with shardings.
    logical_axes: logical axes of the parameters.
    batch: shapes of a batch with shardings.
  """

  mesh: Mesh
  abstract: TrainState
  logical_axes: PyTree
  batch: Batch


def place_run(
  run: Run, mesh: Mesh, known: tuple[TrainState, PyTree] | None = None
) -> RunPlacement:
  """Computes the shapes and shardings of a run's arrays.

  Args:
    run: the planned run.
    mesh: the mesh of the devices.
    known: result of `execution.abstract_state` for a run with the same state;
      with None it is computed.
  """
  ts, logical_axes = known or execution.abstract_state(run)
  table = rules.table(run.rules)
  ts = program.place(
    ts, logical_axes, table, mesh, run.storage.optimizer_on_host
  )
  put = lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p)
  fields = run.objective(Functional(run.model), run.data.shape).fields()
  batch = jax.tree.map(
    put, shapes_of(fields), shardings.batch_shardings(fields, table, mesh)
  )
  return RunPlacement(mesh, ts, logical_axes, batch)


def predict_memory(run: Run, where: RunPlacement) -> memory.DeviceBytes:
  """Predicts the memory of one device, by what uses it."""
  sizes = sizes_of(run, where.mesh)
  return memory.predict(where.abstract, where.logical_axes, where.batch, sizes)


def check(run: Run, num_devices: int) -> None:
  """Raises ValueError if batch, groups or experts do not divide evenly."""
  n, data = run.settings.num_microbatches, run.data
  sizes = dict(zip(AXES, run.mesh.sizes(num_devices), strict=True))
  batch_axes = rules.table(run.rules)[axes.BATCH]
  check_batch(data.batch_size, n, math.prod(sizes[a] for a in batch_axes))
  experts = anatomy(run.model).experts
  if not experts:
    return
  if experts.group_size:
    layout = execution.layout_of(run, num_devices)
    check_groups(
      data.batch_size // n,
      data.sequence_length,
      experts.group_size,
      layout.size(layout.batch_axes),
      layout.size(layout.sequence_axes),
    )
  if experts.num_experts % sizes[EXPERT]:
    raise ValueError(
      f'NUM_EXPERTS={experts.num_experts} must be divisible by'
      f' MESH_EXPERT={sizes[EXPERT]}.'
    )


def _demand(
  run: Run, where: RunPlacement, sizes: memory.MicrobatchSizes
) -> forecast.StepDemand:
  """FLOPs and exchanged bytes of a step on one device."""
  mesh, model = where.mesh, anatomy(run.model)
  parts = cost.components(
    where.abstract.params, where.logical_axes, model.num_active
  )
  is_tpu = mesh.devices.flat[0].platform == 'tpu'
  made = execution.execution_of(run, mesh.size, is_tpu)
  _, step = cost.executed_flops_per_token(parts, made)
  tokens = run.data.batch_size * run.data.sequence_length
  exchanged, rows_per_expert = 0, 0.0
  if model.experts:
    rows = sizes.tokens * model.num_active
    exchanged = round(rows * made.padding) * model.d_model * sizes.dtype_bytes
    here = model.experts.num_experts / mesh.shape[EXPERT]
    rows_per_expert = rows / here
  update = orthogonal.update(where.abstract.opt_state, where.abstract.params)
  return forecast.StepDemand(
    step * tokens / mesh.size + update.flops,
    exchanged,
    model.num_sparse,
    model.d_model,
    len(model.layers),
    rows_per_expert,
  )


def _host_seconds(run: Run, where: RunPlacement) -> float:
  """Seconds per step to copy the optimizer's state from the host and back."""
  if not run.storage.optimizer_on_host:
    return 0.0
  num_bytes = sum(
    shardings.device_bytes(a, a.sharding)
    for a in jax.tree.leaves(where.abstract.opt_state)
  )
  return 2 * num_bytes / _HOST_BANDWIDTH


def forecast_placed(
  run: Run,
  slice_: Slice,
  where: RunPlacement,
  peak_bytes: int,
  changes: tuple[str, ...],
) -> Forecast:
  """Makes a forecast from known shardings and memory.

  Args:
    run: the planned run.
    slice_: the chips.
    where: the shardings, from `place_run`.
    peak_bytes: peak memory of a device, from `predict_memory`.
    changes: gin bindings that change the run to this layout.
  """
  mesh, chip = where.mesh, slice_.chip
  sizes = sizes_of(run, mesh)
  demand = _demand(run, where, sizes)
  token_axes = rules.token_axes(rules.table(run.rules))
  done = forecast.forecast_work(
    where.abstract, where.logical_axes, mesh, token_axes, sizes, demand
  )
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
    tuple(forecast.warnings(slice_, mesh, sizes, demand)),
    forecast.refusal(done, seconds.by_transfer, device_peak),
  )


def forecast_of(
  run: Run,
  slice_: Slice,
  devices: Sequence[jax.Device],
  changes: tuple[str, ...] = (),
) -> Forecast:
  """Makes the forecast of a run on a slice.

  Raises:
    ValueError: if batch, groups, experts or parameters do not divide evenly.
  """
  check(run, len(devices))
  where = place_run(run, make_mesh(run.mesh, devices))
  return forecast_placed(
    run, slice_, where, predict_memory(run, where).peak, changes
  )
