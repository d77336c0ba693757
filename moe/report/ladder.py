"""Summarises a ladder: the gain of each model (arm) over the first model."""

import pathlib
import statistics
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from moe.report import comparison, corpora
from moe.report.comparison import RunRecord
from moe.runs.ladder import Finished
from moe.scale import joint_law
from moe.train import record_log

# A gain is 'shown' if it is larger than this many standard errors.
_ERRORS = 2.0


def summarise(
  found: Finished,
  read: Callable[[str], RunRecord],
  expansions: dict[str, float],
  command: str,
) -> dict[str, Any]:
  """Summarises a ladder as a JSON object.

  Args:
    found: learning rates and directories of the runs.
    read: work directory -> the record of its run.
    expansions: arm name -> its expansion, see `moe.runs.arms.expansion`.
    command: the command line that makes the summary again.

  Returns:
    'base': name of the first arm. Gains are differences from this arm.
    'arms': name -> facts of the model, learning rate, seconds of training.
    'rates': name -> learning rates of the sweep, as in `Finished.rates`.
    'missing': number of runs at the best rates that have not ended.
    'tasks': task -> {'tokens': training tokens at each evaluation, 'arms': name
      -> results}. The results of each arm have 'bits', the mean curve. The
      results of all arms except the first also have 'base_bits', the mean curve
      of the first arm over the same seeds, the gain, its standard error, the
      number of seeds, the gain that the law predicts, the tokens that the arm
      needs to reach the last of 'base_bits', and the tokens from which the gain
      is shown.
    'loads': name -> task -> share of the load [layer, expert] of each expert in
      the arm's first run. Dense arms are left out.
    'scores': scores and gains at the end of training.
  """
  runs = {
    name: [read(d) for d in dirs] for name, dirs in found.directories.items()
  }
  base, *others = runs
  compared = {name: _compare(runs, name, base, command) for name in others}
  summary = {
    'command': command,
    'base': base,
    'arms': {name: _facts(runs[name], found.best[name]) for name in runs},
    'rates': found.rates,
    'missing': found.missing,
    'tasks': {},
    'loads': {},
    'scores': _scores(compared),
  }
  for name in runs:
    if loads := _loads(runs[name][0].directory):
      summary['loads'][name] = loads
  for task, points in runs[base][0].curves.items():
    tokens = [at for at, _ in points]
    lines = [[bits for _, bits in run.curves[task]] for run in runs[base]]
    arms = {base: {'bits': _mean(lines)}}
    for name in others:
      gained = compared[name]['tasks'][task]
      base_bits = _mean(gained['against'])
      law = _law(
        expansions[base], expansions[name], runs[name][0], task, tokens
      )
      arms[name] = {
        'bits': _mean(gained['runs']),
        'base_bits': base_bits,
        'gain': gained['gain'],
        'standard_error': gained['standard_error'],
        'seeds': len(compared[name]['seeds']),
        'law_gain': law,
        'tokens_needed': tokens_needed(
          tokens, _mean(gained['runs']), base_bits[-1]
        ),
        'shown_from': shown_from(
          tokens, gained['gain'], gained['standard_error']
        ),
      }
    summary['tasks'][task] = {'tokens': tokens, 'arms': arms}
  return summary


def _compare(
  runs: dict[str, list[RunRecord]], name: str, base: str, command: str
) -> dict[str, Any]:
  """Compares an arm with the first arm, over the seeds that both have."""
  seeds = {run.seed for run in runs[name]} & {run.seed for run in runs[base]}
  sides = [[r for r in runs[of] if r.seed in seeds] for of in (name, base)]
  return comparison.compare(*sides, command, labels=(name, base))


def _scores(compared: dict[str, Any]) -> list[dict[str, Any]]:
  """Scores of all arms after the last step; the first arm's occur only once.

  The first arm's score is over the largest number of seeds.
  """
  found = {}
  for one in compared.values():
    label = one['runs']['label']
    for score in one['scores']:
      if score['name'].endswith(', gain'):
        score = {**score, 'name': f'{score["name"]} of {label}'}
      known = found.setdefault(score['name'], score)
      if score['n'] > known['n']:
        found[score['name']] = score
  return list(found.values())


def _facts(runs: Sequence[RunRecord], learning_rate: float) -> dict[str, Any]:
  return {
    **runs[0].counts,
    **runs[0].at_end,
    'learning_rate': learning_rate,
    'seeds': len(runs),
    'tokens': runs[0].tokens,
    'seconds': statistics.fmean(_seconds(run.directory) for run in runs),
  }


def _seconds(directory: str) -> float:
  """Seconds of training, without compilation and evaluation."""
  last = record_log.read(pathlib.Path(directory) / 'log.jsonl')[-1]
  return last['time']['elapsed']


def _mean(lines: Sequence[Sequence[float]]) -> list[float]:
  """The mean of several curves at each evaluation."""
  return [statistics.fmean(column) for column in zip(*lines, strict=True)]


def _law(
  base: float,
  expansion: float,
  run: RunRecord,
  task: str,
  tokens: Sequence[int],
) -> list[float] | None:
  """The gains that the joint law predicts, in bits per character.

  None if the first arm is sparse, or if the active parameters of `run` are not
  known.
  """
  active = run.counts['params_active']
  if base != 1 or active is None:
    return None
  # The law predicts nats per token. The last evaluation has both units, so it
  # gives the factor.
  scores = _last_evaluation(run.directory)[task]
  unit = scores['bits_per_char'] / scores['cross_entropy']
  return [unit * joint_law.gain(active, at, expansion) for at in tokens]


def tokens_needed(
  tokens: Sequence[int], bits: Sequence[float], level: float
) -> float | None:
  """Number of tokens at which a curve reaches a level; None if it never does.

  Between two evaluations the curve is taken as a straight line. Before the
  first evaluation the curve is unknown, so the result is never less than the
  tokens of the first evaluation.
  """
  if bits[0] <= level:
    return float(tokens[0])
  for i in range(1, len(bits)):
    if bits[i] <= level:
      return float(
        np.interp(-level, [-bits[i - 1], -bits[i]], tokens[i - 1 : i + 1])
      )
  return None


def shown_from(
  tokens: Sequence[int],
  gains: Sequence[float],
  errors: Sequence[float | None],
) -> int | None:
  """Number of tokens from which the gain stays above two standard errors.

  The result is None if the last gain is not above this limit, or if there is no
  standard error because there is only one seed.
  """
  first = None
  for at, gain, error in reversed(
    list(zip(tokens, gains, errors, strict=True))
  ):
    if error is None or gain <= _ERRORS * error:
      break
    first = at
  return first


def _loads(directory: str) -> dict[str, list[list[float]]]:
  """Task -> share of the load [layer, expert]; {} for a dense model."""
  shares = corpora.shares(_last_evaluation(directory))
  return {task: share.round(5).tolist() for task, share in shares.items()}


def _last_evaluation(directory: str) -> dict[str, Any]:
  """Returns task -> scores, from the last record of a run's eval.jsonl."""
  return record_log.read(pathlib.Path(directory) / 'eval.jsonl')[-1]['eval']
