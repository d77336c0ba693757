"""Times programs in turn, so that other load slows all of them alike."""

import json
import re
import statistics
import subprocess
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

SPEED = re.compile(r'([\d.]+(?:e[+-]?\d+)?) tokens/s')


class Timed(NamedTuple):
  """A program that can be timed repeatedly.

  Attributes:
    name: name in the table.
    sample: runs the program once and returns seconds.
    dropped: share of routed rows that are dropped; None if unknown.
  """

  name: str
  sample: Callable[[], float]
  dropped: float | None = None


def clock(function: Callable[[], Any], repeats: int = 1) -> Callable[[], float]:
  """A sample function: median seconds of a few calls until arrays are ready.

  Two calls come first, so that no sample compiles or allocates memory for the
  first time.

  Args:
    function: returns arrays.
    repeats: calls per sample.
  """

  def call() -> float:
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start

  call(), call()
  return lambda: statistics.median(call() for _ in range(repeats))


def command(text: str, tokens: int) -> Callable[[], float]:
  """A sample function: seconds per step of another program.

  Args:
    text: a shell command that prints 'N tokens/s'. If it prints several, the
      largest counts.
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
  """
  samples = [[p.sample() for p in programs] for _ in range(rounds)]
  runs = []
  for i, program in enumerate(programs):
    seconds = statistics.median(s[i] for s in samples)
    run = {'name': program.name, 'seconds': seconds}
    if tokens:
      run['tokens_per_second'] = tokens / seconds
    if i:
      ratios = [s[0] / s[i] if is_speed else s[i] / s[0] for s in samples]
      run['ratio'] = statistics.median(ratios)
      run['spread'] = _quartiles(ratios)
    if program.dropped is not None:
      run['dropped'] = program.dropped
    runs.append(run)
  last = {k: v for k, v in runs[-1].items() if k not in ('name', 'dropped')}
  what = 'speed' if is_speed else 'time'
  if len(runs) > 1:
    last['ratio_of'] = f'{what} of {runs[-1]["name"]} over {runs[0]["name"]}'
  return {'unit': unit, 'rounds': rounds, **last, 'runs': runs}


def _quartiles(values: list[float]) -> list[float]:
  if len(values) < 2:
    return [values[0], values[0]]
  low, _, high = statistics.quantiles(values, n=4, method='inclusive')
  return [low, high]


def show(report: dict[str, Any], as_json: bool) -> None:
  """Prints a report of `measure` as one JSON object or as a table."""
  if as_json:
    print(json.dumps(report))
    return
  if 'runs' in report:
    _table(report['runs'])
  if 'runs' in report and 'ratio' in report:
    print(f'ratio: {report["ratio_of"]}; spread: quartiles')
  in_table = ('runs', 'seconds', 'tokens_per_second', 'ratio', 'spread')
  for key, value in report.items():
    if 'runs' in report and key in (*in_table, 'ratio_of'):
      continue
    if isinstance(value, list):
      print(f'{key}:')
      for row in value:
        print('  ' + '  '.join(f'{k} {v}' for k, v in row.items()))
    else:
      print(f'{key}: {value}')


def _table(runs: list[dict[str, Any]]) -> None:
  print(
    f'{"":<34} {"seconds":>10} {"tokens/s":>10} {"ratio":>7}'
    f' {"spread":>15} {"dropped":>8}'
  )
  cell = lambda run, key, form: format(run[key], form) if key in run else '-'
  for run in runs:
    low_high = ' - '.join(f'{v:.3f}' for v in run.get('spread', ())) or '-'
    print(
      f'{run["name"]:<34} {run["seconds"]:>10.4g}'
      f' {cell(run, "tokens_per_second", ",.0f"):>10}'
      f' {cell(run, "ratio", ".3f"):>7} {low_high:>15}'
      f' {cell(run, "dropped", ".2%"):>8}'
    )
