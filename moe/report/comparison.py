"""Compares two groups of runs, paired by seed."""

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

# A comparison shows these keys: `COUNTS` from run.json, and `AT_END` from the
# last records of log.jsonl.
COUNTS = (
  'params_total',
  'params_active',
  'flops_per_token_train',
  'flops_per_token_optimizer',
)
AT_END = ('dropped_fraction', 'load_imbalance')


class RunRecord(NamedTuple):
  """What the files of a run say.

  Attributes:
    directory: directory of the run.
    seed: seed of the run.
    tasks: the training task, then the evaluation tasks.
    tokens: number of training tokens.
    curves: task -> ((tokens, held-out bits per character), ...).
    held_out: task -> a hash of the scored documents for each point of the
      curve. The hash is None in files of earlier versions of this project.
    counts: parameters and FLOPs; None if unknown.
    at_end: drop rate and load imbalance, averaged over the last tenth of the
      logged steps; None for a dense model.
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
    configured: path of config.gin -> (seed, `RunRecord.tasks`).

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
  """Checks that two groups can be compared; returns both, each sorted by seed.

  Raises:
    ValueError: if seeds, tasks, tokens, evaluations or held-out documents
      differ, or if one group has a seed twice or more than one model.
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
  # The order of the rows depends on the seed, and so do the padding and the
  # number of tokens at a step. So only runs with the same seed must have equal
  # numbers of tokens.
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

  Evaluations without a hash of the documents are not checked.
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

  A positive gain means that `runs` is better.

  Args:
    runs: the runs of the first group, one for each seed.
    others: the runs of the second group, with the same seeds.
    command: the command line that repeats the comparison.
    labels: names of both groups; by default, the common prefix of the names of
      each group's directories.

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
  """Mean scores of both groups, and mean gain, after the last step."""
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
  """The mean over seeds, with a 95% interval by Student's t distribution."""
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
  """Names each group by the common prefix of its directories, if possible."""
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
  """Standard error of the mean; None for a single number."""
  if len(numbers) < 2:
    return None
  return statistics.stdev(numbers) / math.sqrt(len(numbers))


def _list(numbers: int | Sequence) -> str:
  """Joins numbers or names with commas, for a message."""
  if isinstance(numbers, int):
    return f'{numbers:,}'
  return ', '.join(f'{n:,}' if isinstance(n, int) else str(n) for n in numbers)
