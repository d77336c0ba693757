"""Writes a comparison of two groups of runs as text, picture or page."""

import pathlib
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from moe.evaluate import score
from moe.report import figures as draw
from moe.report import templates

_TRAIN, _OPTIMIZER = 'flops_per_token_train', 'flops_per_token_optimizer'
# Rows of the first table: (key, name, format).
FACTS = (
  ('params_total', 'parameters', '{:,}'),
  ('params_active', 'active parameters per token', '{:,}'),
  (_TRAIN, 'training FLOPs per token', '{:,}'),
  (_OPTIMIZER, "the optimizer's FLOPs per token", '{:,}'),
  ('dropped_fraction', 'dropped tokens, last tenth of steps', '{:.1%}'),
  ('load_imbalance', 'busiest expert / mean, last tenth of steps', '{:.2f}'),
)
# Above this relative difference of training FLOPs per token, the page has a
# remark.
EQUAL_FLOPS = 0.02


def as_text(compared: dict[str, Any]) -> str:
  """Writes the result of `comparison.compare` as text.

  The text has tables, and a sentence for each task.
  """
  blocks = [f'{title(compared)}: {compared["tokens"]:,} tokens']
  facts, *tables = tables_of(compared)
  blocks.append(aligned(facts))
  for task, rows in zip(compared['tasks'], tables, strict=True):
    blocks.append(
      f'{task}, held out, bits per character\n{aligned(rows)}\n'
      f'{sentence(compared, task)}'
    )
  if remark := flops_remark(compared):
    blocks.append(remark)
  return '\n\n'.join([*blocks, score.as_table(_scores(compared))])


def _scores(compared: dict[str, Any]) -> list[score.Score]:
  return [score.from_json(entries) for entries in compared['scores']]


def title(compared: dict[str, Any]) -> str:
  """The title, with the names of both groups."""
  return f'{compared["runs"]["label"]} against {compared["against"]["label"]}'


def sentence(compared: dict[str, Any], task: str) -> str:
  """A sentence about the mean gain at the end of training."""
  found, seeds = compared['tasks'][task], compared['seeds']
  gain, error = found['gain'][-1], found['standard_error'][-1]
  runs, against = (compared[side]['label'] for side in ('runs', 'against'))
  if f'{abs(gain):.4f}' == '0.0000':
    words = f'{runs} and {against} are equal to four decimals'
  else:
    verb = 'gains' if gain > 0 else 'loses'
    words = f'{runs} {verb} {abs(gain):.4f} bits per character on {against}'
  if error is None:
    return f'{words}; one seed gives no standard error.'
  return (
    f'{words}, with a standard error of {error:.4f} (mean over'
    f' {len(seeds)} seeds, paired by seed).'
  )


def flops_remark(compared: dict[str, Any]) -> str:
  """A remark if the groups differ in FLOPs per token; else ''.

  The optimizer's FLOPs count, since those of Muon grow with all parameters.
  """
  ours, theirs = (
    (compared[side][_TRAIN] or 0) + (compared[side][_OPTIMIZER] or 0)
    for side in ('runs', 'against')
  )
  if not ours or not theirs or abs(ours / theirs - 1) <= EQUAL_FLOPS:
    return ''
  return (
    "note: training FLOPs per token, with the optimizer's, differ by"
    f' {ours / theirs - 1:+.1%}, which may explain a part of the gain.'
  )


def tables_of(compared: dict[str, Any]) -> list[list[list[str]]]:
  """A table of facts about the models, and one table of cells for each task."""
  sides = [compared['runs'], compared['against']]
  labels = [side['label'] for side in sides]
  facts = [['', *labels]]
  for key, name, form in FACTS:
    if any(side[key] is not None for side in sides):
      facts.append([name, *(_cell(side[key], form) for side in sides)])
  tables = [facts]
  for found in compared['tasks'].values():
    rows = [['tokens', *labels, 'gain', 'standard error']]
    means = [np.mean(found[side], axis=0) for side in ('runs', 'against')]
    columns = zip(
      found['tokens'], *means, found['gain'], found['standard_error'],
      strict=True,
    )  # fmt: skip
    for at, ours, theirs, gain, error in columns:
      rows.append(_row(f'{at:,}', ours, theirs, gain, error))
    lines = zip(compared['seeds'], found['runs'], found['against'], strict=True)
    for seed, ours, theirs in lines:
      ours, theirs = ours[-1], theirs[-1]
      rows.append(_row(f'seed {seed}', ours, theirs, theirs - ours, None))
    tables.append(rows)
  return tables


def _row(
  name: str, ours: float, theirs: float, gain: float, error: float | None
) -> list[str]:
  cells = [_cell(ours, '{:.4f}'), _cell(theirs, '{:.4f}')]
  return [name, *cells, _cell(gain, '{:+.4f}'), _cell(error, '{:.4f}')]


def _cell(value: float | None, form: str) -> str:
  return '–' if value is None else form.format(value)


def aligned(rows: list[list[str]]) -> str:
  """A table for a terminal; the first column is left-aligned, others right."""
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  return '\n'.join(
    '  '.join(
      [
        row[0].ljust(widths[0]),
        *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True)),
      ]
    )  # fmt: skip
    for row in rows
  )


def write(compared: dict[str, Any], path: pathlib.Path) -> str:
  """Writes a page of all tasks to a .html file, or a picture of the first task.

  Returns:
    A caption for the picture, or ''. If the picture's font lacks characters of
    a name, the picture has a substitute, and the caption explains it.
  """
  if path.suffix != '.html':
    return _write_picture(compared, path)
  drawn = []
  for task in compared['tasks']:
    with draw.style(draw.PAGE):
      svg = draw.svg(_figure(compared, task, draw.PAGE), f'{task} by tokens')
    drawn.append((task, svg, sentence(compared, task)))
  page = templates.render(
    'comparison_page.html',
    title=title(compared),
    compared=compared,
    figures=drawn,
    tables=[*tables_of(compared), score.as_cells(_scores(compared))],
    remark=flops_remark(compared),
  )
  path.write_text(page, encoding='utf-8')
  return ''


def _write_picture(compared: dict[str, Any], path: pathlib.Path) -> str:
  task, found = next(iter(compared['tasks'].items()))
  names = {
    'runs': compared['runs']['label'],
    'against': compared['against']['label'],
    'held out': task,
  }
  replaced = {}
  if path.suffix == '.png':
    replaced = {k: name for k, name in names.items() if not draw.can_draw(name)}
  names.update({plain: plain for plain in replaced})
  drawn = {
    'runs': {'label': names['runs']},
    'against': {'label': names['against']},
    'tasks': {names['held out']: found},
  }
  with draw.style(draw.PAPER), draw.without_glyph_warnings():
    figure = _figure(drawn, names['held out'], draw.PAPER)
    figure.savefig(path, dpi=160)
  return ', '.join(f'{plain} = {name}' for plain, name in replaced.items())


def _figure(compared: dict[str, Any], task: str, colors: draw.Colors) -> Figure:
  """Draws the curves of both groups, and the gain below them."""
  found = compared['tasks'][task]
  millions = np.array(found['tokens']) / 1e6
  figure = Figure((9.2, 5.2), layout='constrained')
  top, bottom = figure.subplots(2, sharex=True, height_ratios=(2.2, 1))
  # Different markers help to distinguish lines that are close.
  for side, color, mark in zip(
    ('runs', 'against'), colors.series, 'os', strict=False
  ):
    lines = np.array(found[side])
    if len(lines) > 1:
      top.plot(millions, lines.T, color=color, linewidth=0.8, alpha=0.5)
    label = compared[side]['label']
    top.plot(
      millions, lines.mean(0), f'{mark}-', color=color, lw=2, ms=5, label=label
    )
  top.set_ylabel(f'{task}, bits per character')
  top.legend(loc='upper right')
  errors = [error or 0 for error in found['standard_error']]
  bottom.axhline(0, color=colors.soft, linewidth=1)
  bottom.errorbar(
    millions, found['gain'], errors, fmt='o-', color=colors.series[2], lw=1.6,
    ms=4.5, capsize=4,
  )  # fmt: skip
  bottom.set(xlabel='million tokens', ylabel='gain')
  return figure
