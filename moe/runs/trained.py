"""Finds a trained run and reads it from its work directory."""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from moe.checkpoint import integrity, listing, restore
from moe.data.store import VOCABULARY, file_sha256
from moe.modalities.text import Vocabulary
from moe.models import functional as functional_lib
from moe.objectives import language
from moe.optim import storage
from moe.parallel import mesh as mesh_lib
from moe.parallel import rules, shardings
from moe.runs import bucket, build
from moe.runs.run import IMAGE_TOKENIZER, Run, TrainedRun
from moe.types import Layout, PyTree


class RunFiles(NamedTuple):
  """Files of a trained run.

  Attributes:
    workdir: directory of the run.
    steps_dir: directory of the run's checkpoints.
    step: the step that the user has named; None if the user has named none.
    config: file of the whole configuration.
    vocabulary: file of the vocabulary.
  """

  workdir: str
  steps_dir: os.PathLike
  step: int | None
  config: str
  vocabulary: str


def find(directory: str) -> RunFiles:
  """Finds a trained run.

  Args:
    directory: directory of the run, of its checkpoints, or of one of its steps.

  Raises:
    ValueError: if there is no run, or if its configuration or vocabulary is
      missing.
  """
  directory = bucket.opened(directory)
  steps_dir, step = listing.locate(directory)
  workdir = directory
  if not integrity.on_object_store(steps_dir):
    workdir = os.path.dirname(os.fspath(steps_dir).rstrip('/'))
  config = os.path.join(workdir, 'config.gin')
  vocabulary = os.path.join(workdir, VOCABULARY)
  for path in (config, vocabulary):
    if not os.path.isfile(path):
      raise ValueError(f'{path} must lie beside the checkpoints of a run.')
  return RunFiles(workdir, steps_dir, step, config, vocabulary)


def read_back(
  run: Run, files: RunFiles, devices: Sequence[jax.Device] | None = None
) -> TrainedRun:
  """Reads the parameters of a trained run.

  The parameters are sharded as in training, by the run's sharding table and
  mesh. If there are more or fewer devices than in training, `MeshShape.fitted`
  adapts the mesh.

  Args:
    run: the run, from the configuration in `files`.
    files: the files, from `find`. If their step is None, the best step is read,
      or the newest sound one if no step was scored.
    devices: the devices; None takes all.

  Raises:
    ValueError: if a file is damaged, or files do not fit together.
  """
  vocabulary = Vocabulary(files.vocabulary)
  devices = list(devices or jax.devices())
  shape = run.mesh.fitted(len(devices), mesh_lib.count_slices(devices))
  functional, table, mesh = build.place_model(
    dataclasses.replace(run, mesh=shape), devices
  )
  step = files.step
  if step is None:
    step = listing.shared_best_step(files.steps_dir)
  loaded, meta = restore.load_params(
    files.steps_dir, step, placed_shapes(run, table, mesh)
  )
  if meta['vocabulary_sha256'] != vocabulary.sha256:
    raise ValueError(
      f'{files.vocabulary} must be the vocabulary that step {meta["step"]} was'
      f' trained with (SHA-256 {meta["vocabulary_sha256"][:12]}), got'
      f' {vocabulary.sha256[:12]}: restore the right file.'
    )
  image_tokenizer = _image_tokenizer(run, files, meta, vocabulary.size)
  ids = run.data.ids(vocabulary.size, image_tokenizer)
  # A run of text alone has saved no hash of its id space, because its
  # vocabulary defines all ids.
  saved_ids = meta.get('ids_sha256', ids.sha256)
  if ids.sha256 != saved_ids:
    raise ValueError(
      f'{files.config} must have the id space that step {meta["step"]} was'
      f' trained with (SHA-256 {saved_ids[:12]}), got {ids}'
      f' ({ids.sha256[:12]}): put back the run.Data.ranges of the run.'
    )
  return TrainedRun(
    functional,
    mesh,
    loaded['params'],
    loaded['state'],
    vocabulary,
    meta['step'],
    files.workdir,
    run,
    image_tokenizer,
  )


def _image_tokenizer(
  run: Run, files: RunFiles, meta: dict[str, Any], num_pieces: int
) -> str:
  """SHA-256 of the image tokenizer in a run's directory.

  The result is '' if the run needs no tokenizer.

  Raises:
    ValueError: if the tokenizer is missing, or if its hash is wrong.
  """
  if not run.data.image_tokenizer:
    return ''
  path = os.path.join(files.workdir, IMAGE_TOKENIZER)
  if not os.path.isfile(path):
    raise ValueError(
      f'The image tokenizer {path} must lie beside the checkpoints of a run'
      ' that reads image codes, got nothing there: restore the file.'
    )
  sha256 = file_sha256(path)
  wanted = meta.get('ids_sha256')
  if run.data.ids(num_pieces, sha256).sha256 != wanted:
    raise ValueError(
      f'The image tokenizer {path} must be the one that step {meta["step"]} was'
      f' trained with, got another one (SHA-256 {sha256[:12]}): restore the'
      ' right file.'
    )
  return sha256


def placed_shapes(
  run: Run, table: rules.Table, mesh: Mesh
) -> dict[str, PyTree]:
  """Shapes and shardings of params and state, for `restore.load_params`."""
  functional = functional_lib.make_functional(run.model, (), Layout())
  found = {}

  def init() -> tuple[PyTree, PyTree]:
    params, state, found['axes'] = functional.init(
      jax.random.key(0), language.batch_shapes(1, 1, functional.extras)
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
