"""Trained runs scored on documents: bits per character, alone or in pairs."""

import dataclasses
import logging
import math
import pathlib
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from moe.data.cache_dir import default_cache_dir
from moe.data.store import VOCABULARY, Store, file_sha256, find_stores
from moe.data.text_file import read_texts
from moe.evaluate import comparison, documents, likelihood, score
from moe.evaluate.likelihood import Context, Document
from moe.runs.run import TrainedRun

_logger = logging.getLogger(__name__)

# A batch holds so many unless its size is given.
TOKENS_PER_BATCH = 8192
_SECONDS_BETWEEN_LOGS = 10


@dataclasses.dataclass(frozen=True)
class Wanted:
  """What is scored, and how.

  Attributes:
    task: task or mixture, None where there is a text file.
    text_file: file with a document a line, None where there is a task.
    split: of the task.
    limit: only so many documents, the first ones; None for all.
    cache_dir: of token stores; '' for that of the run.
    sequence_length: tokens of the longest window; None for those of the run.
    stride: tokens that a window after the first one scores; None for half the
      sequence length.
    batch_size: windows of full length in a batch; None for what holds
      `TOKENS_PER_BATCH`. Rows are added until the devices have equally many.
    task_modules: modules that declare tasks, beside those of the run.
    command: what asks for all this, to be shown with the scores.
  """

  task: str | None = None
  text_file: str | None = None
  split: str = 'validation'
  limit: int | None = None
  cache_dir: str = ''
  sequence_length: int | None = None
  stride: int | None = None
  batch_size: int | None = None
  task_modules: Sequence[str] = ()
  command: str = ''


class _Job(NamedTuple):
  """A trained run, what it is to score, and in which windows."""

  trained: TrainedRun
  documents: list[Document]
  context: Context


def evaluate(
  checkpoints: Sequence[str],
  wanted: Wanted,
  load_run: Callable[[str], TrainedRun],
  prepare_stores: Callable[..., str],
) -> dict[str, Any]:
  """Scores a checkpoint, or two of them and their difference.

  Args:
    checkpoints: one or two directories that `load_run` reads.
    wanted: what is scored.
    load_run: reads a trained run back.
    prepare_stores: makes what is missing of token stores; has the arguments and
      the result of `tasks.stores.prepare`.

  Returns:
    Numbers and facts of the first checkpoint by name; where there are two,
    'compare' has those of the second one and the fields of `Comparison`.

  Raises:
    ValueError: if anything asked for is missing or does not fit, before the
      first document is scored.
  """
  texts = None
  if wanted.text_file:
    texts = read_texts(wanted.text_file)[: wanted.limit]
  jobs = []
  for checkpoint in checkpoints:
    trained = load_run(checkpoint)
    context = _context(trained, wanted)
    if texts is None:
      scored = _task_documents(trained, wanted, prepare_stores)
    else:
      scored = documents.text_documents(
        trained.vocabulary, texts, trained.functional.extras
      )
    jobs.append(_Job(trained, scored, context))
  chars, *other_chars = [[d.chars for d in job.documents] for job in jobs]
  if other_chars and other_chars != [chars]:
    raise ValueError(
      'both models must have scored the same documents, their token stores of '
      f'{wanted.task}/{wanted.split} differ: make them again with `python -m '
      'launch.data cache --overwrite`.'
    )
  scored = [_score(job, wanted.command) for job in jobs]
  nats, report = scored[0]
  if len(scored) == 1:
    return report
  other_nats, other = scored[1]
  compared = comparison.compare(nats, other_nats, chars)
  difference = score.Score(
    'difference',
    compared.difference,
    compared.low,
    compared.high,
    len(nats),
    wanted.command,
  )
  return {
    **report,
    'scores': [*report['scores'], difference.as_json()],
    'compare': {**other, **compared._asdict()},
  }


def _context(trained: TrainedRun, wanted: Wanted) -> Context:
  length = wanted.sequence_length or trained.run.data.sequence_length
  batch_size = wanted.batch_size or max(1, TOKENS_PER_BATCH // length)
  parts = trained.row_parts
  context = Context(
    length,
    wanted.stride or max(1, length // 2),
    math.ceil(batch_size / parts) * parts,
  )
  likelihood.check_context(context)
  return context


def _task_documents(
  trained: TrainedRun, wanted: Wanted, prepare_stores: Callable[..., str]
) -> list[Document]:
  """Documents of a split of a task or of a mixture's tasks, in order."""
  cache_dir = (
    wanted.cache_dir or trained.run.data.cache_dir or default_cache_dir()
  )
  directory = prepare_stores(
    [(wanted.task, [wanted.split])],
    cache_dir,
    _vocabulary_file(cache_dir, trained),
    task_modules=[*trained.run.data.task_modules, *wanted.task_modules],
    **_ranges(trained),
  )
  stores, _ = find_stores(directory, wanted.task, wanted.split)
  found = []
  for store in [Store(directory).hold() for directory in stores]:
    left = store.lengths.size
    if wanted.limit is not None:
      left = min(left, wanted.limit - len(found))
    records = store.read(range(left))
    found += [
      documents.record_document(
        trained.vocabulary, trained.ids, r, trained.functional.extras
      )
      for r in records
    ]
  return found


def _ranges(trained: TrainedRun) -> dict[str, dict[str, int]]:
  """The argument of `tasks.stores.prepare`; none where there is text alone."""
  ranges = dict(trained.run.data.ranges)
  return {'ranges': ranges} if ranges else {}


def _vocabulary_file(cache_dir: str, trained: TrainedRun) -> str:
  """The run's vocabulary, as the token stores know it if they do."""
  for path in sorted(pathlib.Path(cache_dir).glob(f'*/{VOCABULARY}')):
    if file_sha256(path) == trained.vocabulary.sha256:
      return str(path)
  return trained.vocabulary.path


def _score(job: _Job, command: str) -> tuple[np.ndarray, dict[str, Any]]:
  """(nats of each document, numbers and facts to report)."""
  trained, scored, context = job
  _logger.info(
    f'{trained.workdir}, step {trained.step}: {len(scored)} documents'
  )
  begin = time.monotonic()
  with jax.set_mesh(trained.mesh):
    nats = likelihood.score_documents(
      trained.functional,
      trained.params,
      trained.state,
      scored,
      context,
      _progress_log(),
    )
  _logger.info(f'scored in {time.monotonic() - begin:.1f} s')
  totals = likelihood.totals(scored, nats)
  scores = [
    comparison.of_documents(name, nats, np.array(sizes), command, unit)
    for name, sizes, unit in (
      ('bits_per_char', [d.chars for d in scored], score.BITS_PER_CHAR),
      ('bits_per_byte', [d.bytes for d in scored], score.BITS_PER_BYTE),
    )
  ]
  report = {
    **totals,
    'scores': [one.as_json() for one in scores],
    'checkpoint': trained.workdir,
    'step': trained.step,
    'sequence_length': context.length,
    'stride': context.stride,
  }
  if report['unknown_tokens']:
    _logger.info(
      f'{report["unknown_tokens"]} unknown tokens: what they hide is charged '
      'as spelt out, all code points alike'
    )
  return nats, report


def _progress_log() -> Callable[[int, int], None]:
  """A function that says from time to time how much is done."""
  last = time.monotonic()

  def on_progress(done: int, total: int) -> None:
    nonlocal last
    if time.monotonic() - last > _SECONDS_BETWEEN_LOGS:
      last = time.monotonic()
      _logger.info(f'{done} of {total} windows')

  return on_progress


def score_table(report: dict[str, Any]) -> str:
  """The scores of a report for people to read."""
  return score.as_table(
    [score.from_json(entries) for entries in report['scores']]
  )
