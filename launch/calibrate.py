r"""Checks our estimates, by measurements or by the compiler.

python -m launch.calibrate published
    compares the step times and MFU that `launch.plan` predicts with
    measurements that others published; each run is a gin file
python -m launch.calibrate layer --gin_file=FILE --topology=v5p:2x2x2
    prints the compiler's estimate of the seconds, FLOPs and temporary bytes
    that one more layer adds to a step. We compile steps with one and with two
    periods of layers, both without a loop over layers. The difference is
    divided by the number of layers in a period.

No TPU is needed. Compiled programs are stored and reused.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from launch import runtime
from launch.configs import configuration, flags
from launch.later import Later
from moe.scale import topology

published = Later('moe.planning.published')


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
  """Parses the command line into (flags, NAME=VALUE texts of --gin. flags)."""
  parser = runtime.parser('calibrate', __doc__)
  add_verb = flags.add_verbs(parser)
  runs = add_verb('published', 'runs that others measured')
  layer = add_verb('layer', 'seconds of a layer by the compiler')
  flags.add_gin_flags(layer, required=True)
  layer.add_argument('--topology', required=True, metavar='SLICE')
  for verb in (runs, layer):
    verb.add_argument('--json', action='store_true', help='one JSON object')
  return flags.parse(parser, argv)


def show(args: argparse.Namespace, overrides: list[str]) -> int:
  """Prints the result of the verb."""
  if args.verb == 'published':
    found = [
      published.compare(row, configuration.load([row.gin_file], []))
      for row in published.PUBLISHED_RUNS
    ]
    text = published.text
  else:
    run = configuration.load(args.gin_file, overrides)
    found = published.layer_seconds(run, topology.parse(args.topology))
    text = published.layer_text
  print(json.dumps(found, indent=2) if args.json else text(found))
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Runs a subcommand; the exit code is 2 for an error the user can fix."""
  # All subcommands only compute shapes and compile programs, so they need no
  # accelerator. JAX reads this when it is imported.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  return runtime.run(lambda: show(*parse(argv)))


if __name__ == '__main__':
  sys.exit(main())
