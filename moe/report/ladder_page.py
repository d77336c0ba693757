"""Writes a ladder as text or as a page: how much do sparse models gain?"""

import functools
import itertools
import json
import math
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from moe import atomic_files
from moe.evaluate import score
from moe.report import comparison, corpora, ladder, templates
from moe.report import figures as draw
from moe.report.comparison_page import aligned
from moe.runs.ladder import Finished
from moe.scale.quantities import in_seconds, short

PAGE, JSON, PICTURE = 'ladder.html', 'ladder.json', 'ladder.svg'
_MARKS = 'osD^vPX'


def report(
  found: Finished,
  configured: Callable[[pathlib.Path], tuple[int, tuple[str, ...]]],
  expansions: dict[str, float],
  command: str,
  workdir: str,
) -> tuple[dict[str, Any], pathlib.Path]:
  """Summarises a ladder; writes a page, a picture and the summary as JSON.

  Args:
    found: learning rates and directories of the runs.
    configured: reads a config.gin, as in `comparison.read_run`.
    expansions: arm name -> its expansion, see `moe.runs.arms.expansion`.
    command: the command line that makes the ladder again.
    workdir: where the files are written.

  Returns:
    (summary, file of the page).
  """
  read = functools.partial(comparison.read_run, configured=configured)
  summary = ladder.summarise(found, read, expansions, command)
  directory = pathlib.Path(workdir)
  write(summary, directory / PAGE)
  write_picture(summary, directory / PICTURE)
  text = json.dumps(summary, ensure_ascii=False)
  atomic_files.write_file(directory / JSON, text)
  return summary, directory / PAGE


def as_text(summary: dict[str, Any]) -> str:
  """Tables as text: models, gains by task, rates, loads by corpus, scores."""
  blocks = [unfinished(summary)] if summary['missing'] else []
  blocks.append(aligned(models_table(summary)))
  for task in summary['tasks']:
    blocks.append(f'{task}, held out\n{aligned(gains_table(summary, task))}')
  if _swept(summary):
    blocks.append(f'learning rates\n{aligned(rates_table(summary))}')
  for name, loads in summary['loads'].items():
    if len(loads) > 1:
      table = aligned(corpora.table(loads))
      blocks.append(f'{name}, experts that serve each corpus\n{table}')
  return '\n\n'.join([*blocks, score.as_table(_scores(summary))])


def unfinished(summary: dict[str, Any]) -> str:
  """A sentence about the runs that have not ended."""
  missing = summary['missing']
  return (
    f'Unfinished: {missing} of the runs at the best rates'
    f' {"has" if missing == 1 else "have"} not ended. The same command goes on.'
  )


def write(summary: dict[str, Any], path: pathlib.Path) -> None:
  """Writes the page of a summary from `ladder.summarise`."""
  tasks = []
  for task in summary['tasks']:
    with draw.style(draw.PAGE):
      figure = draw.svg(
        _curves(summary, [task], draw.PAGE), f'{task} by tokens'
      )
    tasks.append((task, figure, gains_table(summary, task)))
  loads = [
    (name, corpora.corpora(found))
    for name, found in summary['loads'].items()
    if len(found) > 1
  ]
  page = templates.render(
    'ladder_page.html',
    title='When does sparsity pay?',
    summary=summary,
    unfinished=unfinished(summary) if summary['missing'] else '',
    models=models_table(summary),
    tasks=tasks,
    rates=_rates(summary) if _swept(summary) else '',
    rates_table=rates_table(summary),
    loads=loads,
    scores=score.as_cells(_scores(summary)),
  )
  atomic_files.write_file(path, page)


def write_picture(summary: dict[str, Any], path: pathlib.Path) -> None:
  """Writes the curves of all tasks beside each other, in colours for paper."""
  with draw.style(draw.PAPER), draw.without_glyph_warnings():
    figure = _curves(summary, list(summary['tasks']), draw.PAPER)
    figure.savefig(path, metadata={'Date': None})


def models_table(summary: dict[str, Any]) -> list[list[str]]:
  """Makes rows of cells, the header first, then a row for each arm."""
  header = [
    'arm', 'parameters', 'active', 'training FLOPs per token',
    "optimizer's FLOPs per token", 'learning rate', 'seeds', 'tokens',
    'training', 'dropped',
  ]  # fmt: skip
  rows = [header]
  for name, arm in summary['arms'].items():
    dropped = arm['dropped_fraction']
    rows.append(
      [
        name,
        *(
          '–' if arm[key] is None else short(arm[key])
          for key in (
            'params_total',
            'params_active',
            'flops_per_token_train',
            'flops_per_token_optimizer',
          )
        ),
        f'{arm["learning_rate"]:g}',
        str(arm['seeds']),
        short(arm['tokens']),
        in_seconds(arm['seconds']),
        '–' if dropped is None else f'{dropped:.1%}',
      ]
    )
  return rows


def gains_table(summary: dict[str, Any], task: str) -> list[list[str]]:
  """Each arm's results after its last step: rows of cells, the header first."""
  found, base = summary['tasks'][task], summary['base']
  end = found['tokens'][-1]
  rows = [
    ['arm', 'bits per character', f'{base}, same seeds', f'gain on {base}']
    + [
      'standard error',
      'seeds',
      'shown from',
      f'share of tokens for the last score of {base}',
    ]
    + ["joint law's gain"]
  ]
  for name, arm in found['arms'].items():
    if name == base:
      rows.append([name, f'{arm["bits"][-1]:.4f}', *['–'] * 7])
      continue
    error, law = arm['standard_error'][-1], arm['law_gain']
    needed, shown = arm['tokens_needed'], arm['shown_from']
    rows.append(
      [
        name,
        f'{arm["bits"][-1]:.4f}',
        f'{arm["base_bits"][-1]:.4f}',
        f'{arm["gain"][-1]:+.4f}',
        '–' if error is None else f'{error:.4f}',
        str(arm['seeds']),
        '–' if shown is None else f'{short(shown)} tokens',
        '–' if needed is None else f'{needed / end:.0%}',
        '–' if law is None else f'{law[-1]:+.3f}',
      ]
    )
  return rows


def rates_table(summary: dict[str, Any]) -> list[list[str]]:
  """Every learning rate of every arm: rows of cells, the header first.

  The row of an arm's best rate says so. If this rate is the lowest or the
  highest one, a rate beyond it may be better, and the row says this, too.
  """
  base = summary['base']
  rows = [
    ['arm', 'learning rate', 'bits per character', 'nats per token']
    + ['nats above the best', f'doublings from the best of {base}', 'remark']
  ]
  best = {
    name: min((run for run in runs if run[2] is not None), key=lambda r: r[2])
    for name, runs in summary['rates'].items()
    if any(bits is not None for *_, bits, _ in runs)
  }
  for name, runs in summary['rates'].items():
    for i, (rate, _, bits, nats) in enumerate(runs):
      if bits is None:
        rows.append([name, f'{rate:g}', *['–'] * 4, 'diverged'])
        continue
      remark = ''
      if rate == best[name][0]:
        ends = {0: 'no lower rate was tried'}
        ends[len(runs) - 1] = 'no higher rate was tried'
        remark = f'best, {ends[i]}' if i in ends else 'best'
      doublings = '–'
      if base in best:
        doublings = f'{math.log2(rate / best[base][0]):+.1f}'
      above = nats - best[name][3]
      rows.append(
        [name, f'{rate:g}', f'{bits:.4f}', f'{nats:.4f}']
        + [f'{above:+.4f}', doublings, remark]
      )
  return rows


def _scores(summary: dict[str, Any]) -> list[score.Score]:
  return [score.from_json(entries) for entries in summary['scores']]


def _swept(summary: dict[str, Any]) -> bool:
  return any(summary['rates'].values())


def _curves(
  summary: dict[str, Any], tasks: Sequence[str], colors: draw.Colors
) -> Figure:
  """Draws the curves of all arms for each task, and their gains below."""
  columns = min(len(tasks), 2)
  rows = math.ceil(len(tasks) / columns)
  figure = Figure((9.2, 4.8 * rows), layout='constrained')
  grid = figure.add_gridspec(rows, columns)
  for number, task in enumerate(tasks):
    cell = grid[divmod(number, columns)].subgridspec(2, 1, height_ratios=(2, 1))
    panels = cell.subplots(sharex=True)
    _draw_task(summary, task, panels, colors)
    if not number:
      panels[0].legend(loc='upper right')
  return figure


def _draw_task(
  summary: dict[str, Any],
  task: str,
  panels: tuple[Axes, Axes],
  colors: draw.Colors,
) -> None:
  """Draws the bits of all arms into one panel, and their gains into another."""
  found, base = summary['tasks'][task], summary['base']
  millions = np.array(found['tokens']) / 1e6
  (top, bottom), laws = panels, []
  looks = zip(
    found['arms'].items(),
    itertools.cycle(colors.series),
    itertools.cycle(_MARKS),
    strict=False,
  )
  bottom.axhline(0, color=colors.soft, linewidth=1)
  for (name, arm), color, mark in looks:
    top.plot(
      millions, arm['bits'], f'{mark}-', color=color, lw=1.8, ms=5, label=name
    )
    if name == base:
      continue
    errors = [error or 0 for error in arm['standard_error']]
    bottom.errorbar(
      millions, arm['gain'], errors, fmt=f'{mark}-', color=color, lw=1.6,
      ms=4.5, capsize=4,
    )  # fmt: skip
    if arm['law_gain'] is not None:
      laws.append((arm['law_gain'], color))
  # The panel shows all gains; a law may lie far outside.
  bottom.set_ylim(bottom.get_ylim())
  for gain, color in laws:
    bottom.plot(millions, gain, color=color, lw=1, ls=(0, (4, 4)))
  top.set_ylabel(f'{task}, bits per character')
  bottom.set(xlabel='million tokens', ylabel=f'gain on {base}')


def _rates(summary: dict[str, Any]) -> str:
  """Draws bits per character by learning rate, for each arm."""
  with draw.style(draw.PAGE):
    figure = Figure((9.2, 3.2), layout='constrained')
    axes = figure.subplots()
    looks = zip(
      summary['rates'].items(),
      itertools.cycle(draw.PAGE.series),
      itertools.cycle(_MARKS),
      strict=False,
    )
    for (name, rows), color, mark in looks:
      points = [(r, bits) for r, _, bits, _ in rows if bits is not None]
      xs, ys = zip(*points, strict=True) if points else ((), ())
      axes.plot(xs, ys, f'{mark}-', color=color, label=name)
    axes.set_xscale('log')
    rates = {rate for rows in summary['rates'].values() for rate, *_ in rows}
    axes.set_xticks(sorted(rates), [f'{rate:g}' for rate in sorted(rates)])
    axes.minorticks_off()
    axes.set(xlabel='learning rate', ylabel='bits per character')
    axes.legend(loc='upper right')
    return draw.svg(figure, 'bits per character by learning rate')
