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
import re
import sys
from collections.abc import Sequence
from typing import NamedTuple

from launch import runtime

FOLDER = pathlib.Path(__file__).parents[1] / 'gin_configs' / 'models'
# Completes a model to a run.
_REST = ['parallel/data.gin', 'tasks/builtin.gin', 'runs/train.gin']
# T of the FLOPs: attention grows with it.
LENGTH = 2048
_UNITS = {'M': 10**6, 'B': 10**9, 'T': 10**12}
_PUBLISHED = re.compile(
  r'^# Published: (\d[\d.]*[MBT]) total(?:, (\d[\d.]*[MBT]) active)?\.$',
  re.MULTILINE,
)
# A sentence of the comment, over as many lines as it takes.
_WHY = re.compile(r'^# Difference: ((?:.*[^.]\n# )*.*\.)$', re.MULTILINE)


class Published(NamedTuple):
  """Figures of a paper as it writes them, such as '1.2T'; None: not given.

  Attributes:
    total: parameters.
    active: of these, what one token passes through.
    why: ours has another total; None where it has not.
  """

  total: str | None
  active: str | None
  why: str | None


def names() -> list[str]:
  """Models with sizes; the files they include for wiring have none."""
  found = sorted(p.stem for p in FOLDER.glob('*.gin'))
  return [name for name in found if not name.endswith('decoder')]


def published(name: str) -> Published:
  """What the comment of a model's file says was published.

  Raises:
    ValueError: if a line begins with it and goes on otherwise.
  """
  text = (FOLDER / f'{name}.gin').read_text(encoding='utf-8')
  found = _PUBLISHED.search(text)
  if not found and 'Published:' in text:
    raise ValueError(
      f"{name}.gin: the line '# Published:' must go on like '671B total, 37B"
      " active.' or '395B total.'; write the source below it."
    )
  why = _WHY.search(text)
  return Published(
    *(found.groups() if found else (None, None)),
    why and why.group(1).replace('\n# ', ' '),
  )


def figure(text: str) -> float:
  """A published figure as a number: '1.2T' is 1.2e12."""
  return float(text[:-1]) * _UNITS[text[-1]]


def difference(value: int, text: str | None) -> float | None:
  """Ours against the published figure, in percent of that; None without one."""
  return None if text is None else 100 * (value / figure(text) - 1)


def shapes(run):
  """(shapes of a run's parameters, their logical axes), on no device."""
  import jax

  from moe.models.functional import Functional
  from moe.train.program import batch_shapes

  found = {}

  def init(key):
    params, _, found['axes'] = Functional(run.model).init(
      key, batch_shapes(1, 8)
    )
    return params

  return jax.eval_shape(init, jax.random.key(0)), found['axes']


def describe(name: str) -> dict[str, str | int | float | None]:
  """A model's row of the table.

  Raises:
    ValueError: if there is no such model.
  """
  import jax

  from launch.configs import configuration
  from moe.runs.counts import counts_of

  if name not in names():
    raise ValueError(f"'{name}' must be one of {', '.join(names())}.")
  overrides = ['TRAIN_STEPS=200', 'LEARNING_RATE=1e-3']
  overrides += [f'SEQUENCE_LENGTH={LENGTH}']
  run = configuration.load([f'models/{name}.gin', *_REST], overrides)
  params, logical_axes = shapes(run)
  counts = counts_of(run, params, logical_axes)
  paper = published(name)
  return {
    'name': name,
    **counts,
    'params_total_published': paper.total,
    'params_active_published': paper.active,
    'params_total_difference': difference(counts['params_total'], paper.total),
    'params_active_difference': difference(
      counts['params_active'], paper.active
    ),
    'difference_because': paper.why,
    'length': LENGTH,
    'param_bytes': sum(
      leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)
    ),
  }


def short(value: float) -> str:
  """Four digits and a unit: 1,748,943,388,672 is 1.749T."""
  unit = next((u for u in 'TB' if value >= _UNITS[u]), 'M')
  return f'{value / _UNITS[unit]:.4g}{unit}'


def table(rows: Sequence[dict]):
  """The rows as a rich table."""
  import rich.table

  notes = [
    f'FLOPs of one token at length {LENGTH}: 2 for each active parameter in a'
    ' product, causal attention. GB: 10^9 bytes of float32 parameters.'
  ]
  notes += [
    f'{row["name"]}: {row["difference_because"]}'
    for row in rows
    if row['difference_because']
  ]
  made = rich.table.Table(
    title='models, ours against published', caption='\n'.join(notes)
  )
  made.add_column('model', no_wrap=True)
  columns = ['total', 'published', '%', 'active', 'published', '%']
  for column in [*columns, 'GFLOP forward', 'GFLOP training', 'GB']:
    made.add_column(column, justify='right')
  percent = lambda value: '' if value is None else f'{value:+.2f}'
  giga = lambda value: f'{value / 1e9:,.{0 if value > 1e12 else 3}f}'
  for row in rows:
    made.add_row(
      row['name'],
      short(row['params_total']),
      row['params_total_published'] or '',
      percent(row['params_total_difference']),
      short(row['params_active']),
      row['params_active_published'] or '',
      percent(row['params_active_difference']),
      giga(row['flops_per_token_forward']),
      giga(row['flops_per_token_train']),
      giga(row['param_bytes']),
    )
  return made


def show(args: argparse.Namespace) -> int:
  """Prints the table."""
  import rich.console

  rows = [describe(name) for name in args.names or names()]
  rows.sort(key=lambda row: row['params_total'])
  if args.json:
    print(json.dumps({row['name']: row for row in rows}, indent=2))
    return 0
  rich.console.Console(width=120).print(table(rows))
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
  args = parser.parse_args(argv)
  # Shapes alone: no accelerator is to be waited for, or taken.
  os.environ['JAX_PLATFORMS'] = 'cpu'
  return runtime.run(lambda: show(args))


if __name__ == '__main__':
  sys.exit(main())
