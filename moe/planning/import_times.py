"""Measures how long each module of moe takes to import in a fresh process."""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys

from moe.evaluate import score

BASE = 'import jax, flax, optax'
TIMED = (
  'import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)'
)


def modules() -> list[str]:
  """The names of all modules of moe."""
  root = pathlib.Path(__file__).parents[2]
  paths = sorted((root / 'moe').rglob('*.py'))
  names = [p.relative_to(root).with_suffix('').as_posix() for p in paths]
  return [n.replace('/', '.') for n in names if not n.endswith('__init__')]


def seconds(statement: str) -> float:
  """Seconds that a statement takes in a fresh process."""
  command = [sys.executable, '-c', TIMED.format(statement)]
  done = subprocess.run(command, capture_output=True, check=True)
  return float(done.stdout)


def beyond(module: str) -> float:
  """Import time of a module in seconds, minus the time of `BASE`."""
  base = seconds(BASE)
  return seconds(f'import {module}') - base


def compare(args: argparse.Namespace, command: str) -> int:
  """Runs the command `imports`: times each module and prints a table.

  Args:
    args: parsed flags: modules, runs and json.
    command: the command line that repeats the measurement.

  Raises:
    ValueError: if a module does not exist, or --runs is less than 1.
  """
  if args.runs < 1:
    raise ValueError(f'--runs={args.runs} must be at least 1.')
  known = modules()
  if unknown := [name for name in args.modules if name not in known]:
    raise ValueError(
      f'{unknown[0]} must be a module of moe, such as {known[0]}.'
    )
  rows = {}
  for module in args.modules or known:
    rows[module] = statistics.median(beyond(module) for _ in range(args.runs))
    # Measuring all modules takes minutes, so each result is also printed at
    # once.
    print(f'{rows[module]:+7.2f} s  {module}', file=sys.stderr, flush=True)
  worst = max(rows, key=rows.get)
  scores = [
    score.Score(name, value, n=args.runs, command=command, unit='seconds')
    for name, value in rows.items()
  ]
  if args.json:
    listed = [one.as_json() for one in scores]
    print(json.dumps({'seconds': rows, 'worst': worst, 'scores': listed}))
  else:
    print(score.as_table(scores))
    print(f'worst: {worst}, {rows[worst]:+.2f} s beyond `{BASE}`')
  return 0
