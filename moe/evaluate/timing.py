"""Times programs in turn, so that other processes slow all of them alike."""

import json
import math
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from moe.evaluate import score
from moe.evaluate.score import Score

SPEED = re.compile(r'([\d.]+(?:e[+-]?\d+)?) tokens/s')


class Timed(NamedTuple):
  """A program that can be timed repeatedly.

  Attributes:
    name: name in the table.
    sample: runs the program and returns seconds.
    dropped: share of routed rows that are dropped; None if unknown.
  """

  name: str
  sample: Callable[[], float]
  dropped: float | None = None


def clock(function: Callable[[], Any], repeats: int = 1) -> Callable[[], float]:
  """Makes a function that measures the median seconds of `repeats` calls.

  A call lasts until its arrays are ready. Two calls come first, so that no
  sample includes compilation or the first allocation of memory.

  Args:
    function: returns arrays.
    repeats: calls per sample.
  """
  import jax  # Here, since a command imports this file before it sets up JAX.

  def call() -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start

  call(), call()
  return lambda: statistics.median(call() for _ in range(repeats))


def command(text: str, tokens: int) -> Callable[[], float]:
  """Makes a function that runs another program and returns seconds per step.

  Args:
    text: a shell command that prints 'N tokens/s'. If it prints several such
      numbers, the largest counts.
    tokens: tokens per step.
  """

  def call() -> float:
    done = subprocess.run(
      text, shell=True, capture_output=True, text=True, check=False
    )
    speeds = [float(s) for s in SPEED.findall(done.stdout)]
    if done.returncode or not speeds:
      said = (done.stderr.strip() or done.stdout.strip()).split('\n')[-1]
      raise ValueError(
        f"--against='{text}' must succeed and print 'N tokens/s', got exit"
        f' code {done.returncode} and: {said}'
      )
    return tokens / max(speeds)

  return call


def measure(
  programs: list[Timed],
  rounds: int,
  unit: str,
  tokens: int | None = None,
  is_speed: bool = False,
) -> dict[str, Any]:
  """Samples the programs in turn, and compares each with the first.

  Args:
    programs: the programs.
    rounds: samples of each program.
    unit: name of the work of one sample, such as 'training step'.
    tokens: tokens that a sample processes; None if it processes none.
    is_speed: whether ratios are of speeds instead of times.

  Returns:
    The report for `show`: `seconds`, `tokens_per_second` and `ratio` of the
    last program, and all programs under `runs`. A ratio is the median over
    rounds of the ratios within a round; `spread` has their quartiles.
    `interval` and `ratio_interval` are results of `median_interval`.
  """
  what = 'speed' if is_speed else 'time'
  samples = [[p.sample() for p in programs] for _ in range(rounds)]
  runs = []
  for i, program in enumerate(programs):
    own = [s[i] for s in samples]
    seconds = statistics.median(own)
    run = {'name': program.name, 'seconds': seconds}
    run['interval'] = median_interval(own)
    if tokens:
      run['tokens_per_second'] = tokens / seconds
    if i:
      ratios = [s[0] / s[i] if is_speed else s[i] / s[0] for s in samples]
      run['ratio'] = statistics.median(ratios)
      run['spread'] = _quartiles(ratios)
      run['ratio_interval'] = median_interval(ratios)
      run['ratio_of'] = f'{what} of {program.name} over {programs[0].name}'
    if program.dropped is not None:
      run['dropped'] = program.dropped
    runs.append(run)
  last = {k: v for k, v in runs[-1].items() if k not in ('name', 'dropped')}
  return {
    'unit': unit, 'rounds': rounds, 'is_speed': is_speed, **last, 'runs': runs
  }  # fmt: skip


def median_interval(values: list[float]) -> list[float] | None:
  """The 95% interval of a median; it assumes no distribution.

  The number of values below the median has a binomial distribution, which says
  which two of the sorted values are the ends (Thompson 1936,
  https://doi.org/10.1214/aoms/1177732563). Fewer than six values have no such
  interval; the result is then None.

  Args:
    values: samples that do not depend on each other.
  """
  n, below, outside = len(values), 0, 0.5 ** len(values)
  while outside <= 0.025:
    below += 1
    outside += math.comb(n, below) * 0.5**n
  ordered = sorted(values)
  return [ordered[below - 1], ordered[n - below]] if below else None


def _quartiles(values: list[float]) -> list[float]:
  if len(values) < 2:
    return [values[0], values[0]]
  low, _, high = statistics.quantiles(values, n=4, method='inclusive')
  return [low, high]


def scores_of(report: dict[str, Any], command: str = '') -> list[Score]:
  """The scores of a report.

  Args:
    report: as `measure` returns it. A report on one program may lack `runs`. A
      report of a compiler's estimates has no intervals and no `rounds`.
    command: the command that measures the same again.
  """
  n, found = report.get('rounds'), []

  def add(
    name: str,
    value: float,
    interval: list[float] | None,
    unit: str,
    is_higher_better: bool = False,
  ) -> None:
    low, high = interval or (None, None)
    found.append(
      Score(name, value, low, high, n, command, unit, is_higher_better)
    )

  for run in report.get('runs') or [{**report, 'name': report['unit']}]:
    interval = run.get('interval')
    add(run['name'], run['seconds'], interval, 'seconds')
    if 'tokens_per_second' in run:
      speed = run['tokens_per_second']
      tokens = speed * run['seconds']
      ends = interval and [tokens / end for end in reversed(interval)]
      add(run['name'], speed, ends, 'tokens/s', True)
    if 'ratio' in run:
      is_speed = report.get('is_speed', False)
      ends = run.get('ratio_interval')
      add(run['ratio_of'], run['ratio'], ends, 'times', is_speed)
    if 'dropped' in run:
      add(run['name'], run['dropped'], None, 'dropped share')
  return found


# `show` leaves out these keys. The table of scores has most of their values.
_IN_SCORES = frozenset((
  'runs', 'seconds', 'interval', 'tokens_per_second', 'ratio', 'spread',
  'ratio_interval', 'ratio_of', 'is_speed', 'rounds',
))  # fmt: skip


def show(report: dict[str, Any], as_json: bool, command: str = '') -> None:
  """Prints a report of `measure` as one JSON object or as a table of scores."""
  scores = scores_of(report, command)
  if as_json:
    print(json.dumps({**report, 'scores': [s.as_json() for s in scores]}))
    return
  print(score.as_table(scores))
  for key, value in report.items():
    if key in _IN_SCORES:
      continue
    if isinstance(value, list):
      print(f'{key}:')
      for row in value:
        print('  ' + '  '.join(f'{k} {v}' for k, v in row.items()))
    else:
      print(f'{key}: {value}')
