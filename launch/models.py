"""Models as a table: python -m launch.models [--json] [NAME ...].

Each model of gin_configs/models, or those named: parameters in all and those
that one token passes through, beside the published figures of the file's
comment; FLOPs of a token; bytes of the parameters. Where ours and the published
total differ by more than 1%, the file says why, and so does the table. By
shapes alone: no array is made.
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence

from launch import runtime

FOLDER = pathlib.Path(__file__).parents[1] / 'gin_configs' / 'models'
# Completes a model to a run.
_REST = ['parallel/data.gin', 'tasks/builtin.gin', 'runs/train.gin']
# T of the FLOPs: attention grows with it.
LENGTH = 2048


def names() -> list[str]:
  """Models with sizes; the files they include for wiring have none."""
  found = sorted(p.stem for p in FOLDER.glob('*.gin'))
  return [name for name in found if not name.endswith('decoder')]


def loaded(name: str):
  """A run with a model.

  Raises:
    ValueError: if there is no such model.
  """
  # Here, since --help needs no JAX, which reads JAX_PLATFORMS when imported.
  from launch.configs import configuration

  if name not in names():
    raise ValueError(f"'{name}' must be one of {', '.join(names())}.")
  overrides = ['TRAIN_STEPS=200', 'LEARNING_RATE=1e-3']
  overrides += [f'SEQUENCE_LENGTH={LENGTH}']
  return configuration.load([f'models/{name}.gin', *_REST], overrides)


def show(args: argparse.Namespace) -> int:
  """Prints the table."""
  import rich.console  # takes a tenth of a second

  # Here, for the same reason.
  from moe.planning import model_table

  rows = [
    model_table.describe(FOLDER / f'{name}.gin', loaded(name))
    for name in args.names or names()
  ]
  rows.sort(key=lambda row: row['params_total'])
  if args.json:
    print(json.dumps({row['name']: row for row in rows}, indent=2))
    return 0
  rich.console.Console(width=120).print(model_table.table(rows))
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Command-line entry point."""
  parser = argparse.ArgumentParser(
    prog='python -m launch.models',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('names', nargs='*', metavar='NAME', help='default: all')
  parser.add_argument('--json', action='store_true', help='one JSON object')
  # Shapes alone: no accelerator is to be waited for, or taken.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  return runtime.run(lambda: show(parser.parse_args(argv)))


if __name__ == '__main__':
  sys.exit(main())
