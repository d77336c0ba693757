"""A page about a run: python -m launch.report DIR [--output=FILE].

Figures, style, samples and configuration are all inside the file.
"""

import argparse
import sys
from collections.abc import Sequence

from launch import runtime


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
  """Command-line flags."""
  parser = argparse.ArgumentParser(
    prog='python -m launch.report', description=__doc__.splitlines()[0]
  )
  parser.add_argument('directory', metavar='DIR', help='directory of a run')
  parser.add_argument('--output', help='default: DIR/report.html')
  return parser.parse_args(argv)


def write(options: argparse.Namespace) -> int:
  """Writes the page and prints its path."""
  # Figures and templates take seconds to import; --help answers at once.
  from moe.report import run_page

  print(run_page.write_report(options.directory, options.output))
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Writes the page; 2 if there is none, with one sentence that says why."""
  return runtime.run(lambda: write(parse(argv)))


if __name__ == '__main__':
  sys.exit(main())
