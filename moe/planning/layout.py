"""One layout of a run on a slice: its forecast, before anything is compiled."""

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
from moe.planning import recipe
from moe.runs.counts import counts_of
from moe.runs.run import Run
from moe.scale import cost, forecast, memory, roofline
from moe.scale.topology import Slice
from moe.train import program
from moe.train.state import TrainState
from moe.train.step import check_batch
from moe.types import Batch, PyTree

# Bytes/s of one TPU chip to its host and back, of
# https://jax-ml.github.io/scaling-book/tpus (v5p; twice that on a v6e).
_HOST_BANDWIDTH = 1.6e10


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
    state: place of its formats in `search.STATES`, 0 for the most exact.
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


def sizes_of(run: Run, mesh: Mesh) -> memory.Sizes:
  """What a device works on in a microbatch of the run."""
  model = anatomy(run.model)
  layout = rules.layout(rules.table(run.rules), mesh)
  shards = layout.size(layout.batch_axes) * layout.size(layout.sequence_axes)
  n = run.settings.num_microbatches
  length = run.data.sequence_length
  tokens = run.data.batch_size * length // n // shards
  parts = layout.size(layout.tensor_axes)
  attention, experts = model.attention, model.experts
  heads = max(1, attention.num_heads // parts)
  padding = recipe.recipe_of(run, mesh.size).padding
  dense = _widest(model)
  return memory.Sizes(
    tokens=tokens,
    d_model=model.d_model,
    # Its kernel may still refuse the shapes: then the forecast is too low.
    scores=0 if attention.kernel != 'xla' else heads * tokens * length,
    attention_width=attention.features // parts,
    result_width=attention.result_features // parts,
    dense_width=dense.width // parts if dense else 0,
    matrices=(dense or experts.expert).num_matrices,
    expert_width=experts.expert.width // parts if experts else 0,
    # Evenly used, as many rows arrive as leave, and empty slots beside them.
    expert_rows=round(tokens * model.num_active * padding),
    periods=model.num_periods,
    blocks=max(1, len(model.period)),
    remat=model.remat,
    loss_chunks=recipe.loss_chunks(run),
    num_microbatches=n,
    dtype_bytes=jax.numpy.dtype(model.dtype).itemsize,
    grad_bytes=jax.numpy.dtype(run.storage.grads).itemsize,
    sum_bytes=jax.numpy.dtype(run.storage.sums).itemsize,
    prefix=len(model.prefix),
  )


def _widest(model: Anatomy) -> FeedForwardAnatomy | None:
  """The widest dense network; a dense twin may stand beside narrower ones."""
  dense = [b.feed_forward for b in model.prefix + model.period if not b.experts]
  return max(dense, key=lambda network: network.width, default=None)


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
  abstract: TrainState
  logical_axes: PyTree
  batch: Batch


def placed(
  run: Run, mesh: Mesh, known: tuple[TrainState, PyTree] | None = None
) -> Placed:
  """Places a run's arrays.

  Args:
    run: what is planned.
    mesh: of the devices.
    known: `recipe.abstract_state` of a run with the same parameters.
  """
  ts, logical_axes = known or recipe.abstract_state(run)
  table = rules.table(run.rules)
  ts = program.place(
    ts, logical_axes, table, mesh, run.storage.optimizer_on_host
  )
  put = lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p)
  fields = run.objective(Functional(run.model), run.data.shape).fields()
  batch = jax.tree.map(
    put, shapes_of(fields), shardings.batch_shardings(fields, table, mesh)
  )
  return Placed(mesh, ts, logical_axes, batch)


def predict(run: Run, mesh: Mesh) -> memory.Prediction:
  """Memory of a device."""
  return held(run, placed(run, mesh))


def held(run: Run, where: Placed) -> memory.Prediction:
  """`predict` of a run that is placed already."""
  sizes = sizes_of(run, where.mesh)
  return memory.predict(where.abstract, where.logical_axes, where.batch, sizes)


def check(run: Run, num_devices: int) -> None:
  """Raises ValueError if something does not divide."""
  n, data = run.settings.num_microbatches, run.data
  sizes = dict(zip(AXES, run.mesh.sizes(num_devices), strict=True))
  batch_axes = rules.table(run.rules)[axes.BATCH]
  check_batch(data.batch_size, n, math.prod(sizes[a] for a in batch_axes))
  experts = anatomy(run.model).experts
  if not experts:
    return
  if experts.group_size:
    check_groups(
      data.batch_size // n,
      data.sequence_length,
      experts.group_size,
      recipe.layout_of(run, num_devices),
    )
  if experts.num_experts % sizes[EXPERT]:
    raise ValueError(
      f'{experts.num_experts} experts must be divisible by the'
      f' {sizes[EXPERT]} devices of the expert axis'
    )


def _load(run: Run, where: Placed, sizes: memory.Sizes) -> forecast.Load:
  """What a step puts on a device."""
  mesh, model = where.mesh, anatomy(run.model)
  parts = cost.components(
    where.abstract.params, where.logical_axes, model.num_active
  )
  is_tpu = mesh.devices.flat[0].platform == 'tpu'
  made = recipe.recipe_of(run, mesh.size, is_tpu)
  _, step = cost.executed_flops_per_token(parts, made)
  tokens = run.data.batch_size * run.data.sequence_length
  exchanged, rows_per_expert = 0, 0.0
  if model.experts:
    rows = sizes.tokens * model.num_active
    exchanged = round(rows * made.padding) * model.d_model * sizes.dtype_bytes
    here = model.experts.num_experts / mesh.shape[EXPERT]
    rows_per_expert = rows / here
  return forecast.Load(
    step * tokens / mesh.size,
    exchanged,
    model.num_sparse,
    model.d_model,
    len(model.layers),
    rows_per_expert,
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


def timed(
  run: Run,
  slice_: Slice,
  where: Placed,
  peak_bytes: int,
  changes: tuple[str, ...],
) -> Forecast:
  """The forecast of a run that is placed already, whose memory is known.

  Args:
    run: what is planned.
    slice_: the chips.
    where: of `placed`.
    peak_bytes: of `held`.
    changes: of the run, as --gin flags would say them.
  """
  mesh, chip = where.mesh, slice_.chip
  sizes = sizes_of(run, mesh)
  load = _load(run, where, sizes)
  token_axes = rules.token_axes(rules.table(run.rules))
  done = forecast.work(
    where.abstract, where.logical_axes, mesh, token_axes, sizes, load
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
    tuple(forecast.warnings(slice_, mesh, sizes, load)),
    forecast.refusal(done, seconds.by_transfer, device_peak),
  )


def forecast_of(
  run: Run,
  slice_: Slice,
  devices: Sequence[jax.Device],
  changes: tuple[str, ...] = (),
) -> Forecast:
  """Memory and seconds of a run on a slice.

  Raises:
    ValueError: if something does not divide.
  """
  check(run, len(devices))
  where = placed(run, make_mesh(run.mesh, devices))
  return timed(run, slice_, where, held(run, where).peak, changes)
