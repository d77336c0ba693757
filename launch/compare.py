"""Compares runs by seed: python -m launch.compare DIR... --against DIR...

  runs/sparse_0 runs/sparse_1 runs/sparse_2
  --against runs/dense_0 runs/dense_1 runs/dense_2 --output=compare.html

Prints held-out bits per character for each number of training tokens, and the
mean gain with its standard error. A gain is the difference between two runs of
the same seed.
"""

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Sequence

from launch import runtime
from launch.configs import written
from launch.later import Later

comparison = Later('moe.report.comparison')
comparison_page = Later('moe.report.comparison_page')

FIGURES = ('.html', '.png', '.svg')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command-line flags."""
  parser = runtime.parser('compare', __doc__)
  add = parser.add_argument
  add('runs', nargs='+', metavar='DIR', help='work directories, one per seed')
  add(
    '--against',
    nargs='+',
    required=True,
    metavar='DIR',
    help='work directories of the runs to compare with, of the same seeds',
  )
  add('--json', action='store_true', help='print one JSON object')
  add(
    '--output',
    metavar='FILE',
    help='draw the curves: a page (.html) or a picture (.png, .svg)',
  )
  options = parser.parse_args(argv)
  suffix = pathlib.Path(options.output or 'x.html').suffix
  if suffix not in FIGURES:
    parser.error(
      f'--output={options.output} must end in one of {", ".join(FIGURES)}'
    )
  return options


def compare(options: argparse.Namespace, command: str) -> int:
  """Prints the comparison, and draws it if --output is given.

  Args:
    options: the parsed flags.
    command: the command line, which is shown beside the scores.
  """
  read = functools.partial(
    comparison.read_run, configured=written.seed_and_tasks
  )
  compared = comparison.compare(
    [read(directory) for directory in options.runs],
    [read(directory) for directory in options.against],
    command,
  )
  output, names = options.output, ''
  if output:
    names = comparison_page.write(compared, pathlib.Path(output))
  if options.json:
    print(json.dumps(compared, ensure_ascii=False))
    return 0
  print(comparison_page.as_text(compared))
  if output:
    print(f'\ncurves: {output}' + (f', where {names}' if names else ''))
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the comparison; the exit code is 2 if runs cannot be compared."""
  command = runtime.command_line('compare', argv)
  return runtime.run(lambda: compare(parse(argv), command))


if __name__ == '__main__':
  sys.exit(main())
