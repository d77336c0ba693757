r"""Predicts what a run costs: python -m launch.plan FLAGS.

--gin_file=gin_configs/runs/poems_cpu.gin
    prints parameters, FLOPs, bytes, chip-hours and the expected share of
    dropped tokens, all computed from shapes
--gin_file=FILE --topology=v5p:8x16x16
    compiles the training step for those chips, on this machine, and says what
    each chip holds, sends and computes, and how long that takes
--gin_file=FILE --topology=v5p:8x16x16 --slices=2
    does the same for two slices, and says what crosses the network between the
    slices
--gin_file=FILE --topology=v5p:8x8x8 --search
    proposes a mesh for a language model, and says why others cannot work

A topology has three dims for v4, v5p and tpu7x, and two dims for v5e and v6e.
No TPU is needed.
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

folding_plan = Later('moe.planning.folding_plan')
plan = Later('moe.planning.plan')
report = Later('moe.planning.report')
search = Later('moe.planning.search')


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
  """Parses the command line into (flags, NAME=VALUE texts of --gin. flags)."""
  parser = runtime.parser('plan', __doc__)
  add = parser.add_argument
  flags.add_gin_flags(parser, default=[])
  add('--topology', metavar='SLICE', help='chips, such as v5p:8x16x16')
  add('--slices', type=int, default=1, metavar='N', help='number of slices')
  add('--search', action='store_true', help='propose a mesh for the topology')
  add('--json', action='store_true', help='one JSON object on standard output')
  add('--html', metavar='FILE', help='write the plan as a page, in one file')
  return flags.parse(parser, argv)


def show(args: argparse.Namespace, overrides: list[str]) -> int:
  """Prints the plan; the exit code is 1 if the step does not fit."""
  if args.search and not args.topology:
    raise ValueError('--search needs --topology=SLICE, such as v5p:8x8x8.')
  if args.slices > 1 and (args.search or not args.topology):
    raise ValueError('--slices needs --topology=SLICE, and no --search.')
  slice_ = topology.parse(args.topology, args.slices) if args.topology else None
  if args.slices > 1:
    overrides = [*overrides, f'NUM_SLICES={args.slices}']
  load = lambda more: configuration.load(args.gin_file, [*overrides, *more])
  if args.search:
    facts = search.propose(load([]), slice_, load)
  else:
    run, _, _, trains = configuration.read(args.gin_file, overrides)
    is_folding = trains == configuration.FOLDING_MODEL
    made = folding_plan.plan if is_folding else plan.plan
    facts = made(run if is_folding else load([]), slice_)
  if args.html:
    with open(args.html, 'w', encoding='utf-8') as f:
      f.write(report.html(facts, ' '.join(args.gin_file + overrides)))
  print(json.dumps(facts, indent=2) if args.json else report.text(facts))
  return 1 if 'does_not_fit' in facts else 0


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the plan; the exit code is 2 for an error that the user can fix."""
  # This command only computes shapes and compiles programs, so it needs no
  # accelerator. JAX reads the variable when it is imported.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  return runtime.run(lambda: show(*parse(argv)))


if __name__ == '__main__':
  sys.exit(main())
