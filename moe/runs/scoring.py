"""Scores one or two trained runs on documents, in bits per character."""

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
from moe.scale.quantities import counted

_logger = logging.getLogger(__name__)

# Tokens of a batch if the request gives no batch size.
TOKENS_PER_BATCH = 8192
_SECONDS_BETWEEN_LOGS = 10


@dataclasses.dataclass(frozen=True)
class ScoringRequest:
  """The documents to score, and the settings of scoring.

  Attributes:
    task: task or mixture; None if there is a text file.
    text_file: file with one document per line; None if there is a task.
    split: split of the task.
    limit: largest number of documents; None scores all. The first documents are
      scored.
    cache_dir: folder of token stores; '' takes the folder of the run.
    sequence_length: tokens of the longest window; None takes the sequence
      length of the run.
    stride: tokens that a window scores, except the first and the last window of
      a document; None takes half the sequence length.
    batch_size: windows of full length in a batch; None takes as many as have
      `TOKENS_PER_BATCH` tokens. The number is rounded up so that all devices
      have equally many rows.
    task_modules: modules that declare tasks, besides those of the run.
    command: the command that gives the same numbers again.
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


class _Scoring(NamedTuple):
  """A trained run, its documents to score, and the sizes of windows."""

  trained: TrainedRun
  documents: list[Document]
  context: Context


def evaluate(
  checkpoints: Sequence[str],
  wanted: ScoringRequest,
  load_run: Callable[[str], TrainedRun],
  prepare_stores: Callable[..., str],
) -> dict[str, Any]:
  """Scores one checkpoint, or two checkpoints and their difference.

  All arguments are checked before the first document is scored.

  Args:
    checkpoints: one or two directories for `load_run`.
    wanted: the request.
    load_run: reads a trained run from a directory.
    prepare_stores: makes missing token stores, with the arguments and the
      result of `launch.token_stores.prepare`.

  Returns:
    The report on the first checkpoint. With two checkpoints, its entry
    'compare' has the report on the second one and the fields of `Comparison`.

  Raises:
    ValueError: if a file or task is missing, if a setting does not fit, or if
      the two runs would score different documents.
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
    jobs.append(_Scoring(trained, scored, context))
  chars, *other_chars = [[d.chars for d in job.documents] for job in jobs]
  if other_chars and other_chars != [chars]:
    raise ValueError(
      'both models must score the same documents, but their token stores of '
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


def _context(trained: TrainedRun, wanted: ScoringRequest) -> Context:
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
  trained: TrainedRun,
  wanted: ScoringRequest,
  prepare_stores: Callable[..., str],
) -> list[Document]:
  """The documents of a split in order; for a mixture, task by task."""
  stores = task_stores(
    trained,
    wanted.task,
    wanted.split,
    prepare_stores,
    wanted.cache_dir,
    wanted.task_modules,
  )
  found = []
  for store in stores:
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


def task_stores(
  trained: TrainedRun,
  task: str,
  split: str,
  prepare_stores: Callable[..., str],
  cache_dir: str = '',
  task_modules: Sequence[str] = (),
) -> list[Store]:
  """Opens the token stores of a split, after making the missing ones.

  Args:
    trained: the run; its vocabulary makes the tokens.
    task: task or mixture.
    split: split of the task.
    prepare_stores: see `evaluate`.
    cache_dir: folder of token stores; '' takes the folder of the run.
    task_modules: modules that declare tasks, besides those of the run.
  """
  cache_dir = cache_dir or trained.run.data.cache_dir or default_cache_dir()
  directory = prepare_stores(
    [(task, [split])],
    cache_dir,
    _vocabulary_file(cache_dir, trained),
    task_modules=[*trained.run.data.task_modules, *task_modules],
    **_ranges(trained),
  )
  stores, _ = find_stores(directory, task, split)
  return [Store(directory).hold() for directory in stores]


def _ranges(trained: TrainedRun) -> dict[str, dict[str, int]]:
  """The argument `ranges` of `prepare_stores` by name; {} for text alone."""
  ranges = dict(trained.run.data.ranges)
  return {'ranges': ranges} if ranges else {}


def _vocabulary_file(cache_dir: str, trained: TrainedRun) -> str:
  """The run's vocabulary file; an equal file in the cache is preferred."""
  for path in sorted(pathlib.Path(cache_dir).glob(f'*/{VOCABULARY}')):
    if file_sha256(path) == trained.vocabulary.sha256:
      return str(path)
  return trained.vocabulary.path


def _score(job: _Scoring, command: str) -> tuple[np.ndarray, dict[str, Any]]:
  """Scores the documents; returns (nats of each document, the report)."""
  trained, scored, context = job
  _logger.info(
    f'{trained.workdir}, step {trained.step}:'
    f' {counted(len(scored), "document")}'
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
      f'{counted(report["unknown_tokens"], "unknown token")}: each hidden'
      ' character costs as much as one of all code points'
    )
  return nats, report


def _progress_log() -> Callable[[int, int], None]:
  """Makes a function that logs the progress every few seconds."""
  last = time.monotonic()

  def on_progress(done: int, total: int) -> None:
    nonlocal last
    if time.monotonic() - last > _SECONDS_BETWEEN_LOGS:
      last = time.monotonic()
      _logger.info(f'{done:,} of {counted(total, "window")}')

  return on_progress


def as_text(report: dict[str, Any]) -> str:
  """Formats a report; the second run of a comparison has a second column."""
  other = report.get('compare')
  reports = [report] if other is None else [report, other]
  lines = []
  for key in report:
    if key not in ('compare', 'scores'):
      cells = [
        f'{one[key]:,.4f}' if isinstance(one[key], float) else f'{one[key]}'
        for one in reports
      ]
      lines.append(f'{key:16} ' + '  '.join(f'{cell:>20}' for cell in cells))
  if other is not None:
    difference = f'difference of {other["difference"]:+.4f} bits per character'
    if other['low'] is None:
      lines.append(f'{difference}; one document gives no interval')
    else:
      lines.append(
        f'{difference}, {other["confidence"]:.0%} interval {other["low"]:+.4f} '
        f'to {other["high"]:+.4f} ({other["num_resamples"]:,} resamples of '
        f'{report["documents"]} documents); the first is better on '
        f'{other["share_better"]:.1%} of them'
      )
  scores = [score.from_json(entries) for entries in report['scores']]
  return '\n'.join([*lines, '', score.as_table(scores)])
