"""Restarts a command until done: python -m launch.supervise [FLAGS] -- COMMAND.

python -m launch.supervise -- python -m launch.train --gin_file=F --workdir=DIR

COMMAND runs again at once after exit code 75, and after a pause if it crashed.
It does not run again after exit code 0, after 2 (a mistake of the user), or
after three crashes at the same step. Kills and preemptions do not count as
crashes. DIR/attempts.jsonl has a line for each attempt. The exit code is that
of COMMAND, or 1 if COMMAND keeps crashing.
"""

import argparse
import dataclasses
import os
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
    'crashes_per_hour': 'more crashes than these wait for the hour to end',
    'crashes_at_step': 'so many crashes at the same step end it',
    'first_wait': 'seconds after a crash; doubled while nothing gets further',
    'longest_wait': 'seconds at most',
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
  """Supervises the command; the exit code is that of the last attempt."""
  workdir = options.workdir or supervise.workdir_of(command)
  if workdir is None:
    raise ValueError(
      'COMMAND must have --workdir=DIR, where its log tells how far it got: add'
      ' it, or give --workdir=DIR before the --.'
    )
  if '://' in workdir and not options.log:
    raise ValueError(
      f'--log=FILE must name a file on this host, since {workdir} is an object'
      ' store, to which nothing can be appended.'
    )
  names = [field.name for field in dataclasses.fields(supervise.Limits)]
  limits = supervise.Limits(**{name: getattr(options, name) for name in names})
  log = options.log or os.path.join(workdir, supervise.LOG)
  return supervise.supervise(command, workdir, log, limits)


def main(argv: Sequence[str] | None = None) -> int:
  """Supervises a command; the exit code is 2 for a mistake of the user."""
  options, command = parse(argv)
  return runtime.run(lambda: run(options, command))


if __name__ == '__main__':
  sys.exit(main())
