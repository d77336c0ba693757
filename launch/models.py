"""Models as a table: python -m launch.models [--json] [NAME ...].

Lists the models of gin_configs/models, or those named: total parameters and
active ones (those that one token passes through), beside the published figures
in the file's comment; FLOPs per token; bytes of the parameters. If our total
differs from the published one by more than 1%, the table gives the reason that
the file states. All numbers come from shapes: no array is made.
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence

from launch import runtime
from launch.configs import configuration

FOLDER = pathlib.Path(__file__).parents[1] / 'gin_configs' / 'models'
# Files that turn a model into a run.
_REST = ['parallel/data.gin', 'tasks/builtin.gin', 'runs/train.gin']
# The sequence length of the FLOPs, which in attention grow with it.
LENGTH = 2048


def names() -> list[str]:
  """Names of all models; files that only wire a decoder are no models."""
  found = sorted(p.stem for p in FOLDER.glob('*.gin'))
  return [name for name in found if not name.endswith('decoder')]


def loaded(name: str):
  """A run with this model; its corpus does not matter.

  Raises:
    ValueError: if there is no such model.
  """
  if name not in names():
    raise ValueError(f"'{name}' must be one of {', '.join(names())}.")
  overrides = ['TRAIN_STEPS=200', 'LEARNING_RATE=1e-3']
  overrides += [f'SEQUENCE_LENGTH={LENGTH}']
  return configuration.load([f'models/{name}.gin', *_REST], overrides)


def show(args: argparse.Namespace) -> int:
  """Prints the table."""
  import rich.console  # Here, since it takes a tenth of a second.

  # Here, since JAX reads JAX_PLATFORMS when it is imported.
  from moe.planning import model_table

  rows = [
    model_table.table_row(FOLDER / f'{name}.gin', loaded(name))
    for name in args.names or names()
  ]
  rows.sort(key=lambda row: row['params_total'])
  if args.json:
    print(json.dumps({row['name']: row for row in rows}, indent=2))
    return 0
  rich.console.Console(width=120).print(model_table.table(rows))
  return 0


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the table; the exit code is 2 for an error that the user can fix."""
  parser = argparse.ArgumentParser(
    prog='python -m launch.models',
    description=__doc__,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument('names', nargs='*', metavar='NAME', help='default: all')
  parser.add_argument('--json', action='store_true', help='one JSON object')
  # Only shapes are computed, so the command neither waits for an accelerator
  # nor takes one.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  return runtime.run(lambda: show(parser.parse_args(argv)))


if __name__ == '__main__':
  sys.exit(main())
