"""Writes a page about a run: python -m launch.report DIR [--output=FILE].

The page is one HTML file with figures, samples and the configuration.
"""

import argparse
import sys
from collections.abc import Sequence

from launch import runtime
from launch.later import Later

run_page = Later('moe.report.run_page')


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Parses the command-line flags."""
  parser = runtime.parser('report', __doc__.splitlines()[0])
  parser.add_argument('directory', metavar='DIR', help='directory of a run')
  parser.add_argument('--output', help='default: DIR/report.html')
  return parser.parse_args(argv)


def write(options: argparse.Namespace) -> int:
  """Writes the page, and prints its path."""
  print(run_page.write_report(options.directory, options.output))
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the page; the exit code is 2 for an error that the user can fix."""
  return runtime.run(lambda: write(parse(argv)))


if __name__ == '__main__':
  sys.exit(main())
