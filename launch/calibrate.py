r"""Our estimates beside what others measured: python -m launch.calibrate .

published
    the step times and MFU that `launch.plan` predicts for runs of which others
    published a measurement, beside that measurement; each run is a gin file
layer --gin_file=FILE --topology=v5p:2x2x2
    the compiler's seconds for one more layer, forward, backward and update: of
    the training step with two layers and no loop less that with one

No TPU is needed; what is compiled is kept and found again.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence

from launch import runtime
from launch.configs import flags
from moe.scale import topology


def parse(argv: Sequence[str] | None) -> tuple[argparse.Namespace, list[str]]:
  """Command-line flags, and what --gin. flags bind."""
  parser = argparse.ArgumentParser(
    prog='python -m launch.calibrate',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  verbs = parser.add_subparsers(dest='verb', required=True)
  published = verbs.add_parser('published', help='measured runs of others')
  layer = verbs.add_parser('layer', help="the compiler's seconds of a layer")
  flags.add_gin_flags(layer, required=True)
  layer.add_argument('--topology', required=True, metavar='SLICE')
  for verb in (published, layer):
    verb.add_argument('--json', action='store_true', help='one JSON object')
  return flags.parse(parser, argv)


def show(args: argparse.Namespace, overrides: list[str]) -> int:
  """Prints what a verb compares."""
  # Here, since --help needs no JAX, which reads JAX_PLATFORMS when imported.
  from launch.configs import configuration
  from moe.planning import published

  if args.verb == 'published':
    found = [
      published.compared(row, configuration.load([row.gin_file], []))
      for row in published.PUBLISHED
    ]
    text = published.text
  else:
    run = configuration.load(args.gin_file, overrides)
    found = published.layer_seconds(run, topology.parse(args.topology))
    text = published.layer_text
  print(json.dumps(found, indent=2) if args.json else text(found))
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Calibrates; 2 for what the user can mend, with one sentence on how."""
  # Nothing here runs on an accelerator: shapes, and a compiler.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  return runtime.run(lambda: show(*parse(argv)))


if __name__ == '__main__':
  sys.exit(main())
