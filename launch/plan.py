r"""What a run costs, before a chip is rented: python -m launch.plan .

--gin_file=gin_configs/runs/poems_cpu.gin
    parameters, FLOPs, bytes, chip-hours and expected drops, by shapes alone
--gin_file=FILE --topology=v5p:8x16x16
    compiles the training step for those chips, on this machine, and says what
    each of them holds, sends and computes, and how long that takes
--gin_file=FILE --topology=v5p:8x8x8 --search
    proposes a mesh and what else it takes, and refuses what can't work

Topologies: v4, v5p and tpu7x in three dims, v5e and v6e in two. No TPU is
needed.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from launch import runtime
from launch.configs import flags
from launch.runtime import log

# Of a search: layouts shown, and of these compiled: until so many fit.
_SHOWN, _VERIFIED = 10, 2


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
  """Command-line flags, and what --gin. flags bind."""
  parser = argparse.ArgumentParser(
    prog='python -m launch.plan',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  flags.add_gin_flags(parser, default=[])
  add('--topology', metavar='SLICE', help='chips, such as v5p:8x16x16')
  add('--search', action='store_true', help='propose a mesh for the topology')
  add('--json', action='store_true', help='one JSON object on standard output')
  add('--html', metavar='FILE', help='write the plan as a page of its own')
  return flags.parse(parser, argv)


def searched(
  args: argparse.Namespace, overrides: list[str], run
) -> dict[str, Any]:
  """Forecasts for `--search`, the best of them compiled."""
  from launch.configs import configuration
  from moe.planning import plan as plan_lib
  from moe.planning import search
  from moe.scale import topology

  slice_ = topology.parse(args.topology)
  found, refused = search.search(run, slice_)
  rows = [vars(f) for f in found[:_SHOWN]]

  def compiled(changes: Sequence[str]) -> dict[str, Any]:
    log(f'compiling {" ".join(changes)}')
    again = configuration.load(args.gin_file, [*overrides, *changes])
    made = plan_lib.plan_topology(
      again, slice_, plan_lib.plan_shapes(again, slice_)
    )
    keys = ('peak_bytes', 'step_seconds_no_overlap', 'mfu_no_overlap')
    return {key: made[key] for key in keys}

  search.verify(rows, compiled, _VERIFIED, 2 * _VERIFIED)
  return {'fit': len(found), 'best': rows, 'refused': refused}


def plan(args: argparse.Namespace, overrides: list[str]) -> int:
  """Runs the command; 1 where the step does not fit."""
  from launch.configs import configuration
  from moe.planning import plan as plan_lib
  from moe.planning import report, search
  from moe.scale import compile as compile_lib
  from moe.scale import topology

  if args.search and not args.topology:
    raise ValueError('--search needs --topology=SLICE, such as v5p:8x8x8.')
  slice_ = topology.parse(args.topology) if args.topology else None
  run = configuration.load(args.gin_file, overrides)
  # A search is for the mesh: that of the run need not suit the slice.
  facts = plan_lib.plan_shapes(run, None if args.search else slice_)
  code = 0
  if args.search:
    facts |= {'topology': str(slice_), 'search': searched(args, overrides, run)}
  elif slice_:
    try:
      facts |= plan_lib.plan_topology(run, slice_, facts)
    except compile_lib.DoesNotFit as error:
      from launch import search

      facts |= {
        'topology': str(slice_),
        'hbm_bytes': slice_.chip.hbm_bytes // slice_.chip.devices,
        'does_not_fit': ' '.join(str(error).split()),
        'needed_bytes': error.needed,
        'knobs': search.knobs(run, slice_),
      }
      code = 1
  if args.html:
    with open(args.html, 'w', encoding='utf-8') as f:
      f.write(report.html(facts, ' '.join(args.gin_file + overrides)))
  print(json.dumps(facts, indent=2) if args.json else report.text(facts))
  return code


def main(argv: Sequence[str] | None = None) -> int:
  """Plans; 2 for what the user can mend, with one sentence on how."""
  args, overrides = parse(argv)
  # Nothing here runs on an accelerator: shapes, and a compiler.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  return runtime.run(lambda: plan(args, overrides))


if __name__ == '__main__':
  sys.exit(main())
