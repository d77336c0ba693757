"""Prints a table of models: python -m launch.models [--json] [NAME ...].

Each row is a language model of gin_configs/models. Without NAME the table has
all of them. A row has the number of parameters, the number of active parameters
(those that one token passes through), the published numbers from the comment of
the gin file, FLOPs per token, FLOPs of an update by Muon, and bytes of the
parameters. If the gin file says why our total differs from the published one,
the table repeats the reason. Our numbers come from shapes, so no array is made.
"""

import argparse
import json
import os
import pathlib
import sys
from collections.abc import Sequence

from launch import runtime
from launch.configs import configuration
from launch.later import Later

model_table = Later('moe.planning.model_table')

FOLDER = pathlib.Path(__file__).parents[1] / 'gin_configs' / 'models'
# A model file and these files together describe a run.
_REST = ['parallel/data.gin', 'tasks/builtin.gin', 'runs/train.gin']
# FLOPs are counted at this sequence length. FLOPs of attention depend on it.
LENGTH = 2048


def names() -> list[str]:
  """Names of all language models.

  Files that end in 'decoder' are left out, since they set no sizes. Trunk and
  folding models are left out, since they are no language models.
  """
  found = sorted(p.stem for p in FOLDER.glob('*.gin'))
  others = ('decoder', 'trunk', 'folding')
  return [
    name
    for name in found
    if not name.endswith(others) and not name.startswith(('fold_', 'esmfold'))
  ]


def loaded(name: str):
  """Loads a run with this model. The run's small corpus is never read.

  Raises:
    ValueError: if there is no such model.
  """
  if name not in names():
    raise ValueError(f"'{name}' must be one of {', '.join(names())}.")
  overrides = ['TRAIN_STEPS=200', 'LEARNING_RATE=1e-3']
  overrides += [f'SEQUENCE_LENGTH={LENGTH}']
  return configuration.load([f'models/{name}.gin', *_REST], overrides)


def show(args: argparse.Namespace) -> int:
  """Prints the models as a table or as JSON."""
  import rich.console  # Imported here, since it takes a tenth of a second.

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
  parser = runtime.parser('models', __doc__)
  parser.add_argument('names', nargs='*', metavar='NAME', help='default: all')
  parser.add_argument('--json', action='store_true', help='one JSON object')
  # Only shapes are computed, so JAX must not occupy an accelerator. It reads
  # this when it is imported.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  return runtime.run(lambda: show(parser.parse_args(argv)))


if __name__ == '__main__':
  sys.exit(main())
