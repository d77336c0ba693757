"""Examines the machines of a run.

python -m launch.doctor --gin_file=FILE --workdir=DIR
    examines this host: versions, disk, the work directory, chips that another
    process holds, and whether the devices suit the mesh of FILE
python -m launch.doctor --hosts --gin_file=FILE --workdir=DIR
    does the same if it is started on every host at once. It also finds hosts
    that are missing after --patience seconds, and versions, clocks, token
    stores and vocabularies that differ between hosts.

Each finding is a line, the worst first. The exit code is 2 if a finding is BAD,
so that launch.supervise does not try again.
"""

import argparse
import sys
from collections.abc import Sequence

from launch import runtime
from launch.configs import configuration, flags
from launch.later import Later
from moe.data.cache_dir import default_cache_dir
from moe.parallel import processes

doctor = Later('moe.runs.doctor')


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
  """Parses the command line into (flags, NAME=VALUE texts of --gin. flags)."""
  parser = runtime.parser('doctor', __doc__)
  add = parser.add_argument
  flags.add_gin_flags(parser, default=[])
  add('--workdir', default='', metavar='DIR', help='where the run will write')
  add('--hosts', action='store_true', help='examine all hosts of the program')
  add(
    '--patience',
    type=float,
    default=45.0,
    metavar='SECONDS',
    help='how long --hosts waits for a host; default: 45',
  )
  return flags.parse(parser, argv)


def examine(args: argparse.Namespace, overrides: list[str]) -> int:
  """Prints the findings; the exit code is 2 if one of them is bad."""
  run = None
  if args.gin_file:
    run = configuration.read(args.gin_file, overrides).run
  cache_dir = (run and run.data.cache_dir) or default_cache_dir()
  request = doctor.Request(run, args.workdir, cache_dir, args.patience)
  found = doctor.visit(request, processes.initialize if args.hosts else None)
  for finding in found:
    print(finding)
  if found[0].grade != doctor.BAD:
    return 0
  processes.leave(runtime.EXIT_USER, str(found[0]))  # The others repeat it.
  return runtime.EXIT_USER


def main(argv: Sequence[str] | None = None) -> int:
  """Examines the machines; the exit code is 2 also for a mistake in a flag."""
  return runtime.run(lambda: examine(*parse(argv)))


if __name__ == '__main__':
  sys.exit(main())
