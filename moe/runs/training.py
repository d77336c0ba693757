"""Carries out a training run, from its first check to its last file."""

import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from moe import atomic_files, failpoints
from moe.checkpoint import listing
from moe.checkpoint.save import Checkpointer
from moe.data import skips
from moe.data.cache_dir import default_cache_dir
from moe.data.reader import Reader
from moe.modalities.ids import IdSpace
from moe.modalities.text import Vocabulary
from moe.runs import (
  bucket,
  build,
  gallery,
  lock,
  preflight,
  results,
  trained,
)
from moe.runs.counts import flops_of
from moe.runs.run import Run
from moe.scale import compile as compile_lib
from moe.train import goodput, progress, record_log, trainer
from moe.train import program as program_lib
from moe.train.program import Program
from moe.train.state import TrainState

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

  @property
  def steps_dir(self) -> str:
    """The directory of checkpoints."""
    return listing.steps_dir(self.workdir)


def prepare(run: Run, workdir: str, differences: Sequence[str]) -> Job:
  """Checks the names of a run, and builds its program without any array.

  Args:
    run: the run.
    workdir: directory of the run, from `preflight.open_workdir`.
    differences: sentences that say how the settings differ from the
      configuration in the work directory.

  Raises:
    ValueError: if a name or a size does not fit.
  """
  steps_dir = listing.steps_dir(workdir)
  preflight.check_names(run, workdir, steps_dir, differences)
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
      result of `tasks.stores.prepare`.
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
  begin = time.monotonic() if begin is None else begin
  failpoints.reach('run.start')
  mirror = bucket.Mirror(job.workdir)
  with lock.held(mirror.place) as check_held, contextlib.ExitStack() as stack:
    if jax.process_index() == 0:
      atomic_files.sweep(job.workdir)
    workdir = job.workdir if jax.process_index() == 0 else None
    spent = goodput.Goodput(workdir, begin)
    stack.enter_context(contextlib.closing(spent))
    _check_files(job)
    settings, score = job.run.settings, job.program.objective.score
    checkpointer = Checkpointer(
      job.steps_dir,
      settings.keep_last,
      settings.keep_best,
      score.name,
      score.is_higher_better,
      check_held,
      mirror.send,
    )
    code, found = _train(
      job, config_files, prepare_stores, checkpointer, compiled, begin, spent
    )
    # Results need no other process, so process 0 writes them alone.
    if code == 0 and jax.process_index() == 0:
      with spent.spent('reporting'):
        _write_results(job, found, spent)
        _logger.info(f'report: {write_report(job.workdir)}')
      _write_facts(job, spent)
    mirror.send()
  return code


def _train(
  job: Job,
  config_files: dict[str, str],
  prepare_stores: Callable[..., str],
  checkpointer: Checkpointer,
  compiled: str | None,
  begin: float,
  spent: goodput.Goodput,
) -> tuple[int, build.FoundStores]:
  """Does the work of `train`; returns (exit code, token stores)."""
  run, program, settings = job.run, job.program, job.run.settings

  # ---- Data ------------------------------------------------------------------
  ts, saved = build.resumed_state(program, checkpointer)
  directory, found = build.find_data(run, prepare_stores)
  reader, evaluations = build.open_data(
    run, program, directory, found, job.workdir
  )

  evaluations = gallery.with_gallery(run, program, job.workdir, evaluations)
  reader.skips = skips.read(job.workdir)

  # ---- State -----------------------------------------------------------------
  held_out = build.held_out_hashes(run, found)
  meta = _meta(job, reader, held_out, config_files['config.gin'])
  if ts is None:
    ts = build.starting_state(
      run, program, _id_hashes(reader.vocab_sha256, reader.ids)
    )
  else:
    preflight.check_saved(saved, meta, job.workdir)
    skips.check_resumed(
      reader.skips,
      saved.get('skipped_batches', ()),
      int(ts.step),
      job.workdir,
    )
    preflight.warn_of_held_out(saved, held_out, job.workdir)
  _write_texts(job, config_files)

  # ---- Training --------------------------------------------------------------
  failpoints.reach('run.compile')
  with spent.spent('compiling'):
    _compile(job, ts, compiled, begin)
  spent.lose(_lost_seconds(job.workdir, int(ts.step)))
  # `Progress` removes the lost steps from the log. So their time, which the log
  # gives, is saved first.
  spent.write()
  shown = progress.Progress(
    job.workdir,
    program.objective,
    settings.train_steps,
    int(ts.step),
    job.token_seconds,
    settings.drop_warning,
    goodput=spent,
  )
  with (
    contextlib.closing(shown),
    contextlib.closing(checkpointer),
    spent.spent('productive'),
  ):
    ts, code = trainer.train(
      settings, program, reader, evaluations, checkpointer, shown, meta, ts
    )
  if jax.process_count() > 1:
    _logger.info(
      f'process {jax.process_index()} of {jax.process_count()} read'
      f' {reader.bytes_read:,} bytes of training records'
    )
  return code, found


def _check_files(job: Job) -> None:
  """Raises ValueError if vocabularies or the disk do not fit the run."""
  data = job.run.data
  if (
    data.vocabulary
  ):  # Without a file the vocabulary is trained first, and checked later.
    vocabulary = Vocabulary(data.vocabulary)
    hashes = _id_hashes(vocabulary.sha256, data.ids(vocabulary.size))
    preflight.check_origin(job.run, job.program, hashes)
  preflight.check_disk(job.program, job.steps_dir)


def _id_hashes(vocabulary_sha256: str, ids: IdSpace) -> dict[str, str]:
  """The hashes that define the meaning of ids.

  For text alone, the hash of the vocabulary is enough.
  """
  hashes = {} if ids.is_text else {'ids_sha256': ids.sha256}
  return {**hashes, 'vocabulary_sha256': vocabulary_sha256}


def _meta(
  job: Job, reader: Reader, held_out: dict[str, str], config: str
) -> dict[str, Any]:
  """The metadata that every checkpoint saves together with the arrays."""
  first = next(iter(held_out.items()), None)
  left_out = reader.skips.ranges
  return {
    **({'skipped_batches': left_out} if left_out else {}),
    **_id_hashes(reader.vocab_sha256, reader.ids),
    'manifest_hash': reader.manifest_hash,
    'held_out': held_out,
    'ranked_on': first and ' '.join(first),
    **preflight.run_identity(job.run),
    'mesh': dict(job.program.mesh.shape),
    'config': config,
  }


def _write_texts(job: Job, config_files: dict[str, str]) -> None:
  """Writes the configuration and the text about the model."""
  if jax.process_index() == 0:
    for name, text in {**config_files, 'model.txt': job.description}.items():
      atomic_files.write_file(os.path.join(job.workdir, name), text)


def _compile(
  job: Job, ts: TrainState, compiled: str | None, begin: float
) -> None:
  """Compiles the step or reads it from a file; logs that the run is ready."""
  begin_compile = time.monotonic()
  program, shapes = job.program, job.program.batch_shapes
  if compiled:
    program.train_step.use(compile_lib.load(program, shapes, compiled))
  else:
    program.train_step.compile(program.abstract, shapes)
  now = time.monotonic()
  _logger.info(
    f'{job.counts["params_total"]:,} parameters,'
    f' {job.counts["params_active"]:,} active, on {program.mesh.size} x'
    f' {program.mesh.devices.flat[0].device_kind};'
    f' compiled in {now - begin_compile:.1f} s, ready after'
    f' {now - begin:.1f} s;'
    f' step {int(ts.step):,} of {job.run.settings.train_steps:,}'
  )


def _lost_seconds(workdir: str, step: int) -> float:
  """The seconds of the logged steps after the restored step."""
  records = record_log.read(os.path.join(workdir, 'log.jsonl'))
  return sum(r['time']['seconds'] for r in records if r['step'] > step)


def _write_facts(job: Job, spent: goodput.Goodput) -> None:
  """Writes run.json and the goodput file."""
  spent.write()
  path = os.path.join(job.workdir, 'run.json')
  facts = {**job.counts, 'goodput': spent.summary()}
  atomic_files.write_json(path, facts)


def _write_results(
  job: Job, found: build.FoundStores, spent: goodput.Goodput
) -> None:
  """Writes the counts, baselines and samples of the run."""
  data = job.run.data

  def write_json(name: str, content: Any) -> None:
    atomic_files.write_json(os.path.join(job.workdir, name), content)

  if data.evaluation:
    task = data.evaluation[0]
    config = os.path.join(job.workdir, 'config.gin')
    scores = results.baselines(
      found[data.train, 'train'][0],
      found[task, 'validation'][0],
      Vocabulary(os.path.join(job.workdir, 'vocabulary.model')),
      data.cache_dir or default_cache_dir(),
      f'python -m launch.train --gin_file={config} --workdir={job.workdir}',
    )
    content = {
      'task': task,
      'held_out': build.held_out_hashes(job.run, found)[task],
      'scores': [score.as_json() for score in scores],
    }
    write_json('baselines.json', content)
    for score in scores:
      _logger.info(
        f'{score.name} of the training split: {score.value:.4f} bits/char on'
        ' held-out documents'
      )
  write_json('samples.json', samples_of(job.run, job.workdir))
  _write_facts(job, spent)


def samples_of(run: Run, workdir: str) -> list[dict[str, str]]:
  """Writes samples after the run's prompts; returns {'prompt', 'text'} of each.

  There are no samples if the run has several processes, or if the model cannot
  write token by token.
  """
  if not run.prompts:
    return []
  if jax.process_count() > 1:
    _logger.info(
      'no samples: use launch.sample for a run with several processes.'
    )
    return []
  try:
    read = trained.read_back(run, trained.find(workdir))
    return results.samples(read, run.prompts)
  except ValueError as error:  # For example, if the router needs later tokens.
    _logger.info(f'no samples: {error}')
    return []
