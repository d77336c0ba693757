"""A trained run, found and read back from its work directory."""

import os
from typing import NamedTuple

from moe.checkpoint import listing, restore
from moe.modalities.vocabulary import Vocabulary
from moe.models import functional as functional_lib
from moe.runs.run import Run, TrainedRun
from moe.types import Layout


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


def read_back(run: Run, place: Place) -> TrainedRun:
  """Reads the parameters of a run that has been trained.

  Args:
    run: as the configuration of the place says.
    place: as `find` gave it; where it names no step, the best one is read if
      one was scored, else the latest.

  Raises:
    ValueError: if a file is damaged, or files do not fit together.
  """
  vocabulary = Vocabulary(place.vocabulary)
  functional = functional_lib.placed(run.model, (), Layout())
  step = place.step
  if step is None:
    step = listing.best_step(place.steps_dir)
  loaded, meta = restore.load_params(place.steps_dir, step)
  if meta['vocabulary_sha256'] != vocabulary.sha256:
    raise ValueError(
      f'{place.vocabulary} must be the vocabulary that step {meta["step"]} was'
      f' trained with (SHA-256 {meta["vocabulary_sha256"][:12]}), got'
      f' {vocabulary.sha256[:12]}: put the right file back.'
    )
  return TrainedRun(
    functional,
    loaded['params'],
    loaded.get('state', {}),
    vocabulary,
    meta['step'],
    place.workdir,
    run,
  )
