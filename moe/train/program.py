"""The jitted programs of a run, and the shardings of their arrays."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding

from moe.objectives.objective import Objective, num_rows
from moe.optim import optimizers
from moe.optim.optimizers import Optimizer
from moe.parallel import multihost, rules, shardings
from moe.train import spikes, state
from moe.train.step import check_batch, make_eval_step, make_train_step
from moe.types import Array, Batch, Pair, PyTree


class Program(NamedTuple):
  """The jitted functions of a run, and the shapes of their arrays.

  Attributes:
    objective: what is trained.
    mesh: mesh of the devices.
    abstract: TrainState of shapes with shardings.
    logical_axes: logical axis names of each parameter.
    batch_shapes: shapes of the batch.
    batch_shardings: shardings of the batch.
    init: jitted, () -> TrainState, sharded from the start.
    train_step: jitted, (TrainState, Batch) -> (TrainState, metrics); donates
      the state.
    eval_step: jitted, (TrainState, Batch) -> metrics.
  """

  objective: Objective
  mesh: Mesh
  abstract: state.TrainState
  logical_axes: PyTree
  batch_shapes: Batch
  batch_shardings: Batch
  init: Callable
  train_step: Callable
  eval_step: Callable

  def put(self, batch: Batch) -> Batch:
    """Puts the rows of this process, which are NumPy arrays, on its devices."""
    return jax.tree.map(multihost.put_rows, batch, self.batch_shardings)

  def own_rows(self, batch_size: int) -> np.ndarray:
    """Numbers of the rows of a batch that this process must read."""
    return multihost.own_rows(self._sharding, batch_size)

  def total(self, count: Callable[[Batch], int], batch: Batch) -> int | Array:
    """Sums `count` over the rows of all processes, see `multihost.total`."""
    return multihost.total(count, batch, self._sharding)

  @property
  def _sharding(self) -> NamedSharding:
    return jax.tree.leaves(self.batch_shardings)[0]


def place(
  abstract: state.TrainState,
  logical_axes: PyTree,
  table: rules.Table,
  mesh: Mesh,
  optimizer_on_host: bool,
) -> state.TrainState:
  """Adds shardings on a mesh to the shapes of a training state.

  Args:
    abstract: TrainState of shapes.
    logical_axes: logical axis names of each parameter.
    table: rule table of the layout.
    mesh: mesh of the devices.
    optimizer_on_host: whether the optimizer's state is kept in host memory.
  """
  params = shardings.param_shardings(abstract.params, logical_axes, table, mesh)
  replicated = shardings.replicated(mesh)
  opt_state = shardings.optimizer_shardings(
    abstract.opt_state, abstract.params, params, mesh
  )
  if optimizer_on_host:
    opt_state = shardings.on_host(abstract.opt_state, opt_state, mesh)
  placed = jax.tree.map(lambda _: replicated, abstract)
  placed = placed._replace(params=params, opt_state=opt_state)
  return jax.tree.map(
    lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p),
    abstract,
    placed,
  )


def make_program(
  objective: Objective,
  optimizer: Optimizer,
  schedule: Callable,
  table: rules.Table,
  mesh: Mesh,
  seed: int,
  num_microbatches: int = 1,
  spike_deviations: float = 0.0,
) -> Program:
  """Builds the programs of a run from shapes alone; nothing is compiled yet.

  Args:
    objective: what is trained.
    optimizer: see `moe.optim.optimizers.build`.
    schedule: learning rate by step.
    table: rule table of the layout.
    mesh: mesh of the devices.
    seed: seed of the parameters and of the randomness in every step.
    num_microbatches: number of parts of a batch.
    spike_deviations: see `make_train_step`.

  Raises:
    ValueError: if a size is not divisible by its mesh axes; the message names
      the first such size.
  """
  layout, shapes = rules.layout(table, mesh), objective.shapes()
  check_batch(
    num_rows(shapes), num_microbatches, layout.size(layout.batch_axes)
  )
  key = jax.random.key(seed)
  found = {}

  def init():
    params, carried, found['axes'] = objective.init(key, shapes)
    ts = state.create(params, carried, optimizer)
    if not spike_deviations:
      return ts
    return state.WatchedState(*ts, spikes.start())

  with jax.set_mesh(mesh):
    abstract = jax.eval_shape(init)
    abstract = place(
      abstract, found['axes'], table, mesh, optimizer.storage.optimizer_on_host
    )
    placed = jax.tree.map(lambda s: s.sharding, abstract)
    optimizer = optimizers.placed(optimizer, abstract.params)
    batch = shardings.batch_shardings(objective.fields(), table, mesh)
    train_step = make_train_step(
      objective, optimizer, schedule, seed, num_microbatches, spike_deviations
    )
    eval_step = make_eval_step(objective)
    # Tracing finds every wrong size here, before anything is compiled.
    jax.eval_shape(train_step, abstract, shapes)
    jax.eval_shape(eval_step, abstract, shapes)

    def jitted(function: Callable, **options: PyTree) -> Callable:
      compiled = jax.jit(function, **options)
      return lambda *args: _under(mesh, compiled, *args)

    return Program(
      objective,
      mesh,
      abstract,
      found['axes'],
      shapes,
      batch,
      jitted(init, out_shardings=placed),
      _Step(train_step, placed, batch, mesh),
      jitted(
        eval_step,
        in_shardings=(placed, batch),
        out_shardings=shardings.replicated(mesh),
      ),
    )


def _under(mesh: Mesh, function: Callable, *args: PyTree) -> PyTree:
  """Calls a function while `mesh` is JAX's current mesh."""
  with jax.set_mesh(mesh):
    return function(*args)


class _Step:
  """The train step, which can be compiled before its first call."""

  def __init__(
    self,
    train_step: Callable,
    placed: state.TrainState,
    batch: Batch,
    mesh: Mesh,
  ):
    """Jits the step.

    Args:
      train_step: (TrainState, Batch) -> (TrainState, metrics).
      placed: shardings of the state.
      batch: shardings of the batch.
      mesh: mesh of the devices.
    """
    self._mesh = mesh
    self._compiled = None
    self._jitted = jax.jit(
      train_step,
      in_shardings=(placed, batch),
      out_shardings=(placed, shardings.replicated(mesh)),
      donate_argnums=0,
    )

  def lower(
    self, abstract: state.TrainState, shapes: Batch
  ) -> jax.stages.Lowered:
    """Lowers the step without compiling it, for `compile` or for planning."""
    with jax.set_mesh(self._mesh):
      return self._jitted.lower(abstract, shapes)

  def compile(self, abstract: state.TrainState, shapes: Batch) -> None:
    """Compiles now, so that the first step takes as long as the others."""
    self._compiled = self.lower(abstract, shapes).compile()

  def use(self, compiled: Callable) -> None:
    """Uses a step that was compiled elsewhere."""
    self._compiled = compiled

  def __call__(
    self, ts: state.TrainState, batch: Batch
  ) -> tuple[state.TrainState, dict[str, Pair]]:
    return _under(self._mesh, self._compiled or self._jitted, ts, batch)


def parameter_table(program: Program) -> str:
  """A table of all parameters: shapes, axes, and bytes on one device."""
  rows = [('parameter', 'shape', 'logical axes', 'mesh axes', 'bytes/device')]
  total = 0
  flat = jax.tree_util.tree_flatten_with_path(program.abstract.params)[0]
  logical = jax.tree.leaves(
    program.logical_axes, is_leaf=lambda a: isinstance(a, tuple)
  )
  for (path, leaf), names in zip(flat, logical, strict=True):
    size = shardings.device_bytes(leaf, leaf.sharding)
    total += size
    rows.append((
      shardings.path_name(path),
      'x'.join(map(str, leaf.shape)),
      ','.join(n or '-' for n in names),
      str(tuple(leaf.sharding.spec)),
      f'{size:,}',
    ))  # fmt: skip
  optimizer = sum(
    shardings.device_bytes(leaf, leaf.sharding)
    for leaf in jax.tree.leaves(program.abstract.opt_state)
  )
  widths = [max(len(r[i]) for r in rows) for i in range(len(rows[0]))]
  lines = [
    '  '.join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip()
    for r in rows
  ]
  mesh = ' '.join(f'{a}={n}' for a, n in program.mesh.shape.items())
  lines += [
    '',
    f'parameters {state.count(program.abstract.params):,}',
    f'bytes per device: parameters {total:,}, optimizer {optimizer:,}',
    f'mesh {mesh} over {program.mesh.size} x '
    f'{np.ravel(program.mesh.devices)[0].device_kind}',
  ]
  return '\n'.join(lines) + '\n'
