"""Restarts a command until done: python -m launch.supervise [FLAGS] -- COMMAND.

python -m launch.supervise -- python -m launch.train --gin_file=F --workdir=DIR

COMMAND runs again at once after exit code 75, and after a pause if it crashed,
was killed, lost another process or could not use its disk or bucket for a time.
It does not run again after exit code 0, after 2 (a mistake of the user), or
after three crashes at the same step. Kills, preemptions and failed disks do not
count as crashes. A COMMAND that stays stopped (SIGSTOP) is killed.
DIR/attempts.jsonl has a line for each attempt. The exit code is that of
COMMAND, or 1 if COMMAND keeps crashing.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from launch import runtime
from moe.runs import supervise


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
  """Parses the command line into (flags, words of the command after `--`)."""
  parser = runtime.parser(
    'supervise', __doc__, usage='%(prog)s [FLAGS] -- COMMAND'
  )
  add = parser.add_argument
  add('--workdir', metavar='DIR', help='default: --workdir of COMMAND')
  add('--log', metavar='FILE', help='default: DIR/attempts.jsonl')
  helps = {
    'crashes_per_hour': 'most crashes in an hour; after these it waits',
    'crashes_at_step': 'crashes at the same step after which it stops',
    'first_wait': 'seconds of the first wait; doubled while no step is gained',
    'longest_wait': 'most seconds to wait after a crash',
  }
  for field in dataclasses.fields(supervise.Limits):
    add(
      f'--{field.name}',
      type=field.type,
      default=field.default,
      metavar='N',
      help=f'{helps[field.name]}; default {field.default}',
    )
  argv = list(sys.argv[1:] if argv is None else argv)
  middle = argv.index('--') if '--' in argv else len(argv)
  options, command = parser.parse_args(argv[:middle]), argv[middle + 1 :]
  if not command:
    parser.error('-- COMMAND must follow the flags, for example: -- python -m')
  return options, command


def run(options: argparse.Namespace, command: list[str]) -> int:
  """Supervises the command; returns the exit code of `supervise.supervise`."""
  workdir, log = supervise.places(command, options.workdir, options.log)
  names = [field.name for field in dataclasses.fields(supervise.Limits)]
  limits = supervise.Limits(**{name: getattr(options, name) for name in names})
  return supervise.supervise(command, workdir, log, limits)


def main(argv: Sequence[str] | None = None) -> int:
  """Supervises a command; the exit code is 2 for a mistake of the user."""
  options, command = parse(argv)
  return runtime.run(lambda: run(options, command))


if __name__ == '__main__':
  sys.exit(main())
