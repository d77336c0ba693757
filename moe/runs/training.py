"""Trains a language model, from the first check to the last file."""

import dataclasses
import logging
import os
from collections.abc import Callable, Sequence

import jax

from moe import atomic_files
from moe.checkpoint import foreign
from moe.data.cache_dir import default_cache_dir
from moe.data.store import VOCABULARY, file_sha256
from moe.modalities.ids import IdSpace
from moe.modalities.text import Vocabulary
from moe.runs import (
  attempt,
  bucket,
  build,
  gallery,
  image_tokenizer,
  preflight,
  results,
  trained,
)
from moe.runs.counts import flops_of
from moe.runs.run import Data, Run
from moe.train import program as program_lib
from moe.train.program import Program

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Job:
  """A run and its program, after a check of shapes and of named files.

  Attributes:
    run: the run.
    workdir: directory of all files of the run.
    program: jitted functions of the run.
    counts: parameters and FLOPs per token.
    token_seconds: seconds per token at the published peak of all devices; None
      if no peak is known.
    description: text about the model.
  """

  run: Run
  workdir: str
  program: Program
  counts: dict[str, int]
  token_seconds: float | None
  description: str


def prepare(
  run: Run, workdir: str, differences: Sequence[str], is_safe: bool = False
) -> Job:
  """Checks the files that a run names; builds its program without any array.

  Args:
    run: the run.
    workdir: directory of the run, from `preflight.open_workdir`.
    differences: sentences that say how the settings differ from the
      configuration in the work directory.
    is_safe: whether INITIAL_CHECKPOINT may come from a stranger. Then its files
      are checked before they are read.

  Raises:
    ValueError: if a named file or a size does not fit.
  """
  if is_safe and run.initial.checkpoint:
    foreign.check(run.initial.checkpoint)
  preflight.check_names(run, workdir, differences)
  program = build.build(run)
  preflight.warn_of_router(run)
  counts, peak = flops_of(run, program)
  token_seconds = peak and counts['flops_per_token_train'] / peak
  return Job(
    run,
    workdir,
    program,
    counts,
    token_seconds,
    describe(program, counts),
  )


def describe(program: Program, counts: dict[str, int]) -> str:
  """A text about the parameters of the model and its FLOPs per token."""
  return program_lib.parameter_table(program) + (
    f'active parameters per token {counts["params_active"]:,}\n'
    f'model FLOPs per token, forward {counts["flops_per_token_forward"]:,}\n'
    'optimizer FLOPs per token'
    f' {counts["flops_per_token_optimizer"]:,}\n'
  )


def train(
  job: Job,
  config_files: dict[str, str],
  prepare_stores: Callable[..., str],
  write_report: Callable[[str], str],
  compiled: str | None = None,
  begin: float | None = None,
) -> int:
  """Trains a run to its end, or resumes it from its work directory.

  Args:
    job: the run, from `prepare`.
    config_files: the configuration files to write, text by file name.
      'config.gin' is also saved with every checkpoint.
    prepare_stores: makes missing token stores, with the arguments and the
      result of `launch.token_stores.prepare`.
    write_report: writes the page about a work directory and returns its path.
    compiled: file of a step that was compiled ahead of time; None compiles now.
    begin: time at which the command started, by `time.monotonic`; None takes
      the present time.

  Returns:
    The exit code: 0 at the end, 75 after a signal to stop.

  Raises:
    ValueError: if the disk is too small, data or checkpoints do not fit the
      run, or another run uses the work directory.
  """
  _check_origin(job)
  one = attempt.Attempt(
    job.run.settings,
    job.program,
    job.workdir,
    {**config_files, 'model.txt': job.description},
    job.counts,
    job.token_seconds,
    compiled,
    begin,
  )
  return attempt.train(
    one,
    lambda: _opened(job, prepare_stores),
    lambda: _logger.info(f'report: {write_report(job.workdir)}'),
  )


def _check_origin(job: Job) -> None:
  """Raises ValueError if INITIAL_CHECKPOINT has another vocabulary or id space.

  If VOCABULARY names no file, the vocabulary may not exist yet. Then
  `build.starting_state` makes the same check.
  """
  data = job.run.data
  if data.vocabulary:
    preflight.check_origin(job.run, job.program, hashes_of_files(data))


def hashes_of_files(data: Data) -> dict[str, str]:
  """The hashes of ids by VOCABULARY and IMAGE_TOKENIZER, before data are read.

  An image tokenizer that is missing is left out; `preflight.check_tokenizer`
  refuses it.
  """
  vocabulary, tokenizer = Vocabulary(data.vocabulary), data.image_tokenizer
  sha256 = file_sha256(tokenizer) if os.path.isfile(tokenizer) else ''
  return _id_hashes(vocabulary.sha256, data.ids(vocabulary.size, sha256))


def _opened(job: Job, prepare_stores: Callable[..., str]) -> attempt.Opened:
  """Makes missing token stores, and opens them."""
  run, program = job.run, job.program
  directory, found = build.find_data(run, prepare_stores)
  reader, evaluations = build.open_data(
    run, program, directory, found, job.workdir
  )
  if run.data.image_tokenizer:
    tokenizer = image_tokenizer.load(run.data.image_tokenizer)
    image_tokenizer.check_model(tokenizer, run.model)
  vocabulary = os.path.join(directory, VOCABULARY)
  evaluations = gallery.with_gallery(
    run, program, job.workdir, vocabulary, evaluations
  )
  hashes = _id_hashes(reader.vocab_sha256, reader.ids)
  held_out = build.held_out_hashes(run, found)
  first = next(iter(held_out.items()), None)
  meta = {
    **hashes,
    'held_out': held_out,
    'ranked_on': first and ' '.join(first),
    **preflight.run_identity(run),
  }
  return attempt.Opened(
    reader,
    evaluations,
    meta,
    lambda: build.starting_state(run, program, hashes),
    lambda: _write_results(job, found),
    lambda: _write_samples(job),
  )


def _id_hashes(vocabulary_sha256: str, ids: IdSpace) -> dict[str, str]:
  """The hashes that define the meaning of ids.

  For text alone, the hash of the vocabulary is enough.
  """
  hashes = {} if ids.is_text else {'ids_sha256': ids.sha256}
  return {**hashes, 'vocabulary_sha256': vocabulary_sha256}


def _write_samples(job: Job) -> None:
  """Writes the samples of the run; all processes must call this."""
  # The mirrors of other machines lack files that process 0 has written.
  is_alone = jax.process_count() == 1
  place = job.workdir if is_alone else bucket.Mirror(job.workdir).place
  samples = samples_of(job.run, place)
  if jax.process_index() == 0:
    path = os.path.join(job.workdir, 'samples.json')
    atomic_files.write_json(path, samples)


def _write_results(job: Job, found: build.FoundStores) -> None:
  """Writes the baselines of the run."""
  data = job.run.data
  if data.evaluation:
    task = data.evaluation[0]
    config = os.path.join(job.workdir, 'config.gin')
    scores = results.baselines(
      found[data.train, 'train'][0],
      found[task, 'validation'][0],
      Vocabulary(os.path.join(job.workdir, VOCABULARY)),
      data.cache_dir or default_cache_dir(),
      f'python -m launch.train --gin_file={config} --workdir={job.workdir}',
    )
    content = {
      'task': task,
      'held_out': build.held_out_hashes(job.run, found)[task],
      'scores': [score.as_json() for score in scores],
    }
    path = os.path.join(job.workdir, 'baselines.json')
    atomic_files.write_json(path, content)
    for score in scores:
      _logger.info(
        f'{score.name} of the training split: {score.value:.4f} bits/char on'
        ' held-out documents'
      )


def samples_of(run: Run, workdir: str) -> list[dict[str, str]]:
  """Writes samples after the run's prompts; returns {'prompt', 'text'} of each.

  All processes must call this. There are no samples if the model cannot write
  token by token.
  """
  if not run.prompts:
    return []
  # An error here ends the process. If the process went on without the file, the
  # others would wait for it.
  files = trained.find(workdir)
  try:
    return results.samples(trained.read_back(run, files), run.prompts)
  except ValueError as error:  # For example, if the router needs later tokens.
    _logger.info(f'no samples: {error}')
    return []
