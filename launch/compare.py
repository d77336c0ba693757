"""Compares runs by seed: python -m launch.compare DIR... --against DIR...

  runs/sparse_0 runs/sparse_1 runs/sparse_2
  --against runs/dense_0 runs/dense_1 runs/dense_2 --output=compare.html

Prints held-out bits per character by tokens, and the mean gain with its
standard error.
"""

import argparse
import functools
import json
import pathlib
import sys
from collections.abc import Sequence

from launch import runtime

FIGURES = ('.html', '.png', '.svg')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Command-line flags."""
  parser = argparse.ArgumentParser(
    prog='python -m launch.compare',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add('runs', nargs='+', metavar='DIR', help='work directories, one a seed')
  add(
    '--against',
    nargs='+',
    required=True,
    metavar='DIR',
    help='work directories of the other kind, of the same seeds',
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


def _configured(path: pathlib.Path) -> tuple[int, tuple[str, ...]]:
  """Seed and tasks of a written configuration; imports nothing it names."""
  from launch.configs import bindings, gin_values

  written = bindings.read_written(path.read_text(encoding='utf-8'), str(path))

  def value(key, default):
    found = written.get(key, default)
    while isinstance(found, gin_values.Macro):
      found = written.get(found.name, default)
    return found

  seed = value('moe.train.trainer.Settings.seed', 0)
  return seed, (
    value('moe.runs.run.Data.train', ''),
    *value('moe.runs.run.Data.evaluation', ()),
  )


def compare(options: argparse.Namespace) -> int:
  """Prints the comparison."""
  from moe.report import comparison, comparison_page

  read = functools.partial(comparison.read_run, configured=_configured)
  compared = comparison.compare(
    [read(directory) for directory in options.runs],
    [read(directory) for directory in options.against],
  )
  if options.output:
    comparison_page.write(compared, pathlib.Path(options.output))
  if options.json:
    print(json.dumps(compared, ensure_ascii=False))
    return 0
  print(comparison_page.as_text(compared))
  if options.output:
    print(f'\ncurves: {options.output}')
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the comparison; 2 if there is none, with one sentence."""
  options = parse(argv)
  return runtime.run(lambda: compare(options))


if __name__ == '__main__':
  sys.exit(main())
