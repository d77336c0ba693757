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
from typing import Any

from launch import runtime
from launch.configs import flags
from launch.runtime import log


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


# Of the table: what, the key of its number, and how that is written.
_LINES = (
  ('step, s', 'step_seconds', '.2f'),
  ('tokens/s a chip', 'tokens_per_second_per_chip', ',.0f'),
  ('MFU, our counter', 'mfu', '.1%'),
)


def _table(rows: list[dict[str, Any]]) -> str:
  """Measured and predicted, each in columns of its own."""
  lines = []
  head = ('', 'measured', 'without overlap', 'full overlap', 'compiler')
  for row in rows:
    name = f'{row["name"]}, {row["chips"]} chips of {row["topology"]}'
    columns = [row['measured'], *row['predicted'].values()]
    cells = [
      head,
      *(
        (title, *(format(c[key], form) if c else 'none' for c in columns))
        for title, key, form in _LINES
      ),
    ]
    lines += [name, '']
    lines += [
      '  ' + '  '.join(f'{c:<16}' for c in line).rstrip() for line in cells
    ]
    lines += [
      '',
      f'  published: {row["tflops"]} TFLOP/s a chip, MFU {row["mfu"]:.1%}',
      f'  {row["source"]}',
      f'  ours: {row["gin_file"]}, bound by {row["bound"]}',
      '',
    ]
  lines.append(
    'Predicted is the plan of our program for the same model, chips, sequence'
    ' length\nand batch; measured is what MaxText took with its own.'
  )
  return '\n'.join(lines)


def calibrate(args: argparse.Namespace, overrides: list[str]) -> int:
  """Runs a verb."""
  from launch.configs import configuration
  from moe.planning import published
  from moe.scale import topology

  if args.verb == 'published':
    rows = []
    for row in published.PUBLISHED:
      log(f'compiling {row.name} for {row.topology}')
      rows.append(
        published.compared(row, configuration.load([row.gin_file], []))
      )
    print(json.dumps(rows, indent=2) if args.json else _table(rows))
    return 0
  run = configuration.load(args.gin_file, overrides)
  found = published.layer_seconds(run, topology.parse(args.topology))
  if args.json:
    print(json.dumps(found, indent=2))
    return 0
  seconds = found['compiler_seconds_per_layer']
  said = 'no seconds' if seconds is None else f'{seconds:.4f} s a layer'
  print(
    f'{said} by the compiler, {found["flops_per_layer"]:.3g} FLOP,'
    f' {found["temp_bytes_per_layer"] / 1e9:.2f} GB of temporaries'
  )
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Calibrates; 2 for what the user can mend, with one sentence on how."""
  args, overrides = parse(argv)
  # Nothing here runs on an accelerator: shapes, and a compiler.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  return runtime.run(lambda: calibrate(args, overrides))


if __name__ == '__main__':
  sys.exit(main())
