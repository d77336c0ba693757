"""One attempt at a training run: lock, checkpoints, files and loop.

A run of every kind is trained here, whether it makes a language model, an image
tokenizer or a folding model. The kinds differ in their data, in the state of a
new run and in their results.
"""

import contextlib
import dataclasses
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import jax

from moe import atomic_files, failpoints
from moe.checkpoint import listing
from moe.checkpoint.save import Checkpointer
from moe.data import skips
from moe.runs import bucket, build, lock, preflight
from moe.scale import compile as compile_lib
from moe.train import goodput, progress, record_log, state, trainer
from moe.train.evaluation import Evaluation
from moe.train.program import Program
from moe.train.watchdog import Watchdog

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Attempt:
  """What is trained, and where.

  Attributes:
    settings: settings of the training loop.
    program: jitted functions of the run.
    workdir: directory of all files of the run.
    texts: files to write, text by file name. The text of 'config.gin' is also
      saved with every checkpoint.
    counts: numbers about the model for run.json.
    unit_seconds: seconds per unit of the objective at the published peak of all
      devices; None if no peak is known.
    compiled: file of a step that was compiled ahead of time; None compiles now.
    begin: time at which the command started, by `time.monotonic`; None takes
      the present time.
  """

  settings: trainer.Settings
  program: Program
  workdir: str
  texts: Mapping[str, str]
  counts: Mapping[str, int] = dataclasses.field(default_factory=dict)
  unit_seconds: float | None = None
  compiled: str | None = None
  begin: float | None = None


class Reader(trainer.TrainingData, Protocol):
  """Reads the training batches of a run.

  Attributes:
    manifest_hash: SHA-256 of the data.
    skips: batches that are left out.
    bytes_read: bytes of the records that this host has read.
  """

  manifest_hash: str
  skips: skips.Skips
  bytes_read: int


class Opened(NamedTuple):
  """The data of a run, its state before the first step, and its results.

  Attributes:
    reader: the training data.
    evaluations: evaluations by name; the first one ranks checkpoints.
    meta: what a checkpoint records about the data. `preflight.check_saved` says
      which of these values a resumed run must have, too.
    start: makes the state of a new run.
    write_results: writes files after the last step, in the first process.
    write_samples: writes samples after the last step, with all processes.
  """

  reader: Reader
  evaluations: dict[str, Evaluation]
  meta: dict[str, Any]
  start: Callable[[], state.TrainState]
  write_results: Callable[[], None]
  write_samples: Callable[[], None] = lambda: None


def train(
  attempt: Attempt,
  open_data: Callable[[], Opened],
  write_report: Callable[[], None] = lambda: None,
) -> int:
  """Trains a run to its end, or resumes it from its work directory.

  Args:
    attempt: what is trained, and where.
    open_data: opens the data, and makes stores that are missing.
    write_report: writes a page after the results, in the first process.

  Returns:
    The exit code: 0 at the end, 75 after a signal to stop.

  Raises:
    ValueError: if the disk is too small, data or checkpoints do not fit the
      run, or another run uses the work directory.
  """
  begin = time.monotonic() if attempt.begin is None else attempt.begin
  failpoints.reach('run.start')
  workdir, is_first = attempt.workdir, jax.process_index() == 0
  settings, score = attempt.settings, attempt.program.objective.score
  steps_dir, mirror = listing.steps_dir(workdir), bucket.Mirror(workdir)
  with lock.held(mirror.place) as check_held, contextlib.ExitStack() as stack:
    if is_first:
      atomic_files.sweep(workdir)
    spent = goodput.Goodput(workdir if is_first else None, begin)
    stack.enter_context(contextlib.closing(spent))
    preflight.check_disk(attempt.program, steps_dir)
    checkpointer = Checkpointer(
      steps_dir,
      settings.keep_last,
      settings.keep_best,
      score.name,
      score.is_higher_better,
      check_held,
      mirror.send,
    )
    with _watched(attempt, 'restoring'):
      ts, saved = build.resumed_state(attempt.program, checkpointer)
    opened = open_data()
    opened.reader.skips = skips.read(workdir)
    meta = _meta(attempt, opened)
    if ts is None:
      with _watched(attempt, 'restoring'):
        ts = opened.start()
    else:
      _check_resumed(saved, meta, opened.reader.skips, int(ts.step), workdir)
    if is_first:
      for name, text in attempt.texts.items():
        atomic_files.write_file(os.path.join(workdir, name), text)
    code = _train(attempt, opened, checkpointer, meta, ts, spent, begin)
    if code == 0:
      with spent.spent('reporting'):
        opened.write_samples()
    # The other results need one process.
    if code == 0 and is_first:
      with spent.spent('reporting'):
        opened.write_results()
        _write_facts(attempt, spent)
        write_report()
      _write_facts(attempt, spent)
    mirror.send()
  return code


@contextlib.contextmanager
def _watched(attempt: Attempt, doing: str) -> Iterator[None]:
  """Ends the process if the block lasts longer than HANG_SECONDS.

  Args:
    attempt: what is trained.
    doing: what the block does, see `Watchdog.sees`.
  """
  with Watchdog(attempt.settings.hang_seconds, attempt.workdir) as watchdog:
    watchdog.sees(doing)
    yield


def _meta(attempt: Attempt, opened: Opened) -> dict[str, Any]:
  """The metadata that every checkpoint saves together with the arrays."""
  left_out = opened.reader.skips.ranges
  return {
    **({'skipped_batches': left_out} if left_out else {}),
    **opened.meta,
    'manifest_hash': opened.reader.manifest_hash,
    'mesh': dict(attempt.program.mesh.shape),
    'config': attempt.texts['config.gin'],
  }


def _check_resumed(
  saved: dict[str, Any],
  meta: dict[str, Any],
  left_out: skips.Skips,
  step: int,
  workdir: str,
) -> None:
  """Raises ValueError unless the data are those of the restored checkpoint."""
  preflight.check_saved(saved, meta, workdir)
  before = saved.get('skipped_batches', ())
  skips.check_resumed(left_out, before, step, workdir)
  preflight.warn_of_held_out(saved, meta.get('held_out', {}), workdir)


def _train(
  attempt: Attempt,
  opened: Opened,
  checkpointer: Checkpointer,
  meta: dict[str, Any],
  ts: state.TrainState,
  spent: goodput.Goodput,
  begin: float,
) -> int:
  """Compiles the step, and runs the loop; returns the exit code."""
  settings, program, reader = attempt.settings, attempt.program, opened.reader
  with spent.spent('compiling'), _watched(attempt, 'compiling'):
    failpoints.reach('run.compile')
    _compile(attempt, int(ts.step), begin)
  spent.lose(_lost_seconds(attempt.workdir, int(ts.step)))
  # `Progress` removes the lost steps from the log. So their time, which the log
  # gives, is saved first.
  spent.write()
  shown = progress.Progress(
    attempt.workdir,
    program.objective,
    settings.train_steps,
    int(ts.step),
    attempt.unit_seconds,
    settings.drop_warning,
    goodput=spent,
  )
  # The log now ends at the restored step, so these skips are those of all its
  # steps.
  if jax.process_index() == 0:
    skips.record_use(attempt.workdir, reader.skips)
  with (
    contextlib.closing(shown),
    contextlib.closing(checkpointer),
    spent.spent('productive'),
  ):
    _, code = trainer.train(
      settings,
      program,
      reader,
      opened.evaluations,
      checkpointer,
      shown,
      meta,
      ts,
    )
  if jax.process_count() > 1:
    _logger.info(
      f'process {jax.process_index()} of {jax.process_count()} read'
      f' {reader.bytes_read:,} bytes of training records'
    )
  return code


def _compile(attempt: Attempt, step: int, begin: float) -> None:
  """Compiles the step or reads it from a file; logs that the run is ready."""
  begin_compile = time.monotonic()
  program, shapes = attempt.program, attempt.program.batch_shapes
  if attempt.compiled:
    compiled = compile_lib.load(program, shapes, attempt.compiled)
    program.train_step.use(compiled)
  else:
    program.train_step.compile(program.abstract, shapes)
  now = time.monotonic()
  size = f'{state.count(program.abstract.params):,} parameters'
  if 'params_active' in attempt.counts:
    size += f', {attempt.counts["params_active"]:,} active'
  _logger.info(
    f'{size}, on {program.mesh.size} x'
    f' {program.mesh.devices.flat[0].device_kind};'
    f' compiled in {now - begin_compile:.1f} s, ready after'
    f' {now - begin:.1f} s;'
    f' step {step:,} of {attempt.settings.train_steps:,}'
  )


def _lost_seconds(workdir: str, step: int) -> float:
  """The seconds of the logged steps after the restored step."""
  records = record_log.newest_first(os.path.join(workdir, 'log.jsonl'))
  lost = itertools.takewhile(lambda record: record['step'] > step, records)
  return sum(record['time']['seconds'] for record in lost)


def _write_facts(attempt: Attempt, spent: goodput.Goodput) -> None:
  """Writes run.json and the goodput file."""
  spent.write()
  facts = {**attempt.counts, 'goodput': spent.summary()}
  atomic_files.write_json(os.path.join(attempt.workdir, 'run.json'), facts)
