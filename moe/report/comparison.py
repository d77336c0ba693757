"""Compares two groups of runs, paired by seed: gain and standard error."""

import json
import math
import os
import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from scipy import special

from moe.evaluate.score import Score
from moe.train import record_log

# Keys that are compared: in run.json, and in the last records of log.jsonl.
COUNTS = (
  'params_total',
  'params_active',
  'flops_per_token_train',
  'flops_per_token_optimizer',
)
AT_END = ('dropped_fraction', 'load_imbalance')


class RunRecord(NamedTuple):
  """The contents of the files of one run.

  Attributes:
    directory: directory of the run.
    seed: seed of the run.
    tasks: the training task, then the evaluation tasks.
    tokens: number of training tokens.
    curves: task -> ((tokens, held-out bits per character), ...).
    held_out: task -> a hash of the scored documents for each point of its
      curve. The hash is None if an earlier version of this project wrote the
      file without it.
    counts: parameters and FLOPs; None if unknown.
    at_end: drop rate and imbalance, as means over the last tenth of the steps;
      None for a dense model.
  """

  directory: str
  seed: int
  tasks: tuple[str, ...]
  tokens: int
  curves: dict[str, tuple[tuple[int, float], ...]]
  held_out: dict[str, tuple[str | None, ...]]
  counts: dict[str, int | None]
  at_end: dict[str, float | None]


def read_run(
  directory: str,
  configured: Callable[[pathlib.Path], tuple[int, tuple[str, ...]]],
) -> RunRecord:
  """Reads a work directory.

  Args:
    directory: directory of a run.
    configured: a function that reads config.gin and returns the seed and
      `RunRecord.tasks`.

  Raises:
    ValueError: if a file is missing, or the run has no evaluation.
  """
  workdir = pathlib.Path(directory)
  for name in ('config.gin', 'log.jsonl'):
    if not (workdir / name).is_file():
      raise ValueError(
        f'{workdir / name} must exist: give the --workdir of a run that was'
        ' trained and evaluated.'
      )
  records = record_log.read(workdir / 'log.jsonl')
  tokens = {record['step']: record['tokens'] for record in records}
  seed, tasks = configured(workdir / 'config.gin')
  curves = {task: [] for task in tasks[1:]}
  held_out = {}
  for record in record_log.read(workdir / 'eval.jsonl'):
    for task, scores in record['eval'].items():
      point = tokens.get(record['step']), scores.get('bits_per_char')
      if None not in point:
        curves.setdefault(task, []).append(point)
        sha256 = record.get('held_out', {}).get(task)
        held_out.setdefault(task, []).append(sha256)
  if not any(curves.values()):
    raise ValueError(
      f'{workdir / "eval.jsonl"} must hold a held-out score, got none: set'
      ' EVAL_TASKS, or train the run up to its first evaluation.'
    )
  counts = {}
  if (workdir / 'run.json').is_file():
    counts = json.loads((workdir / 'run.json').read_text(encoding='utf-8'))
  last = records[-max(1, len(records) // 10) :]
  return RunRecord(
    directory,
    seed,
    tasks,
    max(tokens.values()),
    {task: tuple(points) for task, points in curves.items()},
    {task: tuple(hashes) for task, hashes in held_out.items()},
    {key: counts.get(key) for key in COUNTS},
    {key: _mean([r.get(key) for r in last]) for key in AT_END},
  )


def pair(
  runs: Sequence[RunRecord], others: Sequence[RunRecord]
) -> tuple[list[RunRecord], list[RunRecord]]:
  """Checks that two groups can be compared; returns both, sorted by seed.

  Raises:
    ValueError: if seeds, tasks, tokens, evaluations or held-out documents
      differ, or if one group has more than one model.
  """
  runs, others = (sorted(side, key=lambda r: r.seed) for side in (runs, others))
  seeds, other_seeds = ([r.seed for r in side] for side in (runs, others))
  for side in (seeds, other_seeds):
    if len(set(side)) != len(side):
      raise ValueError(
        f'the runs of one side must differ in seed, got seeds {_list(side)}:'
        ' give each seed once.'
      )
  if seeds != other_seeds:
    raise ValueError(
      f'both sides must have the same seeds, got {_list(seeds)} against'
      f' {_list(other_seeds)}: train the missing seeds with --gin.SEED=N, or'
      ' leave out runs whose seed the other side lacks.'
    )
  for other in (*runs[1:], *others):
    tasks = lambda run: run.tasks
    _check_same('train and evaluate on the same tasks', tasks, runs[0], other)
  # The seed determines the order of the rows. This changes the padding, and so
  # the number of tokens up to a step. So only the two runs with the same seed
  # must have equal numbers of tokens.
  for one, other in zip(runs, others, strict=True):
    tokens = lambda run: run.tokens
    _check_same('have seen the same number of tokens', tokens, one, other)
    _check_same('be evaluated at the same tokens', _eval_tokens, one, other)
  for other in runs[1:]:
    times = lambda run: len(_eval_tokens(run))
    _check_same('be evaluated equally often', times, runs[0], other)
  _check_held_out([*runs, *others])
  for side in (runs, others):
    for other in side[1:]:
      if other.counts != side[0].counts:
        raise ValueError(
          'all runs of one side must have the same model, got'
          f' {side[0].counts["params_total"]} parameters in'
          f' {side[0].directory} and {other.counts["params_total"]} in'
          f' {other.directory}: give the runs of one model on each side.'
        )
  return runs, others


def _check_same(
  what: str, of: Callable[[RunRecord], Any], one: RunRecord, other: RunRecord
) -> None:
  if of(one) != of(other):
    raise ValueError(
      f'all runs must {what}, got {_list(of(one))} in {one.directory} and'
      f' {_list(of(other))} in {other.directory}: finish the shorter run, or'
      ' compare runs of one configuration.'
    )


def _check_held_out(runs: Sequence[RunRecord]) -> None:
  """Raises ValueError unless all runs have scored the same documents.

  A run whose files have no hashes of the documents counts as equal.
  """
  first = {}
  for run in runs:
    for task, hashes in run.held_out.items():
      for i, sha256 in enumerate(hashes):
        known, one = first.setdefault((task, i), (sha256, run))
        if known is None:
          first[task, i] = sha256, run
        elif sha256 not in (None, known):
          at = run.curves[task][i][0]
          raise ValueError(
            f'all runs must be scored on the same held-out documents of {task},'
            f' got (SHA-256) {known[:12]} in {one.directory} and {sha256[:12]}'
            f' in {run.directory} after {at:,} tokens: score both with `python'
            ' -m launch.evaluate --compare`, or train one of them again.'
          )


def _eval_tokens(run: RunRecord) -> tuple[int, ...]:
  return tuple(sorted({at for line in run.curves.values() for at, _ in line}))


def compare(
  runs: Sequence[RunRecord],
  others: Sequence[RunRecord],
  command: str = '',
  labels: Sequence[str] = (),
) -> dict[str, Any]:
  """Compares two groups of runs; returns a JSON object.

  If the gain is positive, `runs` is better.

  Args:
    runs: the runs of the first group, one for each seed.
    others: the runs of the second group, with the same seeds.
    command: the command that makes the comparison again.
    labels: names of both groups; by default, what the names of their
      directories have in common.

  Raises:
    ValueError: if the groups cannot be compared, see `pair`.
  """
  runs, others = pair(runs, others)
  tasks = {}
  for task in runs[0].curves:
    bits, other_bits = (
      [[bits for _, bits in run.curves[task]] for run in side]
      for side in (runs, others)
    )
    gains = [
      [theirs - ours for ours, theirs in zip(*lines, strict=True)]
      for lines in zip(bits, other_bits, strict=True)
    ]
    tasks[task] = {
      'tokens': [at for at, _ in runs[0].curves[task]],
      'runs': bits,
      'against': other_bits,
      'gain': [_mean(column) for column in zip(*gains, strict=True)],
      'standard_error': [
        _standard_error(column) for column in zip(*gains, strict=True)
      ],
    }
  label, other_label = labels or _labels(runs, others)
  return {
    'runs': _side(label, runs),
    'against': _side(other_label, others),
    'seeds': [run.seed for run in runs],
    'tokens': runs[0].tokens,
    'tasks': tasks,
    'scores': [
      score.as_json()
      for task, found in tasks.items()
      for score in _scores(task, found, (label, other_label), command)
    ],
  }


def _scores(
  task: str, found: dict[str, Any], labels: Sequence[str], command: str
) -> list[Score]:
  """Scores of both groups and the gain at the end, as means over seeds."""
  columns = zip(found['runs'], found['against'], strict=True)
  pairs = [(ours[-1], theirs[-1]) for ours, theirs in columns]
  sides = zip(*pairs, strict=True)
  scores = [
    _over_seeds(f'{task}, {label}', bits, command)
    for label, bits in zip(labels, sides, strict=True)
  ]
  gains = [theirs - ours for ours, theirs in pairs]
  return [*scores, _over_seeds(f'{task}, gain', gains, command, True)]


def _over_seeds(
  name: str, bits: Sequence[float], command: str, is_higher_better: bool = False
) -> Score:
  """A mean over seeds, with the interval of Student's t distribution."""
  mean, error, ends = statistics.fmean(bits), _standard_error(bits), ()
  if error is not None:
    margin = float(special.stdtrit(len(bits) - 1, 0.975)) * error
    ends = mean - margin, mean + margin
  low, high = ends or (None, None)
  return Score(
    name, mean, low, high, len(bits), command, is_higher_better=is_higher_better
  )


def _side(label: str, runs: Sequence[RunRecord]) -> dict[str, Any]:
  return {
    'label': label,
    'directories': [run.directory for run in runs],
    **runs[0].counts,
    **{key: _mean([run.at_end[key] for run in runs]) for key in AT_END},
  }


def _labels(*sides: Sequence[RunRecord]) -> list[str]:
  """A name for each group: the common prefix of its directories, if any."""
  labels = []
  for side in sides:
    names = [os.path.basename(os.path.abspath(r.directory)) for r in side]
    labels.append(os.path.commonprefix(names).rstrip('0123456789').rstrip('_-'))
  if not all(labels) or labels[0] == labels[1]:
    return ['these', 'others']
  return labels


def _mean(numbers: Sequence[float | None]) -> float | None:
  numbers = [number for number in numbers if number is not None]
  return statistics.fmean(numbers) if numbers else None


def _standard_error(numbers: Sequence[float]) -> float | None:
  """Standard error of the mean; None for one number, which has no variance."""
  if len(numbers) < 2:
    return None
  return statistics.stdev(numbers) / math.sqrt(len(numbers))


def _list(numbers: int | Sequence) -> str:
  """Joins numbers or names for a sentence."""
  if isinstance(numbers, int):
    return f'{numbers:,}'
  return ', '.join(f'{n:,}' if isinstance(n, int) else str(n) for n in numbers)
