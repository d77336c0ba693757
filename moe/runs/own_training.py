"""Trains a run that reads no token stores: image tokenizers, folding models."""

import contextlib
import os
from collections.abc import Mapping
from typing import Any

import jax

from moe import atomic_files
from moe.checkpoint.save import Checkpointer
from moe.runs import build, lock, preflight
from moe.train import progress, trainer
from moe.train.evaluation import Evaluation
from moe.train.program import Program


def train(
  settings: trainer.Settings,
  program: Program,
  data: tuple[Any, Mapping[str, Evaluation]],
  workdir: str,
  config_files: dict[str, str],
  batch_size: int,
) -> int:
  """Trains to the end, or resumes from the work directory.

  Args:
    settings: settings of the training loop.
    program: the program of the run.
    data: (reader of training batches, evaluations by name).
    workdir: directory of all files of the run.
    config_files: the configuration files to write, text by file name.
    batch_size: B, over all devices and microbatches.

  Returns:
    The exit code: 0 at the end, 75 after a signal to stop.

  Raises:
    ValueError: if checkpoints do not fit the run, or if another run uses the
      directory.
  """
  reader, evaluations = data
  steps_dir = os.path.join(os.path.abspath(workdir), 'checkpoints')
  score = program.objective.score
  with lock.held(workdir) as check_held:
    preflight.check_disk(program, steps_dir)
    checkpointer = Checkpointer(
      steps_dir,
      settings.keep_last,
      settings.keep_best,
      score.name,
      score.is_higher_better,
      check_held,
    )
    ts, saved = build.resumed_state(program, checkpointer)
    meta = {
      'manifest_hash': reader.manifest_hash,
      'seed': settings.seed,
      'batch_size': batch_size,
      'config': config_files['config.gin'],
    }
    if ts is None:
      ts = program.init()
    else:
      preflight.check_saved(saved, meta, workdir)
    if jax.process_index() == 0:
      for name, text in config_files.items():
        atomic_files.write_file(os.path.join(workdir, name), text)
    shown = progress.Progress(
      workdir, program.objective, settings.train_steps, int(ts.step)
    )
    with contextlib.closing(shown), contextlib.closing(checkpointer):
      _, code = trainer.train(
        settings, program, reader, evaluations, checkpointer, shown, meta, ts
      )
  return code
