"""A trained run, found and read back from its work directory."""

import dataclasses
import os
from collections.abc import Sequence
from typing import NamedTuple

import jax
from jax.sharding import Mesh

from moe.checkpoint import listing, restore
from moe.modalities.vocabulary import Vocabulary
from moe.models import functional as functional_lib
from moe.objectives import language
from moe.optim import storage
from moe.parallel import rules, shardings
from moe.runs.run import Run, TrainedRun
from moe.types import Layout, PyTree


class Place(NamedTuple):
  """Where a trained run lies.

  Attributes:
    workdir: of the run.
    steps_dir: its checkpoints.
    step: the one that is asked for; None for the best or the latest.
    config: file of its whole configuration.
    vocabulary: file of its vocabulary.
  """

  workdir: str
  steps_dir: os.PathLike
  step: int | None
  config: str
  vocabulary: str


def find(directory: str) -> Place:
  """Finds a trained run by its directory, its checkpoints, or one step there.

  Raises:
    ValueError: if there is none, or files beside its checkpoints are missing.
  """
  steps_dir, step = listing.locate(directory)
  workdir = os.path.dirname(os.fspath(steps_dir).rstrip('/'))
  config = os.path.join(workdir, 'config.gin')
  vocabulary = os.path.join(workdir, 'vocabulary.model')
  for path in (config, vocabulary):
    if not os.path.isfile(path):
      raise ValueError(f'{path} must lie beside the checkpoints of a run.')
  return Place(workdir, steps_dir, step, config, vocabulary)


def read_back(
  run: Run, place: Place, devices: Sequence[jax.Device] | None = None
) -> TrainedRun:
  """Reads the parameters of a run that has been trained.

  They lie on the devices as in training, by the run's rules. The mesh is that
  of the run, or what `MeshShape.fitted` makes of it for other devices.

  Args:
    run: as the configuration of the place says.
    place: as `find` gave it; where it names no step, the best one is read if
      one was scored, else the latest.
    devices: by default all.

  Raises:
    ValueError: if a file is damaged, or files do not fit together.
  """
  # Orbax takes half a second to import, and a configuration needs none of it.
  from moe.runs import build

  vocabulary = Vocabulary(place.vocabulary)
  devices = list(devices or jax.devices())
  shape = run.mesh.fitted(len(devices))
  functional, table, mesh = build.place(
    dataclasses.replace(run, mesh=shape), devices
  )
  step = place.step
  if step is None:
    step = listing.best_step(place.steps_dir)
  loaded, meta = restore.load_params(
    place.steps_dir, step, placed_shapes(run, table, mesh)
  )
  if meta['vocabulary_sha256'] != vocabulary.sha256:
    raise ValueError(
      f'{place.vocabulary} must be the vocabulary that step {meta["step"]} was'
      f' trained with (SHA-256 {meta["vocabulary_sha256"][:12]}), got'
      f' {vocabulary.sha256[:12]}: put the right file back.'
    )
  return TrainedRun(
    functional,
    mesh,
    loaded['params'],
    loaded['state'],
    vocabulary,
    meta['step'],
    place.workdir,
    run,
  )


def placed_shapes(
  run: Run, table: rules.Table, mesh: Mesh
) -> dict[str, PyTree]:
  """Shapes with shardings of what `load_params` reads: params and state."""
  functional = functional_lib.placed(run.model, (), Layout())
  found = {}

  def init() -> tuple[PyTree, PyTree]:
    params, state, found['axes'] = functional.init(
      jax.random.key(0), language.batch_shapes(1, 1)
    )
    return storage.cast(params, run.storage.params), state

  params, state = jax.eval_shape(init)
  places = shardings.param_shardings(params, found['axes'], table, mesh)
  whole = shardings.replicated(mesh)
  put = lambda s, place: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=place)
  return {
    'params': jax.tree.map(put, params, places),
    'state': jax.tree.map(lambda s: put(s, whole), state),
  }
