"""Measures the project: python -m launch.bench imports.

imports   seconds that each module of moe takes beyond jax, flax and optax
"""

import argparse
import json
import pathlib
import statistics
import subprocess
import sys
from collections.abc import Sequence

BASE = 'import jax, flax, optax'
TIMED = (
  'import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)'
)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Command-line flags."""
  parser = argparse.ArgumentParser(
    prog='python -m launch.bench',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')
  imports = verbs.add_parser('imports', help='seconds to import each module')
  imports.add_argument(
    '--runs', type=int, default=3, help='fresh processes each; default: 3'
  )
  imports.add_argument('--json', action='store_true', help='one JSON object')
  return parser.parse_args(argv)


def modules() -> list[str]:
  """Every module of moe."""
  root = pathlib.Path(__file__).parents[1]
  paths = sorted((root / 'moe').rglob('*.py'))
  names = [p.relative_to(root).with_suffix('').as_posix() for p in paths]
  return [n.replace('/', '.') for n in names if not n.endswith('__init__')]


def seconds(statement: str, runs: int) -> float:
  """Median over fresh processes, of the statement alone."""
  command = [sys.executable, '-c', TIMED.format(statement)]
  return statistics.median(
    float(subprocess.run(command, capture_output=True, check=True).stdout)
    for _ in range(runs)
  )


def imports(args: argparse.Namespace) -> int:
  """The verb `imports`: each module right after the base it is held to."""
  rows = {}
  for module in modules():
    base = seconds(BASE, args.runs)
    rows[module] = seconds(f'import {module}', args.runs) - base
    if not args.json:
      print(f'{rows[module]:+7.2f} s  {module}', flush=True)
  worst = max(rows, key=rows.get)
  if args.json:
    print(json.dumps({'seconds': rows, 'worst': worst}))
  else:
    print(f'worst: {worst}, {rows[worst]:+.2f} s beyond `{BASE}`')
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a verb."""
  return {'imports': imports}[parse(argv).verb](parse(argv))


if __name__ == '__main__':
  sys.exit(main())
