"""A table of models: our counts of parameters, beside published counts."""

import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import jax
import rich.table

from moe.models.functional import Functional
from moe.objectives.language import batch_shapes
from moe.runs.counts import counts_of
from moe.runs.run import Run
from moe.scale import cost, orthogonal
from moe.types import Array, PyTree

_UNITS = {'M': 10**6, 'B': 10**9, 'T': 10**12}
_PUBLISHED = re.compile(
  r'^# Published: (\d[\d.]*[MBT]) total(?:, (\d[\d.]*[MBT]) active)?\.$',
  re.MULTILINE,
)
# Matches the sentence '# Difference: ...', which may span several comment
# lines.
_WHY = re.compile(r'^# Difference: ((?:.*[^.]\n# )*.*\.)$', re.MULTILINE)


class PublishedCounts(NamedTuple):
  """Published numbers of parameters, as text such as '1.2T'.

  Attributes:
    total: number of parameters; None if it is not published.
    active: number of parameters that a token uses; None if it is not published.
    why: why our total differs; None if the gin file gives no reason.
  """

  total: str | None
  active: str | None
  why: str | None


def read_published(path: pathlib.Path) -> PublishedCounts:
  """Reads the published counts from the comments of a model's gin file.

  Raises:
    ValueError: if the line '# Published:' has an unknown form.
  """
  text = path.read_text(encoding='utf-8')
  found = _PUBLISHED.search(text)
  if not found and 'Published:' in text:
    raise ValueError(
      f"{path.name}: the line '# Published:' must go on like '671B total, 37B"
      " active.' or '395B total.'; write the source below it."
    )
  why = _WHY.search(text)
  return PublishedCounts(
    *(found.groups() if found else (None, None)),
    why and why.group(1).replace('\n# ', ' '),
  )


def figure(text: str) -> float:
  """Reads a published figure as a number: '1.2T' is 1.2e12."""
  return float(text[:-1]) * _UNITS[text[-1]]


def difference(value: int, text: str | None) -> float | None:
  """Our count minus the published count, in percent of the published count.

  None if no count is published.
  """
  return None if text is None else 100 * (value / figure(text) - 1)


def shapes(run: Run) -> tuple[PyTree, PyTree]:
  """Returns (shapes of a run's parameters, their logical axes)."""
  functional, found = Functional(run.model), {}

  def init(key: Array):
    params, _, found['axes'] = functional.init(
      key, batch_shapes(1, 8, functional.extras)
    )
    return params

  return jax.eval_shape(init, jax.random.key(0)), found['axes']


def table_row(
  path: pathlib.Path, run: Run
) -> dict[str, str | int | float | None]:
  """Makes the row of one model.

  Args:
    path: the model's gin file; its comments have the published counts.
    run: a run of this model; the FLOPs depend on its sequence length.

  Raises:
    ValueError: if the published counts have an unknown form.
  """
  params, logical_axes = shapes(run)
  counts = counts_of(run, params, logical_axes)
  paper = read_published(path)
  return {
    'name': path.stem,
    **counts,
    'params_total_published': paper.total,
    'params_active_published': paper.active,
    'params_total_difference': difference(counts['params_total'], paper.total),
    'params_active_difference': difference(
      counts['params_active'], paper.active
    ),
    'difference_because': paper.why,
    'flops_per_step_muon': orthogonal.flops_with_muon(params),
    'length': run.data.sequence_length,
    'param_bytes': cost.total_bytes(params),
  }


def _as_published(value: float) -> str:
  """Formats a count in the style of papers: 1,748,943,388,672 is 1.749T."""
  unit = next((u for u in 'TB' if value >= _UNITS[u]), 'M')
  return f'{value / _UNITS[unit]:.4g}{unit}'


def table(rows: Sequence[dict]) -> rich.table.Table:
  """Makes a rich table of the rows."""
  notes = [
    f'FLOPs of one token at length {rows[0]["length"]}: 2 for each active'
    ' parameter in a product, causal attention. TFLOP Muon: of one step, of'
    ' however many tokens. GB: 10^9 bytes of float32'
    ' parameters.'
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
  columns += ['GFLOP forward', 'GFLOP training', 'TFLOP Muon', 'GB']
  for column in columns:
    made.add_column(column, justify='right')
  percent = lambda value: '' if value is None else f'{value:+.2f}'
  giga = lambda value: f'{value / 1e9:,.{0 if value > 1e12 else 3}f}'
  for row in rows:
    made.add_row(
      row['name'],
      _as_published(row['params_total']),
      row['params_total_published'] or '',
      percent(row['params_total_difference']),
      _as_published(row['params_active']),
      row['params_active_published'] or '',
      percent(row['params_active_difference']),
      giga(row['flops_per_token_forward']),
      giga(row['flops_per_token_train']),
      giga(row['flops_per_step_muon'] / 1e3),
      giga(row['param_bytes']),
    )
  return made
